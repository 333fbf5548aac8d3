"""The KV cache: what it holds, how it grows, what a new prompt keeps of it."""

import pytest
import torch

from erniechat.model import decoder as decoder_module
from erniechat.model.kv_cache import FIRST_CAPACITY, KVCache
from tests.model.checkpoints import (
    MOE,
    SPELLINGS,
    chunked_logits,
    load,
    prefill_logits,
    random_ids,
    reference_model,
)

TOLERANCE = 1e-4  # of logits in float32; sums over other chunks are rounded otherwise


def cache_of(max_tokens: int = 4096, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(2, 1, 4, max_tokens, dtype=dtype)


def fill(cache: KVCache, input_ids: list[int]) -> None:
    """Append tokens whose keys are their id and whose values are its negative."""
    cache.append_tokens(input_ids)
    keys = torch.tensor(input_ids, dtype=torch.float32)[None, :, None].expand(1, -1, 4)
    for layer_idx in range(2):
        cache.store(layer_idx, keys + layer_idx, -keys)


def held(cache: KVCache, layer_idx: int) -> list[float]:
    empty = torch.empty(1, 0, 4)
    keys, values = cache.store(layer_idx, empty, empty)
    assert torch.equal(keys - layer_idx, -values)
    return (keys - layer_idx)[0, :, 0].tolist()


def test_store_returns_all_that_is_held_in_every_layer():
    cache = cache_of()
    fill(cache, [5, 6])
    fill(cache, [7])
    assert len(cache) == 3
    assert cache.token_ids == [5, 6, 7]
    assert held(cache, 0) == held(cache, 1) == [5, 6, 7]


def test_growing_keeps_what_is_held_and_doubles():
    cache = cache_of()
    first = cache.nbytes
    assert first == 2 * 2 * 1 * FIRST_CAPACITY * 4 * 4
    ids = list(range(FIRST_CAPACITY))
    fill(cache, ids)
    assert cache.nbytes == first
    fill(cache, [7])
    assert cache.nbytes == 2 * first
    assert held(cache, 1) == [*ids, 7]


def test_it_grows_no_further_than_the_context():
    cache = cache_of(max_tokens=FIRST_CAPACITY + 10)
    ids = list(range(FIRST_CAPACITY + 10))
    fill(cache, ids)
    assert cache.nbytes == 2 * 2 * 1 * (FIRST_CAPACITY + 10) * 4 * 4
    assert held(cache, 0) == ids


def test_while_it_grows_it_and_its_copy_hold_no_more_than_the_context():
    """The memory of the whole context was planned, and no more."""
    for max_tokens in range(1, 40_000, 700):
        cache = cache_of(max_tokens)
        while (capacity := cache.storage[1]) < max_tokens:
            cache.reserve(capacity + 1)
            assert 2 * capacity <= max(max_tokens, 2 * FIRST_CAPACITY)


def test_a_small_context_takes_no_more_than_itself():
    assert cache_of(max_tokens=3).nbytes == 2 * 2 * 1 * 3 * 4 * 4


def test_more_tokens_than_the_context_are_refused_and_nothing_changes():
    cache = cache_of(max_tokens=3)
    fill(cache, [1, 2])
    with pytest.raises(ValueError, match="4 tokens do not fit into a cache of 3"):
        cache.append_tokens([3, 4])
    assert cache.token_ids == [1, 2]
    fill(cache, [3])
    assert held(cache, 0) == [1, 2, 3]


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ([1, 2, 3, 4, 5], 3),  # goes on
        ([1, 2, 9, 9], 2),  # turns off
        ([9, 1, 2, 3], 0),  # is another one
        ([1, 2, 3], 2),  # is held as a whole: its last token's logits are still needed
        ([1, 2], 1),  # is shorter
        ([1], 0),
        ([], 0),
    ],
)
def test_the_common_prefix_is_kept_and_one_token_left_to_read(prompt, kept):
    cache = cache_of()
    fill(cache, [1, 2, 3])
    assert cache.keep_prefix(prompt) == kept == len(cache)
    assert cache.token_ids == prompt[:kept]
    fill(cache, prompt[kept:])
    assert held(cache, 1) == prompt


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    return load(SPELLINGS["hub"](folder, MOE, reference_model(MOE))).decoder


def test_a_reused_prefix_gives_the_logits_of_a_fresh_read(decoder):
    first, second = random_ids(20, 208, seed=1), random_ids(20, 208, seed=2)
    second[:12] = first[:12]
    cache = decoder.new_kv_cache(64)
    decoder.forward(first, cache)
    kept = cache.keep_prefix(second)
    assert kept == 12
    logits = decoder.forward(second[kept:], cache, all_logits=True)
    assert torch.allclose(logits, prefill_logits(decoder, second)[kept:], rtol=0, atol=TOLERANCE)


def test_a_cache_that_grows_in_mid_text_changes_no_logits(decoder, monkeypatch):
    ids = random_ids(20, 208)
    monkeypatch.setattr("erniechat.model.kv_cache.FIRST_CAPACITY", 3)
    grown = chunked_logits(decoder, ids, [2, 7])
    assert torch.allclose(grown, prefill_logits(decoder, ids), rtol=0, atol=TOLERANCE)


def test_a_read_that_is_broken_off_leaves_no_half_read_tokens(decoder, monkeypatch):
    """Ctrl-C in a prefill: later layers have no keys of these tokens, so they are not held."""
    first, second = random_ids(6, 208, seed=1), random_ids(6, 208, seed=2)
    cache = decoder.new_kv_cache(64)
    decoder.forward(first, cache)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder_module, "route", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.forward(second, cache)
    monkeypatch.undo()
    assert cache.token_ids == first
    whole = first + second
    logits = decoder.forward(whole[cache.keep_prefix(whole) :], cache)
    assert torch.allclose(logits, prefill_logits(decoder, whole)[-1:], rtol=0, atol=TOLERANCE)


def test_ctrl_c_before_the_first_layer_leaves_no_unread_tokens(decoder, monkeypatch):
    """It comes between two lines of Python: tokens are held, and nothing of them is computed."""
    cache = decoder.new_kv_cache(64)
    decoder.forward([5, 6], cache)
    append = cache.append_tokens

    def interrupted(input_ids: list[int]) -> None:
        append(input_ids)
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "append_tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.forward([7, 8], cache)
    assert cache.token_ids == [5, 6]


def test_the_cache_has_the_dtype_of_the_activations(tmp_path):
    folder = SPELLINGS["hub"](tmp_path, MOE, reference_model(MOE))
    loaded = load(folder, torch.bfloat16)
    cache = loaded.decoder.new_kv_cache(10)
    assert cache.nbytes == 10 * loaded.config.kv_nbytes_per_token
