"""A cache that grows into the experts' memory: its content, its address, and what refuses it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erniechat.model.kv_cache import KVCache
from erniechat.model.lent_memory import (
    LEAST_STEP,
    CacheFullError,
    Growth,
    LentMemory,
    move_rows,
    step_tokens,
)
from quant.experts.lending import SlotLender
from tests.quant.addressed import SmallTiers, needs_native

pytestmark = needs_native
SHAPE, WIDTH = (2, 3, 1), 4  # 6 rows of 4 numbers of 2 bytes: 48 bytes a token
PLANNED, TOKEN = 20, 48
PLENTY = 1 << 30


class Shared:
    """A small store, and a cache behind its slots."""

    def __init__(self, planned: int = PLANNED, room: int = PLENTY) -> None:
        self.tiers = SmallTiers(tail_nbytes=planned * TOKEN)
        self.free = PLENTY
        lender = SlotLender(self.tiers.store, room, lambda: self.free)
        self.memory = LentMemory(self.tiers.pool, lender, SHAPE, WIDTH, torch.bfloat16, planned)

    def cache(self, max_tokens: int = 10**6) -> KVCache:
        return KVCache(3, 1, WIDTH, max_tokens, memory=self.memory)


def fill(cache: KVCache, num_tokens: int) -> None:
    """Append tokens, with numbers that tell row and position apart."""
    begin = len(cache)
    cache.append_tokens(list(range(begin, begin + num_tokens)))
    cache.data[:, :, :, begin : begin + num_tokens] = expected(begin + num_tokens)[:, :, :, begin:]


def expected(num_tokens: int) -> torch.Tensor:
    rows = torch.arange(6.0).view(2, 3, 1, 1, 1) * 31
    places = torch.arange(float(num_tokens)).view(1, 1, 1, -1, 1) % 29
    return (rows + places).expand(2, 3, 1, num_tokens, WIDTH).to(torch.bfloat16)


def holds(cache: KVCache) -> None:
    assert torch.equal(cache.data[:, :, :, : len(cache)], expected(len(cache)))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_rows_keep_their_beginning_at_any_width(num_rows, old, new, held):
    held = min(held, old, new)
    block = torch.zeros(5 + num_rows * max(old, new), dtype=torch.uint8)
    before = torch.randint(0, 256, (num_rows, old), dtype=torch.uint8)
    block[len(block) - num_rows * old :] = before.flatten()
    move_rows(block, num_rows, old, new, held)
    after = block[len(block) - num_rows * new :].view(num_rows, new)
    assert torch.equal(after[:, :held], before[:, :held])
    assert not block[: len(block) - num_rows * max(old, new)].any()


def test_the_planned_tokens_cost_no_expert():
    shared = Shared()
    cache = shared.cache()
    fill(cache, PLANNED)
    assert cache.storage[1] == PLANNED
    assert cache.take_growth() is None
    assert len(shared.tiers.store.resident) == 12
    holds(cache)
    shared.tiers.check()


def test_growing_keeps_every_number_and_every_expert():
    shared = Shared()
    cache, store = shared.cache(), shared.tiers.store
    fill(cache, PLANNED)
    end = cache.storage[0] + cache.nbytes
    size = shared.tiers.pool.slot_nbytes
    fill(cache, 1)
    holds(cache)
    # 2,048 tokens more are 98,304 bytes, 7.53 experts of 13,056: 8 leave, and more tokens fit.
    growth = cache.take_growth()
    assert growth == Growth(cache.storage[1], 8)
    assert growth.num_tokens >= PLANNED + LEAST_STEP
    assert cache.nbytes <= PLANNED * TOKEN + 8 * size + 512 < cache.nbytes + TOKEN + 512
    assert cache.storage[0] + cache.nbytes == end
    assert cache.take_growth() is None
    shared.tiers.check()
    cache.data[:] = 7
    shared.tiers.check()  # nothing of the cache lies on an expert
    assert len(store.resident) == 4


def test_step_by_step_to_the_last_expert_and_then_it_is_full():
    shared = Shared()
    cache = shared.cache()
    grown = 0
    while len(cache) < shared.memory.most_tokens:
        fill(cache, min(97, shared.memory.most_tokens - len(cache)))
        holds(cache)
        growth = cache.take_growth()
        grown += growth.num_experts if growth else 0
    shared.tiers.check()
    assert grown == 12
    assert shared.tiers.store.resident == set()
    before = list(cache.token_ids)
    with pytest.raises(CacheFullError, match="do not fit beside the experts"):
        fill(cache, 1)
    assert cache.token_ids == before
    assert cache.max_tokens == cache.storage[1] == len(cache)
    holds(cache)


def test_ram_bounds_what_it_may_become():
    size = SmallTiers().pool.slot_nbytes
    shared = Shared(room=4 * size)  # three experts, and where the memory begins
    cache = shared.cache()
    assert (
        shared.memory.most_tokens
        == (3 * size + PLANNED * TOKEN) // TOKEN
        + (len(shared.tiers.pool.block) - shared.tiers.pool.data.nbytes - PLANNED * TOKEN) // TOKEN
    )
    fill(cache, PLANNED + 1)
    assert cache.take_growth().num_experts == 3
    assert cache.storage[1] == shared.memory.most_tokens


def test_less_than_the_usual_step_is_taken_where_that_is_refused(monkeypatch):
    """Between looking and taking, others have taken RAM."""
    shared = Shared()
    cache = shared.cache()
    monkeypatch.setattr(LentMemory, "most_tokens", PLENTY)
    shared.free = 3 * shared.tiers.pool.slot_nbytes
    fill(cache, PLANNED + 40)
    assert cache.take_growth().num_experts == 1
    shared.free = 0
    with pytest.raises(CacheFullError, match="more do not fit into RAM"):
        fill(cache, 900)
    assert len(cache) == PLANNED + 40
    holds(cache)
    shared.tiers.check()


def test_the_context_is_the_limit_where_memory_is_not():
    cache = Shared().cache(max_tokens=PLANNED + 5)
    fill(cache, PLANNED + 5)
    assert cache.storage[1] == PLANNED + 5
    with pytest.raises(CacheFullError, match="into a cache of 25"):
        fill(cache, 1)


def test_a_shorter_conversation_gives_experts_their_place_back():
    shared = Shared()
    cache, store = shared.cache(), shared.tiers.store
    fill(cache, 3000)
    assert len(store.resident) < 4
    cache.forget_from(30)
    cache.shrink(31)
    holds(cache)
    shared.tiers.check()
    assert cache.storage[1] == 31 + step_tokens(31)
    assert len(store.resident) == 12 - 8
    cache.data[:] = 7
    shared.tiers.check()


def test_it_keeps_its_size_while_it_is_half_full():
    shared = Shared()
    cache = shared.cache()
    fill(cache, 3000)
    capacity = cache.storage[1]
    cache.forget_from(1600)
    cache.shrink(1700)
    assert cache.storage[1] == capacity


def test_a_planned_cache_of_many_tokens_shrinks_to_the_plan_and_no_further():
    shared = Shared(planned=2500)
    cache, store = shared.cache(), shared.tiers.store
    fill(cache, 2501)
    assert len(store.resident) < 12
    cache.forget_from(1)
    cache.shrink(2)
    assert cache.storage[1] == 2500
    assert len(store.resident) == 12
    shared.tiers.check()


def test_a_cache_that_is_gone_leaves_its_place_to_the_next():
    shared = Shared()
    cache = shared.cache()
    fill(cache, 3000)
    assert not shared.memory.is_free
    del cache
    assert shared.memory.is_free
    cache = shared.cache()
    assert cache.storage[1] == PLANNED
    assert len(shared.tiers.store.resident) == 12
    shared.tiers.check()


def test_broken_off_while_it_is_laid_out_it_holds_nothing(monkeypatch):
    """Ctrl-C: rows are half here, half there. The conversation is read again."""
    shared = Shared()
    cache = shared.cache()
    fill(cache, PLANNED)

    def broken(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("erniechat.model.lent_memory.move_rows", broken)
        with pytest.raises(KeyboardInterrupt):
            cache.append_tokens([1])
    assert cache.token_ids == []
    shared.tiers.check()
    fill(cache, PLANNED + 40)
    holds(cache)
    shared.tiers.check()
