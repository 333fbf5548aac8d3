"""The built-in model, which is trained, against transformers: logits, and the text it writes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import erniechat
from erniechat.model import decoder as decoder_module
from erniechat.model.decoder import Decoder
from erniechat.model.routing import route
from tests.model.checkpoints import load, prefill_logits, reference_logits

MINI = Path(erniechat.__file__).parent / "mini"
TOLERANCE = 1e-4
# Two experts nearer than this are tied: the router's sums are good to a few steps of 6e-8.
TIE = 5e-7
NUM_PROMPTS_PER_SET = 2
NUM_NEW_TOKENS = 24
MAX_REPLY_TOKENS = 48
MIN_PROMPTS = 50
MAX_TIED_PROMPTS = 3
NUM_GENERATED = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    skill: str
    input_ids: list[int]
    reply_ids: list[int]  # the reference answer of the eval set


@dataclass(frozen=True, slots=True)
class Mini:
    reference: transformers.PreTrainedModel
    decoder: Decoder
    prompts: list[Prompt]
    end_id: int


def prompts_of(tokenizer: Any) -> Iterator[Prompt]:
    for path in sorted((MINI / "eval").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        step = len(rows) // NUM_PROMPTS_PER_SET
        for row in rows[step // 2 :: step][:NUM_PROMPTS_PER_SET]:
            tools = row.get("tools") or None
            text = tokenizer.apply_chat_template(
                row["messages"], tools=tools, add_generation_prompt=True, tokenize=False
            )
            ids, reply = (
                tokenizer(part, add_special_tokens=False)["input_ids"]
                for part in (text, row["reference"])
            )
            yield Prompt(path.stem, ids, reply[:MAX_REPLY_TOKENS])


@pytest.fixture(scope="module")
def mini() -> Mini:
    folder = MINI / "checkpoint"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompts = sorted(prompts_of(tokenizer), key=lambda prompt: len(prompt.input_ids))
    return Mini(reference, load(folder).decoder, prompts, end_id)


@dataclass(frozen=True, slots=True)
class Choices:
    """Which experts both chose, by layer and token, and how near the next one was."""

    ours: list[Tensor]
    theirs: list[Tensor]
    margins: list[Tensor]


@pytest.fixture
def choices(mini, monkeypatch) -> Iterator[Choices]:
    seen = Choices([], [], [])

    def recorded(x: Tensor, gate: Tensor, bias: Tensor, k: int, norm_min: float) -> Any:
        ids, weights = route(x, gate, bias, k, norm_min)
        biased = torch.nn.functional.linear(x.float(), gate).softmax(-1) + bias
        best = biased.topk(k + 1, dim=-1).values
        seen.ours.append(ids.sort(-1).values)
        seen.margins.append(best[:, k - 1] - best[:, k])
        return ids, weights

    def hook(module: Any, inputs: Any, outputs: Any) -> None:
        seen.theirs.append(outputs[2].sort(-1).values)

    monkeypatch.setattr(decoder_module, "route", recorded)
    gates = [layer.mlp.gate for layer in mini.reference.model.layers if hasattr(layer.mlp, "gate")]
    handles = [gate.register_forward_hook(hook) for gate in gates]
    yield seen
    for handle in handles:
        handle.remove()


def num_before_a_tie(choices: Choices) -> int:
    """Tokens before the first whose experts differ, which only a tie excuses.

    Layers after the first in which a token's experts differ see other inputs, so only the first
    must be tied.
    """
    first = len(choices.ours[0])
    for ours, theirs, margins in zip(choices.ours, choices.theirs, choices.margins, strict=True):
        differing = (ours != theirs).any(-1)[:first].nonzero().flatten().tolist()
        for position in differing[:1]:
            assert float(margins[position]) <= TIE
            first = position
    return first


def test_logits_on_the_eval_prompts_are_those_of_transformers(mini, choices):
    assert len(mini.prompts) >= MIN_PROMPTS
    num_tied = 0
    for prompt in mini.prompts:
        for kept in (choices.ours, choices.theirs, choices.margins):
            kept.clear()
        ids = prompt.input_ids + prompt.reply_ids
        expected = reference_logits(mini.reference, ids)
        got = prefill_logits(mini.decoder, ids)
        length = num_before_a_tie(choices)
        num_tied += length < len(ids)
        worst = float((got - expected)[:length].abs().max())
        assert worst <= TOLERANCE, f"{prompt.skill}: {worst:g}"
    assert num_tied <= MAX_TIED_PROMPTS


def greedy_by_transformers(mini: Mini, prompts: list[Prompt]) -> list[list[int]]:
    """Transformers' own generate, with prompts padded on the left to one length."""
    width = max(len(prompt.input_ids) for prompt in prompts)
    padding = [width - len(prompt.input_ids) for prompt in prompts]
    rows = [[0] * n + p.input_ids for n, p in zip(padding, prompts, strict=True)]
    mask = [[0] * n + [1] * (width - n) for n in padding]
    out = mini.reference.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        eos_token_id=mini.end_id,
        pad_token_id=0,
    )
    return [cut(row, mini.end_id) for row in out[:, width:].tolist()]


def cut(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids


def greedy_by_us(mini: Mini, prompt: Prompt) -> tuple[list[int], list[float]]:
    """The ids, and how far each was ahead of the next best."""
    cache = mini.decoder.new_kv_cache(len(prompt.input_ids) + NUM_NEW_TOKENS)
    logits = mini.decoder.forward(prompt.input_ids, cache)
    ids, leads = [], []
    while True:
        best = logits[0].topk(2)
        ids.append(int(best.indices[0]))
        leads.append(float(best.values[0] - best.values[1]))
        if ids[-1] == mini.end_id or len(ids) == NUM_NEW_TOKENS:
            return ids, leads
        logits = mini.decoder.forward(ids[-1:], cache)


def test_greedy_text_is_that_of_transformers_token_by_token(mini):
    """With every token the best of transformers' logits after those before, so is the whole text.

    One pass of transformers over prompt and text shows that for all positions at once.
    """
    for prompt in mini.prompts:
        got, leads = greedy_by_us(mini, prompt)
        logits = reference_logits(mini.reference, prompt.input_ids + got)
        expected = logits[len(prompt.input_ids) - 1 : -1].argmax(-1).tolist()
        pairs = zip(got, expected, leads, strict=True)
        differing = [lead for ours, theirs, lead in pairs if ours != theirs]
        assert got == expected, f"{prompt.skill}: first differs where the lead is {differing}"


def test_greedy_text_is_what_generate_of_transformers_writes(mini):
    prompts = mini.prompts[:NUM_GENERATED]
    assert [greedy_by_us(mini, p)[0] for p in prompts] == greedy_by_transformers(mini, prompts)
