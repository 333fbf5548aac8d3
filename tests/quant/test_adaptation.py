"""Adaptation of the hot set: hand-worked swaps, and what must hold for all of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.experts.adaptation import AdaptationPolicy, MoveCosts, RecentCounts, Swap, plan_swaps
from quant.experts.placement import ExpertKey, Tier, plan_placement

# A move takes 1 ms, a miss loses 1 ms, a hit nothing.
COSTS = MoveCosts(1000, 1e6, 1e-3, 0.0)
EAGER = AdaptationPolicy(hysteresis=1.0, noise=0.0, horizon_tokens=10**9, max_swaps=10**6)
KEY = ExpertKey

counts_of_layers = st.dictionaries(
    st.integers(0, 5), st.lists(st.integers(0, 200), min_size=1, max_size=6), min_size=1
)
policies = st.builds(
    AdaptationPolicy,
    hysteresis=st.floats(1, 2),
    noise=st.floats(0, 3),
    horizon_tokens=st.integers(1, 1000),
    max_swaps=st.integers(0, 10),
)


def keys_of(counts):
    return [KEY(layer, expert) for layer, row in counts.items() for expert in range(len(row))]


def applied(hot, swaps):
    out = set(hot)
    for swap in swaps:
        out.discard(swap.demote)
        if swap.promote is not None:
            out.add(swap.promote)
    return out


def hits(counts, keys):
    return sum(counts[key.layer_idx][key.expert_idx] for key in keys)


def test_the_hottest_outside_replaces_the_coldest_inside():
    counts = {1: [50, 3, 40], 2: [10, 60, 7]}
    hot = [KEY(1, 0), KEY(1, 1), KEY(2, 2)]  # 50, 3, 7; outside 40, 10, 60
    swaps = plan_swaps(counts, 100, hot, 3, COSTS, EAGER)
    assert swaps == [Swap(KEY(2, 1), KEY(1, 1)), Swap(KEY(1, 2), KEY(2, 2))]


def test_hysteresis_keeps_what_is_there():
    counts = {0: [100, 119]}
    swaps = plan_swaps(counts, 100, [KEY(0, 0)], 1, COSTS, EAGER)
    assert swaps == [Swap(KEY(0, 1), KEY(0, 0))]
    lazy = AdaptationPolicy(hysteresis=1.2, noise=0, horizon_tokens=10**9)
    assert plan_swaps(counts, 100, [KEY(0, 0)], 1, COSTS, lazy) == []


def test_a_difference_within_the_noise_of_counting_moves_nothing():
    # 16 against 9: 7 more, and one standard deviation of the difference is sqrt(25) = 5.
    policy = AdaptationPolicy(hysteresis=1, noise=1.5, horizon_tokens=10**9)
    assert plan_swaps({0: [9, 16]}, 10, [KEY(0, 0)], 1, COSTS, policy) == []
    policy = AdaptationPolicy(hysteresis=1, noise=1.3, horizon_tokens=10**9)
    assert len(plan_swaps({0: [9, 16]}, 10, [KEY(0, 0)], 1, COSTS, policy)) == 1


def test_a_move_must_pay_back_within_the_horizon():
    # 5 hits more in 100 tokens save 5 ms in 100 tokens, 1 ms in 20: the price of the move.
    counts, hot = {0: [10, 15]}, [KEY(0, 0)]

    def policy(horizon):
        return AdaptationPolicy(hysteresis=1, noise=0, horizon_tokens=horizon)

    assert plan_swaps(counts, 100, hot, 1, COSTS, policy(20)) == []
    assert len(plan_swaps(counts, 100, hot, 1, COSTS, policy(21))) == 1
    hidden = MoveCosts(1000, 1e6, 1e-3, 0.0, exposed_share=0.5)
    assert len(plan_swaps(counts, 100, hot, 1, hidden, policy(11))) == 1
    useless = MoveCosts(1000, 1e6, 1e-3, 1e-3)  # a hit costs what a miss does
    assert plan_swaps(counts, 100, hot, 1, useless, EAGER) == []


def test_free_slots_are_filled_and_missing_ones_emptied():
    counts = {0: [5, 1, 9, 0]}
    assert plan_swaps(counts, 10, [KEY(0, 1)], 3, COSTS, EAGER) == [
        Swap(KEY(0, 2), None),
        Swap(KEY(0, 0), None),
    ]
    off = AdaptationPolicy(is_on=False)
    everyone = keys_of(counts)
    assert plan_swaps(counts, 10, everyone, 2, COSTS, off) == [
        Swap(None, KEY(0, 3)),
        Swap(None, KEY(0, 1)),
    ]


def test_no_more_swaps_than_allowed_and_the_best_first():
    counts = {0: [1, 2, 3, 100, 90, 80]}
    policy = AdaptationPolicy(hysteresis=1, noise=0, horizon_tokens=10**9, max_swaps=2)
    swaps = plan_swaps(counts, 100, [KEY(0, 0), KEY(0, 1), KEY(0, 2)], 3, COSTS, policy)
    assert swaps == [Swap(KEY(0, 3), KEY(0, 0)), Swap(KEY(0, 4), KEY(0, 1))]


@settings(max_examples=100, deadline=None)
@given(counts_of_layers, policies, st.data())
def test_swaps_are_consistent_and_settle(counts, policy, data):
    keys = keys_of(counts)
    hot = data.draw(st.sets(st.sampled_from(keys)))
    num_slots = data.draw(st.integers(0, len(keys)))
    swaps = plan_swaps(counts, 100, hot, num_slots, COSTS, policy)
    entering = [swap.promote for swap in swaps if swap.promote is not None]
    leaving = [swap.demote for swap in swaps if swap.demote is not None]
    assert len(set(entering)) == len(entering) <= policy.max_swaps
    assert not set(entering) & hot
    assert len(set(leaving)) == len(leaving)
    assert set(leaving) <= hot
    after = applied(hot, swaps)
    assert len(after) <= num_slots
    if len(hot) <= num_slots:
        assert hits(counts, after) >= hits(counts, hot)
    shuffled = dict(reversed(counts.items()))
    assert plan_swaps(shuffled, 100, sorted(hot), num_slots, COSTS, policy) == swaps
    if len(entering) < policy.max_swaps:
        assert plan_swaps(counts, 100, after, num_slots, COSTS, policy) == []


@settings(max_examples=100, deadline=None)
@given(counts_of_layers, st.data())
def test_without_hysteresis_or_costs_it_ends_at_the_best_placement(counts, data):
    keys = keys_of(counts)
    hot = data.draw(st.sets(st.sampled_from(keys)))
    after = applied(hot, plan_swaps(counts, 100, hot, len(hot), COSTS, EAGER))
    best = plan_placement(counts, 1, [Tier("GPU", len(hot)), Tier("RAM", None)]).experts[0]
    assert hits(counts, after) == hits(counts, best)


@settings(max_examples=50, deadline=None)
@given(counts_of_layers, st.data())
def test_switched_off_nothing_moves(counts, data):
    hot = data.draw(st.sets(st.sampled_from(keys_of(counts))))
    off = AdaptationPolicy(is_on=False)
    assert plan_swaps(counts, 100, hot, len(hot) + 3, COSTS, off) == []


def test_nonsense_is_refused():
    with pytest.raises(QuantError, match="no count"):
        plan_swaps({0: [1]}, 1, [KEY(0, 1)], 1, COSTS, EAGER)
    with pytest.raises(QuantError, match="hysteresis"):
        AdaptationPolicy(hysteresis=0.9)
    with pytest.raises(QuantError, match="bytes/s"):
        MoveCosts(1, 0.0, 1.0, 0.0)
    with pytest.raises(QuantError, match="half-life"):
        RecentCounts({0: [1]}, half_life_tokens=0)


def test_recent_counts_fade_by_half_every_half_life():
    recent = RecentCounts({1: [0, 0]}, half_life_tokens=100)
    recent.update({1: [80, 20]}, 100)
    assert recent.counts[1] == [80, 20]
    recent.update({1: [80, 120]}, 200)  # 100 more, all for expert 1
    assert recent.counts[1] == [40, 110]
    assert recent.num_tokens == 150
    recent.update({1: [80, 120]}, 200)  # nothing new changes nothing
    assert recent.counts[1] == [40, 110]


def test_a_stored_profile_weighs_like_so_many_tokens_and_no_more_than_it_is():
    recent = RecentCounts({1: [300, 100]}, 4000, prior_weight_tokens=1000)
    assert recent.counts[1] == [75, 25]
    assert recent.num_tokens == 1000
    recent = RecentCounts({1: [300, 100]}, 400, prior_weight_tokens=1000)
    assert recent.counts[1] == [300, 100]
    assert recent.num_tokens == 400


def test_counts_that_became_smaller_are_refused():
    recent = RecentCounts({1: [0, 0]})
    recent.update({1: [3, 3]}, 6)
    with pytest.raises(QuantError, match="smaller"):
        recent.update({1: [3, 2]}, 7)
    with pytest.raises(QuantError, match="less"):
        recent.update({1: [3, 3]}, 5)
    with pytest.raises(QuantError, match="another model"):
        recent.update({2: [3, 3]}, 8)
