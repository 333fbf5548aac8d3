"""Train the tokenizer: BPE with byte fallback, laid out like ERNIE's own tokenizer.json.

No pre-tokenizer, space is ▁, digits are added tokens, newline is its byte token.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from erniechat.mini.chat import render_prompt, render_reply, visible
from erniechat.mini.mixture import MIXTURE, messages_of, training_sample
from erniechat.mini.skills.knowledge import Facts

NUM_TOKENS = 4088  # the model has 4096 rows, the last ones are padding as in the real models
NUM_DOCUMENTS = 120_000
WEIGHT_FACTORS = {"plain": 8, "dictionary": 3, "unknown": 3, "tool_call": 3}  # more words
TAGS = [
    "<think>",
    "</think>",
    "<tool_output>",
    "</tool_output>",
    "<tool_call>",
    "</tool_call>",
    "<response>",
    "</response>",
    "<system_setting>",
    "</system_setting>",
    "<global_setting>",
    "</global_setting>",
    "<tool_list>",
    "</tool_list>",
    "<|im_start|>",
    "<|im_end|>",
]
SENTENCE_TAGS = ["<|end_of_sentence|>", "<|begin_of_sentence|>", "<mask:1>"]
DIGITS = list("0123456789")
FIXED = ["<unk>", "<s>", "</s>", *DIGITS, *(f"<0x{byte:02X}>" for byte in range(256))]
SPECIAL = ["<unk>", "<s>", "</s>", *SENTENCE_TAGS]
NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "cls_token": "<|begin_of_sentence|>",
    "sep_token": "<|end_of_sentence|>",
    "mask_token": "<mask:1>",
}


def _texts(facts: Facts, num_documents: int) -> Iterator[str]:
    """Training documents without the tags of the chat format."""
    rng = random.Random(7)
    mixture = {name: share * WEIGHT_FACTORS.get(name, 1) for name, share in MIXTURE.items()}
    for _ in range(num_documents):
        sample = training_sample(rng, facts, mixture)
        text = sample.content
        if not sample.plain:
            reply = render_reply(sample.thoughts, sample.content, sample.tool_calls)
            text = render_prompt(messages_of(sample), sample.tools) + reply
        for tag in TAGS:
            text = text.replace(tag, "\n")
        yield visible(text)


def _learn(facts: Facts, num_documents: int) -> dict[str, Any]:
    """The BPE model that the trainer learns: its vocabulary and merges."""
    # Pieces that merges may not cross: words with the space before them, runs of punctuation.
    # Newlines and digits stand alone and are left out, so that a newline is always the byte token
    # and a digit always itself.
    pieces = Regex(r"▁?[A-Za-z]+|▁?[^\sA-Za-z0-9▁]+|▁")
    trainee = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trainee.normalizer = normalizers.Replace(" ", "▁")
    trainee.pre_tokenizer = pre_tokenizers.Split(pieces, "removed", invert=True)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isdigit()]
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS - len(FIXED) - len(SENTENCE_TAGS) - len(TAGS),
        initial_alphabet=[*letters, "▁"],
        limit_alphabet=420,
        special_tokens=[],
        show_progress=False,
        max_token_length=14,
    )
    trainee.train_from_iterator(_texts(facts, num_documents), trainer)
    learned: dict[str, Any] = json.loads(trainee.to_str())["model"]
    return learned


def _vocabulary(learned: dict[str, int]) -> dict[str, int]:
    """The fixed tokens, then the learned ones, then the tags."""
    tokens = [*FIXED, *sorted(learned, key=lambda token: learned[token])]
    tokens = [*dict.fromkeys(tokens), *SENTENCE_TAGS, *TAGS]
    return {token: token_id for token_id, token in enumerate(tokens)}


def _added_tokens(vocabulary: dict[str, int]) -> list[dict[str, Any]]:
    tokens = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in SPECIAL,
        }
        for token in [*SPECIAL, *DIGITS, *TAGS]
    ]
    return sorted(tokens, key=lambda token: vocabulary[str(token["content"])])


def _normalizer() -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {"type": "Sequence", "normalizers": [replace]}


def _post_processor() -> dict[str, Any]:
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first],
        "pair": [first, second],
        "special_tokens": {},
    }


def _decoder() -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}


def _tokenizer_json(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": _normalizer(),
        "pre_tokenizer": None,
        "post_processor": _post_processor(),
        "decoder": _decoder(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _tokenizer_config(added_tokens: list[dict[str, Any]]) -> dict[str, Any]:
    decoder = {
        str(token["id"]): {name: value for name, value in token.items() if name != "id"}
        for token in added_tokens
    }
    return {
        **NAMES,
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
    }


def train_tokenizer(
    facts: Facts, out: Path | str, num_documents: int = NUM_DOCUMENTS
) -> tuple[int, int]:
    """Train the tokenizer and write tokenizer.json and its companions into a folder.

    Returns:
        The number of tokens and of merges.
    """
    learned = _learn(facts, num_documents)
    vocabulary = _vocabulary(learned["vocab"])
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in learned["merges"]]
    whole = _tokenizer_json(vocabulary, merges)
    files = {
        "tokenizer.json": whole,
        "special_tokens_map.json": NAMES,
        "tokenizer_config.json": _tokenizer_config(whole["added_tokens"]),
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    return len(vocabulary), len(merges)
