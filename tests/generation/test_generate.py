"""Prefill and decode over a model that is a table: its next token is known."""

from collections.abc import Callable

import torch
from torch import Tensor

from erniechat.generation.generate import PREFILL_CHUNK, Limits, decode, prefill
from erniechat.generation.sampling import Sampler
from erniechat.model.kv_cache import KVCache

GREEDY = Sampler(temperature=0)
NUM_TOKENS, VOCAB_SIZE = 50, 64


class Successor:
    """After token n comes n + 1. Padding rows have the largest logits of all."""

    def __init__(self) -> None:
        self.chunks: list[list[int]] = []

    def forward(self, input_ids: list[int], kv_cache: KVCache) -> Tensor:
        self.chunks.append(input_ids)
        kv_cache.append_tokens(input_ids)
        logits = torch.zeros(1, VOCAB_SIZE)
        logits[0, NUM_TOKENS:] = 100.0
        logits[0, (input_ids[-1] + 1) % NUM_TOKENS] = 10.0
        return logits


def new_cache() -> KVCache:
    return KVCache(1, 1, 2, max_tokens=4096)


def never() -> bool:
    return False


def read(
    model: Successor, kv_cache: KVCache, ids: list[int], cancelled: Callable[[], bool] = never
) -> tuple[list[int], Tensor | None]:
    steps, done = prefill(model, kv_cache, ids, cancelled), []
    while True:
        try:
            done.append(next(steps))
        except StopIteration as stop:
            return done, stop.value


def write(
    model: Successor,
    kv_cache: KVCache,
    logits: Tensor,
    limits: Limits,
    cancelled: Callable[[], bool] = never,
) -> list[int]:
    generator = torch.Generator()
    return list(decode(model, kv_cache, logits, GREEDY, limits, generator, cancelled))


def test_a_reply_ends_with_its_stop_token() -> None:
    model, kv_cache = Successor(), new_cache()
    _, logits = read(model, kv_cache, [5, 6])
    assert logits is not None
    assert write(model, kv_cache, logits, Limits({10}, 99, NUM_TOKENS)) == [7, 8, 9, 10]


def test_a_reply_ends_at_max_tokens() -> None:
    model, kv_cache = Successor(), new_cache()
    _, logits = read(model, kv_cache, [5, 6])
    assert logits is not None
    assert write(model, kv_cache, logits, Limits(set(), 3, NUM_TOKENS)) == [7, 8, 9]


def test_padding_rows_are_never_sampled() -> None:
    model, kv_cache = Successor(), new_cache()
    _, logits = read(model, kv_cache, [48])
    assert logits is not None
    # Row 50 and above have the largest logits; the last defined token is 49
    assert write(model, kv_cache, logits, Limits(set(), 3, NUM_TOKENS)) == [49, 0, 1]


def test_the_penalty_counts_the_prompt_and_the_reply() -> None:
    class Even(Successor):
        def forward(self, input_ids: list[int], kv_cache: KVCache) -> Tensor:
            return super().forward(input_ids, kv_cache) + 1  # tokens that do not follow have 1

    model, kv_cache = Even(), new_cache()
    _, logits = read(model, kv_cache, [7, 2, 6])
    assert logits is not None
    # 7 follows, but has 11 / 20 where others have 1: 0 is the first of them. After 1 it is 2's turn
    # to be passed over.
    penalty = Sampler(temperature=0, repetition_penalty=20)
    limits = Limits(set(), 4, NUM_TOKENS)
    written = decode(model, kv_cache, logits, penalty, limits, torch.Generator(), never)
    assert list(written) == [0, 1, 3, 4]


def test_the_last_token_is_not_computed_before_it_is_needed() -> None:
    model, kv_cache = Successor(), new_cache()
    _, logits = read(model, kv_cache, [5])
    assert logits is not None
    write(model, kv_cache, logits, Limits(set(), 2, NUM_TOKENS))
    assert kv_cache.token_ids == [5, 6]


def test_a_prompt_is_read_in_chunks_that_report_progress() -> None:
    model, kv_cache = Successor(), new_cache()
    ids = [i % NUM_TOKENS for i in range(2 * PREFILL_CHUNK + 3)]
    done, _ = read(model, kv_cache, ids)
    assert done == [0, PREFILL_CHUNK, 2 * PREFILL_CHUNK, 2 * PREFILL_CHUNK + 3]
    assert [len(chunk) for chunk in model.chunks] == [PREFILL_CHUNK, PREFILL_CHUNK, 3]


def test_the_common_prefix_is_not_read_again() -> None:
    model, kv_cache = Successor(), new_cache()
    read(model, kv_cache, [1, 2, 3, 4, 5])
    model.chunks.clear()
    done, _ = read(model, kv_cache, [1, 2, 3, 9, 8])
    assert done == [3, 5]
    assert model.chunks == [[9, 8]]
    assert kv_cache.token_ids == [1, 2, 3, 9, 8]


def test_a_prompt_that_is_held_entirely_reads_its_last_token() -> None:
    model, kv_cache = Successor(), new_cache()
    read(model, kv_cache, [1, 2, 3])
    model.chunks.clear()
    _, logits = read(model, kv_cache, [1, 2, 3])
    assert model.chunks == [[3]]
    assert logits is not None
    assert int(logits[:NUM_TOKENS].argmax()) == 4


def test_cancelling_stops_reading_between_chunks() -> None:
    model, kv_cache = Successor(), new_cache()
    ids = [1] * (3 * PREFILL_CHUNK)
    done, logits = read(model, kv_cache, ids, cancelled=lambda: len(model.chunks) == 1)
    assert logits is None
    assert done == [0, PREFILL_CHUNK]
    assert len(kv_cache) == PREFILL_CHUNK


def test_cancelling_stops_writing_after_the_current_token() -> None:
    model, kv_cache = Successor(), new_cache()
    _, logits = read(model, kv_cache, [5])
    assert logits is not None
    limits = Limits(set(), 99, NUM_TOKENS)
    written = write(model, kv_cache, logits, limits, cancelled=lambda: len(model.chunks) == 4)
    assert written == [6, 7, 8, 9]
