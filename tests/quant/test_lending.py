"""Slots lent to a cache: who leaves, that nothing is lost on the way, and that all come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.experts import host_pool
from quant.experts.lending import SlotLender, plan_departure
from quant.experts.placement import ExpertKey
from tests.quant.addressed import HIDDEN, LAYERS, NUM_EXPERTS, NUM_FREE, SmallTiers, needs_native

pytestmark = needs_native
PLENTY = 1 << 30
FIXED = len(LAYERS) + NUM_FREE - 1  # shared experts and staging


def lender_of(tiers, room=PLENTY, free=PLENTY, shares=None):
    return SlotLender(tiers.store, room, lambda: free, shares)


def key(idx: int) -> ExpertKey:
    return ExpertKey(1, idx)


def test_the_coldest_leave_and_who_stays_makes_place_by_hand():
    # Slot 0 is fixed, 1 free; experts 0 to 3 are in slots 2 to 5; slots 4 and 5 are wanted.
    resident = {key(0): 5, key(1): 3, key(2): 2, key(3): 4}
    hits = {key(0): 9, key(1): 1, key(2): 5, key(3): 2}
    departure = plan_departure(resident, {0}, 1, 4, hits.__getitem__)
    assert departure.leaving == (key(1), key(3))
    assert departure.moving == ((key(0), 1),)  # and slot 3 is left free


def test_a_spare_slot_that_is_wanted_is_replaced():
    # Slot 4 is free: who is in slot 1 makes way for it.
    resident = {key(0): 3, key(1): 1, key(2): 2}
    departure = plan_departure(resident, {0}, 1, 3, lambda k: k.expert_idx)
    assert departure.leaving == (key(0), key(1))
    assert departure.moving == ()


def test_of_experts_used_alike_some_of_every_layer_leave():
    resident = {ExpertKey(i, j): 4 * i + j for i in range(3) for j in range(4)}
    departure = plan_departure(resident, {-1}, 1, 10, lambda k: 0.0)
    assert departure.leaving == (ExpertKey(2, 3), ExpertKey(1, 3), ExpertKey(0, 3), ExpertKey(2, 2))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_plan_frees_the_slots_and_puts_nobody_on_another(data):
    num_slots = data.draw(st.integers(3, 24))
    order = data.draw(st.permutations(range(num_slots)))
    num_fixed = data.draw(st.integers(0, num_slots - 2))
    num_spare = data.draw(st.integers(1, num_slots - num_fixed - 1))
    fixed, rest = set(order[:num_fixed]), order[num_fixed:]
    holders = data.draw(st.integers(0, len(rest) - num_spare))
    places = rest[:holders]
    resident = {key(i): slot for i, slot in enumerate(places)}
    hits = data.draw(st.lists(st.integers(0, 3), min_size=24, max_size=24))
    num_kept = data.draw(st.integers(0, num_slots))

    def use(k: ExpertKey) -> int:
        return hits[k.expert_idx]

    try:
        departure = plan_departure(resident, fixed, num_spare, num_kept, use)
    except QuantError:
        assert any(slot >= num_kept for slot in fixed) or num_kept < num_fixed + num_spare
        return
    held = {slot: k for k, slot in resident.items()}
    for k in departure.leaving:
        del held[resident[k]]
    for k, slot in departure.moving:
        assert slot not in {*held, *fixed}
        del held[resident[k]]
        held[slot] = k
    assert all(slot < num_kept for slot in held)
    assert num_kept - len(held) - num_fixed >= num_spare
    stay = [use(k) for k in held.values()]
    assert all(use(k) <= hit for k in departure.leaving for hit in stay)
    assert len(held) == min(holders, num_kept - num_fixed - num_spare)


def test_experts_leave_and_return_with_their_bytes():
    tiers = SmallTiers()
    store, lender = tiers.store, lender_of(tiers)
    store.routing_counts[1, 4] = 50  # the first resident one, in the first slot
    store.routing_counts[2, 7] = 60  # the last, in the last
    tiers.check()
    total = store.num_usable
    assert lender.lend(total - 5) == 5
    tiers.check()
    assert len(store.resident) == 7
    assert {ExpertKey(1, 4), ExpertKey(2, 7)} <= store.resident
    assert lender.lend(total - 5) == 0
    lender.lend(total - 9)
    tiers.check()
    assert lender.take_back(total - 5) == 4
    tiers.check()
    assert lender.take_back(total) == 5
    tiers.check()
    assert store.num_usable == total
    assert len(store.resident) == 12
    store.close()


def test_what_was_lent_may_be_overwritten():
    tiers = SmallTiers()
    lender_of(tiers).lend(tiers.store.num_usable - 6)
    tiers.pool.data[tiers.store.num_usable :].fill_(0xFF)
    tiers.check()


def test_exchanges_go_on_while_slots_are_lent():
    tiers = SmallTiers()
    store, lender = tiers.store, lender_of(tiers)
    total = store.num_usable
    lender.lend(total - 6)
    for _ in range(4):
        store.swap_all(list(zip(sorted(store.pinned), sorted(store.resident), strict=False)))
        tiers.pool.data[store.num_usable :].fill_(0xFF)
        tiers.check()
    assert lender.take_back(total) == 6
    tiers.check()


def test_a_spare_slot_at_the_end_is_not_lent():
    tiers = SmallTiers()
    store, total = tiers.store, tiers.store.num_usable
    (last,) = [key for key in store.resident if store.slot(key) == total - 1]
    store.swap(min(store.pinned), last)
    assert store.where.free_slots() == [total - 1]
    lender_of(tiers).lend(total - 3)
    tiers.check()
    store.swap(min(store.pinned), min(store.resident))
    tiers.pool.data[total - 3 :].fill_(0xFF)
    tiers.check()


def test_who_has_left_within_a_forward_pass_moves_outside_of_it_too():
    tiers = SmallTiers(num_hosted=0)
    store, total = tiers.store, tiers.store.num_usable
    with torch.inference_mode():
        lender_of(tiers).lend(total - 6)
    store.swap(min(store.pinned), min(store.resident))
    tiers.check()
    lender_of(tiers).take_back(total - 3)
    with torch.inference_mode():
        store.swap(min(store.pinned), min(store.resident))
        lender_of(tiers).take_back(total)
    tiers.check()


def test_results_do_not_depend_on_who_has_left():
    tiers = SmallTiers()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, HIDDEN, generator=generator)
    ids = torch.stack([torch.randperm(NUM_EXPERTS, generator=generator)[:2] for _ in range(9)])
    weights = torch.rand(9, 2, generator=generator)
    before = [tiers.store.forward(i, hidden, ids, weights) for i in LAYERS]
    total = tiers.store.num_usable
    for num_kept in (total - 3, total - 8, FIXED + 1):
        lender_of(tiers).lend(num_kept)
        tiers.pool.data[num_kept:].fill_(0xFF)
        after = [tiers.store.forward(i, hidden, ids, weights) for i in LAYERS]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert tiers.store.resident == set()


def test_the_host_gets_its_memory_back():
    tiers = SmallTiers()
    lender, host = lender_of(tiers), tiers.store.host
    size, total = tiers.pool.slot_nbytes, tiers.store.num_usable
    assert host.nbytes == 5 * size  # a slot is free for exchanges
    lender.lend(total - 3)
    lender.lend(total - 5)
    assert host.nbytes == 10 * size
    store = tiers.store
    store.swap_all(list(zip(sorted(store.pinned), sorted(store.resident), strict=False)))
    lender.take_back(total)
    assert (host.nbytes, host.num_free) == (5 * size, 0)
    tiers.check()


def test_slots_given_back_are_taken_again():
    tiers = SmallTiers(num_hosted=0)
    lender, host = lender_of(tiers), tiers.store.host
    size, total = tiers.pool.slot_nbytes, tiers.store.num_usable
    lender.lend(total - 5)
    lender.take_back(total - 2)
    assert (host.nbytes, host.num_free) == (6 * size, 3)
    lender.lend(total - 4)
    assert (host.nbytes, host.num_free) == (6 * size, 1)
    tiers.check()


@pytest.mark.parametrize("which", ["room", "free"])
def test_no_more_ram_than_there_is(which):
    tiers = SmallTiers()
    size, total = tiers.pool.slot_nbytes, tiers.store.num_usable
    lender = lender_of(tiers, **{which: 4 * size})
    assert lender.least_slots == total - 3  # and one for the memory's own beginning
    with pytest.raises(QuantError, match=r"1 of 4 experts of .* more do not fit into RAM"):
        lender.lend(total - 4)
    assert tiers.store.num_usable == total
    tiers.check()
    assert lender.lend(total - 3) == 3


def test_what_has_left_counts_against_the_ram():
    tiers = SmallTiers()
    size, total = tiers.pool.slot_nbytes, tiers.store.num_usable
    lender = lender_of(tiers, 6 * size)
    lender.lend(total - 2)
    assert lender.least_slots == total - 4
    lender.take_back(total)
    assert lender.least_slots == total - 5


def test_what_cannot_leave_is_never_lent():
    tiers = SmallTiers()
    lender = lender_of(tiers)
    assert lender.least_slots == FIXED + 1
    with pytest.raises(QuantError, match="do not hold what cannot leave"):
        lender.lend(FIXED)
    lender.lend(FIXED + 1)
    tiers.check()


def test_memory_that_cannot_be_pinned_changes_nothing(monkeypatch):
    tiers = SmallTiers()
    total = tiers.store.num_usable

    def refuse(memory, device):
        raise QuantError("cannot be pinned")

    with monkeypatch.context() as patch:
        patch.setattr(host_pool, "_pin", refuse)
        with pytest.raises(QuantError, match="cannot be pinned"):
            lender_of(tiers).lend(total - 4)
    tiers.check()
    assert tiers.store.num_usable == total
    assert lender_of(tiers).lend(total - 4) == 4


@pytest.mark.parametrize("after", range(6))
def test_broken_off_half_way_every_expert_is_somewhere(after, monkeypatch):
    tiers = SmallTiers()
    store, total = tiers.store, tiers.store.num_usable
    carry, left = store._carry, [after]

    def broken(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        carry(*args)

    for act in (
        lambda: lender_of(tiers).lend(total - 6),
        lambda: lender_of(tiers).take_back(total),
    ):
        left[0] = after
        with monkeypatch.context() as patch:
            patch.setattr(store, "_carry", broken)
            with pytest.raises(KeyboardInterrupt):
                act()
        tiers.check()
        act()
        tiers.check()
    assert store.host.nbytes == 5 * tiers.pool.slot_nbytes


def test_shares_of_a_prompt_follow_those_who_leave():
    tiers = SmallTiers(num_hosted=0)
    store, asked = tiers.store, []

    def shares(num_pinned):
        asked.append(num_pinned)
        return {32: 1.0, 128: 0.0, 512: 0.5}

    lender_of(tiers, shares=shares).lend(store.num_usable - 6)
    assert asked == [6]
    assert set(store.prompts.masks) == {32, 128}
    assert int(store.prompts.masks[32].sum()) == 6
    assert int(store.prompts.masks[128].sum()) == 0


def test_nobody_is_staged_whom_the_cpu_runs():
    tiers = SmallTiers(num_hosted=4)  # all of layer 1: the CPU runs two of them
    prompts = tiers.store.prompts
    assert prompts.sources.count_nonzero(1).tolist() == [0, 2, 0]
    tiers.store.where.share_rows({32: 1.0, 128: 0.75})
    assert prompts.sources.count_nonzero(1).tolist() == [0, 1, 0]
    tiers.store.where.share_rows({32: 1.0, 128: 1.0})
    assert not prompts.sources.any()
