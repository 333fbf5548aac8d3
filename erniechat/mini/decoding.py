"""Greedy batched decoding and likelihoods with the training model."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from erniechat.mini.chat import render_prompt
from erniechat.mini.model import Cache, Model
from erniechat.mini.scoring import STOP_TOKENS

Row = dict[str, Any]

DOCUMENTS_AT_ONCE = 16
DROP_EVERY = 8  # steps between two cleanings of the batch


def new_loads(model: Model) -> Tensor:
    """Zero counts ``[num_moe_layers, num_experts]`` to collect expert loads in."""
    num_experts = model.config["moe_num_experts"]
    return torch.zeros(
        len(model.moe_layers), num_experts, dtype=torch.long, device=model.embed.device
    )


def _prefill(
    model: Model, prompts: Sequence[list[int]], max_tokens: int, loads: Tensor | None
) -> tuple[Tensor, Cache, Tensor, Tensor]:
    """Run prompts padded on the left.

    Returns:
        Logits of the last position, the cache, the padding of each row ``[batch]`` and the tokens
        that count ``[batch, longest]``.
    """
    device = model.embed.device
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row_idx, prompt in enumerate(prompts):
        ids[row_idx, longest - len(prompt) :] = torch.tensor(prompt)
    ids, padding = ids.to(device), padding.to(device)
    places = torch.arange(longest, device=device)[None] - padding[:, None]
    seen = places >= 0
    square = torch.ones(longest, longest, device=device)
    mask = seen[:, None, :] & square.tril().bool()
    mask |= torch.eye(longest, device=device).bool()  # padding looks at itself, to stay finite
    cache = model.new_cache(len(prompts), longest + max_tokens)
    positions = places.clamp(min=0)
    logits = model.step_(ids, positions, cache, mask, loads=loads, counted=seen)
    return logits, cache, padding, seen


@torch.no_grad()
def _generate_batch(
    model: Model,
    prompts: Sequence[list[int]],
    stop_ids: Tensor,
    *,
    max_tokens: int,
    num_tokens: int,
    loads: Tensor | None,
) -> list[list[int]]:
    """Greedy replies as token ids; after its stop token a reply holds anything."""
    logits, cache, padding, seen = _prefill(model, prompts, max_tokens, loads)
    longest = seen.shape[1]
    running = torch.arange(len(prompts), device=stop_ids.device)  # the rows of the batch
    replies = torch.full((len(prompts), max_tokens), int(stop_ids[0]), device=stop_ids.device)
    for position in range(max_tokens):
        logits[:, num_tokens:] = -torch.inf  # the padding rows of the vocabulary
        token = logits.argmax(-1)
        replies[running, position] = token
        going = ~torch.isin(token, stop_ids)
        if not going.any():
            break
        if position % DROP_EVERY == DROP_EVERY - 1 or going.sum() < len(going) // 2:
            running, token, padding, seen = (t[going] for t in (running, token, padding, seen))
            cache = [(keys[going], values[going]) for keys, values in cache]
            going = going[going]
        seen = torch.cat((seen, going[:, None]), 1)
        places = (longest + position - padding)[:, None]
        logits = model.step_(
            token[:, None], places, cache, seen[:, None], loads=loads, counted=going[:, None]
        )
    rows: list[list[int]] = replies.tolist()
    return rows


def generate(
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    *,
    max_tokens: int = 400,
    batch_size: int = 512,
    loads: Tensor | None = None,
) -> list[str]:
    """Greedy replies to the rows of an evaluation set, as text.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        rows: Of `scoring.load_eval`.
        max_tokens: A reply is cut there.
        batch_size: Rows at once.
        loads: Of `new_loads`; the experts used are added, prompt tokens included.
    """
    stop_list = [tokenizer.token_to_id(token) for token in STOP_TOKENS]
    stop_ids = torch.tensor(stop_list, device=model.embed.device)
    texts = [render_prompt(row["messages"], row["tools"], row["thinking"]) for row in rows]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    order = sorted(range(len(rows)), key=lambda row_idx: len(prompts[row_idx]))
    replies = [""] * len(rows)
    for begin in range(0, len(order), batch_size):
        part = order[begin : begin + batch_size]
        generated = _generate_batch(
            model,
            [prompts[row_idx] for row_idx in part],
            stop_ids,
            max_tokens=max_tokens,
            num_tokens=tokenizer.get_vocab_size(),
            loads=loads,
        )
        for row_idx, reply in zip(part, generated, strict=True):
            stops = (place for place, token in enumerate(reply) if token in stop_list)
            kept = reply[: next(stops, len(reply))]
            replies[row_idx] = tokenizer.decode(kept, skip_special_tokens=False)
    return replies


@torch.no_grad()
def packed_logits(model: Model, documents: Sequence[list[int]]) -> Tensor:
    """Float32 logits ``[num_documents, longest, vocab_size]``; padding is on the right."""
    longest = max(map(len, documents))
    ids = torch.zeros(len(documents), longest, dtype=torch.long)
    for row_idx, document in enumerate(documents):
        ids[row_idx, : len(document)] = torch.tensor(document)
    flat = ids.flatten().to(model.embed.device)
    starts = torch.arange(0, len(flat) + 1, longest, dtype=torch.int32, device=flat.device)
    hidden_states, _ = model.packed(flat, starts, longest, model.embed.dtype)
    return F.linear(hidden_states, model.embed).float().view(len(documents), longest, -1)


@torch.no_grad()
def negative_log_likelihood(model: Model, documents: Sequence[list[int]]) -> float:
    """Sum over the documents of -ln p of every token but the first."""
    total = 0.0
    for begin in range(0, len(documents), DOCUMENTS_AT_ONCE):
        part = documents[begin : begin + DOCUMENTS_AT_ONCE]
        logits = packed_logits(model, part)
        for row_idx, document in enumerate(part):
            targets = torch.tensor(document[1:], device=logits.device)
            row_logits = logits[row_idx, : len(targets)]
            total += float(F.cross_entropy(row_logits, targets, reduction="sum"))
    return total
