"""Who leaves a cache: the least used, and while a prompt passes nobody that replies use."""

import pytest

from quant.experts.heat import Heat
from quant.experts.placement import ExpertKey


def test_the_least_used_leaves_and_of_equals_the_one_that_comes_again_last():
    heat = Heat({1: [5, 0, 1], 2: [3, 0, 9]}, half_life_tokens=100)
    for key in (ExpertKey(1, 0), ExpertKey(1, 2), ExpertKey(2, 0), ExpertKey(2, 2)):
        heat.hold(key, True)
    assert heat.coldest(2, [ExpertKey(2, 0)]) == (1, 2)
    heat.hold(ExpertKey(1, 2), False)
    assert heat.coldest(1, []) == (2, 0)
    assert heat.coldest(2, [ExpertKey(2, 0)]) == (1, 0)  # 3 is colder, but chosen now
    even = Heat({1: [0, 0], 2: [0, 0], 3: [0, 0]}, half_life_tokens=100)
    for layer in (1, 2, 3):
        even.hold(ExpertKey(layer, 0), True)
    assert even.coldest(2, []) == (2, 0)  # layer 2 is just done: 3 and 1 come before it
    assert even.coldest(2, [ExpertKey(2, 0)]) == (1, 0)


def test_uses_fade_and_the_profile_weighs_a_half_life_at_most():
    heat = Heat({1: [9000.0, 1000.0]}, half_life_tokens=10)  # scaled to 9 and 1
    for expert in (0, 1):
        heat.hold(ExpertKey(1, expert), True)
    for _ in range(9):
        heat.use(1, [1])
        heat.pass_token()
    # 9 faded by 0.5 ** 0.9 to 4.8; the nine new uses to 6.7.
    assert heat.coldest(1, []) == (1, 0)
    recent = Heat({1: [9000.0, 1000.0]}, half_life_tokens=10, by_use=False)
    for expert in (0, 1):
        recent.hold(ExpertKey(1, expert), True)
        recent.use(1, [expert])
    assert recent.coldest(1, []) == (1, 0)


def test_where_the_last_used_stay_an_old_profile_does_not_outlive_them():
    heat = Heat({1: [90.0, 10.0]}, half_life_tokens=100, by_use=False)
    for expert in (0, 1):
        heat.hold(ExpertKey(1, expert), True)
    assert heat.coldest(1, []) == (1, 1)
    heat.use(1, [1])
    assert heat.coldest(1, []) == (1, 0)


def test_nobody_leaves_where_all_must_be_kept():
    heat = Heat({1: [0.0, 0.0]}, half_life_tokens=10)
    assert heat.coldest(1, []) is None
    heat.hold(ExpertKey(1, 0), True)
    assert heat.coldest(1, [ExpertKey(1, 0)]) is None


def test_of_equals_in_a_layer_one_that_a_prompt_did_not_use_leaves_first():
    heat = Heat({1: [0.0] * 3}, half_life_tokens=10)
    for expert in range(3):
        heat.hold(ExpertKey(1, expert), True)
    heat.note(1, [0, 2])
    assert heat.coldest(1, []) == (1, 1)


@pytest.mark.parametrize("by_use", [True, False])
def test_a_pass_counts_at_its_end_and_then_alike_for_all_layers(by_use):
    heat = Heat({layer: [0.0, 0.0] for layer in (1, 2, 3)}, 10, by_use)
    for layer in (1, 2, 3):
        heat.hold(ExpertKey(layer, 0), True)
    heat.note(1, [0])
    assert heat.coldest(1, []) == (1, 0)  # layer 2 and 3 are needed before it comes again
    heat.note(2, [0])
    heat.settle()
    heat.hold(ExpertKey(3, 1), True)
    assert heat.coldest(3, []) == (3, 0)  # those of layers 1 and 2 have been used
    heat.hold(ExpertKey(3, 0), False)
    heat.hold(ExpertKey(3, 1), False)
    assert heat.coldest(2, []) == (2, 0)
