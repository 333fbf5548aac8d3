"""Greedy replies of an engine as token ids."""

from collections.abc import Collection

import torch

from erniechat.engine import Engine


@torch.inference_mode()
def reply_ids(
    engine: Engine, input_ids: list[int], max_new_tokens: int, stop_ids: Collection[int]
) -> list[int]:
    """The likeliest token again and again, a stop token included."""
    cache = engine.decoder.new_kv_cache(len(input_ids) + max_new_tokens)
    ids, out = input_ids, list[int]()
    while len(out) < max_new_tokens and not (out and out[-1] in stop_ids):
        ids = [int(engine.decoder.forward(ids, cache)[-1].argmax())]
        out += ids
    return out
