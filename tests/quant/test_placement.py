"""Placement of experts: hand-worked plans, and what must hold for all of them."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.experts.placement import Tier, plan_placement


def two_tiers(budget: int | None) -> list[Tier]:
    return [Tier("GPU", budget), Tier("RAM", None)]


def test_experts_are_chosen_over_all_layers_not_layer_by_layer():
    # Three slots: the three most used are two of layer 1 and one of layer 2.
    placement = plan_placement({1: [50, 1, 40, 2], 2: [10, 9, 30, 8]}, 100, two_tiers(300))
    assert placement.experts[0] == ((1, 0), (1, 2), (2, 2))
    assert placement.nbytes == (300, 500)
    assert placement.hit_rates == pytest.approx((120 / 150, 30 / 150))


def test_hits_per_byte_count_and_not_hits():
    # Layer 2: 30 hits in 300 bytes, 0.1 a byte. Layer 1: 20 in 100, 0.2 a byte.
    placement = plan_placement({1: [20], 2: [30]}, {1: 100, 2: 300}, two_tiers(399))
    assert placement.experts == (((1, 0),), ((2, 0),))
    assert placement.hit_rates == pytest.approx((0.4, 0.6))


def test_a_smaller_expert_takes_the_room_that_a_larger_one_cannot():
    placement = plan_placement(
        {1: [90], 2: [20], 3: [10]}, {1: 300, 2: 200, 3: 100}, two_tiers(400)
    )
    assert placement.experts[0] == ((1, 0), (3, 0))
    assert placement.nbytes == (400, 200)


def test_ties_go_by_layer_and_then_by_expert():
    placement = plan_placement({2: [5, 5, 5], 1: [5, 5, 5]}, 10, two_tiers(40))
    assert placement.experts[0] == ((1, 0), (1, 1), (1, 2), (2, 0))


def test_equal_hits_per_byte_are_a_tie_whatever_floats_make_of_them():
    # 1 / 10 and 3 / 30 differ as sums of floats, not as fractions.
    placement = plan_placement({1: [3], 2: [1]}, {1: 30, 2: 10}, two_tiers(30))
    assert placement.experts[0] == ((1, 0),)


def test_three_tiers_fill_from_the_fastest():
    tiers = [Tier("GPU", 20), Tier("RAM", 25), Tier("disk", None)]
    placement = plan_placement({7: [1, 6, 3, 5, 4, 2]}, 10, tiers)
    assert placement.experts == (((7, 1), (7, 3)), ((7, 4), (7, 2)), ((7, 5), (7, 0)))
    assert placement.hit_rates == pytest.approx((11 / 21, 7 / 21, 3 / 21))


def test_a_budget_of_nothing_leaves_all_to_the_next_tier():
    placement = plan_placement({1: [3, 4]}, 10, two_tiers(0))
    assert placement.experts == ((), ((1, 1), (1, 0)))
    assert placement.hit_rates == (0.0, 1.0)


def test_without_counts_every_expert_is_taken_to_be_used_equally():
    placement = plan_placement({1: [0, 0], 2: [0, 0]}, 10, two_tiers(10))
    assert placement.experts[0] == ((1, 0),)
    assert placement.hit_rates == (0.25, 0.75)


def test_layers_may_differ_in_their_number_of_experts_and_a_dense_model_has_none():
    placement = plan_placement({3: [1], 9: [2, 3]}, 10, two_tiers(20))
    assert placement.experts == (((9, 1), (9, 0)), ((3, 0),))
    assert plan_placement({}, 10, two_tiers(20)).experts == ((), ())


def test_tiers_that_are_too_small_say_how_many_bytes_would_do():
    tiers = [Tier("GPU", 1999), Tier("RAM", 1000)]
    with pytest.raises(QuantError) as caught:
        plan_placement({1: [1, 2, 3, 4]}, 1000, tiers)
    message = str(caught.value)
    assert "take 4,000 bytes" in message
    assert "GPU 1,999 + RAM 1,000" in message
    assert "give RAM at least 3,000 bytes" in message
    plan_placement({1: [1, 2, 3, 4]}, 1000, [Tier("GPU", 1999), Tier("RAM", 3000)])
    with pytest.raises(QuantError):
        plan_placement({1: [1, 2, 3, 4]}, 1000, [Tier("GPU", 1999), Tier("RAM", 2999)])


@pytest.mark.parametrize(
    ("counts", "expert_nbytes", "tiers", "message"),
    [
        ({1: [1]}, 10, [], "no tier"),
        ({1: [1]}, 10, [Tier("GPU", -1)], "GPU is -1 bytes; use 0"),
        ({1: [1]}, 0, two_tiers(5), "layer 1 has 0 bytes"),
        ({1: [1], 2: [1]}, {1: 10}, two_tiers(5), r"layers \[2\]"),
        ({1: [1, -2]}, 10, two_tiers(5), "layer 1, expert 1 is -2"),
        ({1: [float("nan")]}, 10, two_tiers(5), "layer 1, expert 0 is nan"),
        ({1: [float("inf")]}, 10, two_tiers(5), "layer 1, expert 0 is inf"),
    ],
)
def test_senseless_inputs_are_refused(counts, expert_nbytes, tiers, message):
    with pytest.raises(QuantError, match=message):
        plan_placement(counts, expert_nbytes, tiers)


COUNTS = st.dictionaries(
    st.integers(0, 5), st.lists(st.integers(0, 20), min_size=1, max_size=6), min_size=1, max_size=4
)


@st.composite
def sized_counts(draw):
    counts = draw(COUNTS)
    return counts, {layer_idx: draw(st.integers(1, 30)) for layer_idx in counts}


PROPERTY = settings(max_examples=150, deadline=None)


@PROPERTY
@given(sized_counts(), st.integers(0, 300), st.integers(0, 300))
def test_every_expert_is_placed_once_and_no_budget_is_exceeded(sized, gpu, ram):
    counts, sizes = sized
    tiers = [Tier("GPU", gpu), Tier("RAM", ram), Tier("disk", None)]
    placement = plan_placement(counts, sizes, tiers)
    placed = [key for keys in placement.experts for key in keys]
    assert sorted(placed) == [(i, e) for i in sorted(counts) for e in range(len(counts[i]))]
    for keys, nbytes in zip(placement.experts, placement.nbytes, strict=True):
        assert nbytes == sum(sizes[key.layer_idx] for key in keys)
    assert placement.nbytes[0] <= gpu
    assert placement.nbytes[1] <= ram
    assert sum(placement.hit_rates) == pytest.approx(1.0)


@PROPERTY
@given(sized_counts(), st.integers(0, 300))
def test_nobody_outside_deserves_a_place_more_than_one_inside_whom_it_could_replace(sized, gpu):
    counts, sizes = sized
    placement = plan_placement(counts, sizes, two_tiers(gpu))
    inside, outside = placement.experts
    left = gpu - placement.nbytes[0]
    for cold in outside:
        assert sizes[cold.layer_idx] > left
        for hot in inside:
            if sizes[cold.layer_idx] <= sizes[hot.layer_idx]:
                cold_value = Fraction(
                    counts[cold.layer_idx][cold.expert_idx], sizes[cold.layer_idx]
                )
                hot_value = Fraction(counts[hot.layer_idx][hot.expert_idx], sizes[hot.layer_idx])
                assert cold_value <= hot_value


@PROPERTY
@given(sized_counts(), st.integers(0, 300), st.integers(1, 50))
def test_a_larger_budget_never_lowers_the_hit_rate(sized, gpu, more):
    counts, sizes = sized
    rates = [plan_placement(counts, sizes, two_tiers(b)).hit_rates[0] for b in (gpu, gpu + more)]
    if any(any(layer) for layer in counts.values()):  # without counts, experts are rated equally
        assert rates[1] >= rates[0] - 1e-12


@PROPERTY
@given(COUNTS, st.integers(0, 20), st.integers(1, 10))
def test_with_experts_of_one_size_the_plan_is_the_best_there_is(counts, slots, size):
    placement = plan_placement(counts, size, two_tiers(slots * size + size - 1))
    hottest = sorted((c for layer in counts.values() for c in layer), reverse=True)[:slots]
    chosen = [counts[key.layer_idx][key.expert_idx] for key in placement.experts[0]]
    assert sum(chosen) == sum(hottest)


@PROPERTY
@given(sized_counts(), st.integers(0, 100), st.integers(0, 100))
def test_the_least_number_of_bytes_named_is_enough_and_one_less_is_not(sized, gpu, ram):
    counts, sizes = sized
    try:
        plan_placement(counts, sizes, [Tier("GPU", gpu), Tier("RAM", ram)])
    except QuantError as exc:
        least = int(str(exc).split("at least ")[1].split(" bytes")[0].replace(",", ""))
        assert least > ram
        plan_placement(counts, sizes, [Tier("GPU", gpu), Tier("RAM", least)])
        with pytest.raises(QuantError):
            plan_placement(counts, sizes, [Tier("GPU", gpu), Tier("RAM", least - 1)])
