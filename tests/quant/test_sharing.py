"""Who runs the experts outside a GPU's memory, against every other choice and by hand."""

import itertools

import pytest

from quant.errors import QuantError
from quant.experts.sharing import (
    CROWDED,
    REST_SECONDS,
    SharingCosts,
    cpu_shares,
    row_share,
)

EXPERT_NBYTES = 6_266_880


def test_a_fast_bus_takes_all_and_a_slow_one_nothing():
    assert cpu_shares(6, EXPERT_NBYTES, SharingCosts(1e9, 1e12)) == [0] * 7
    assert cpu_shares(6, EXPERT_NBYTES, SharingCosts(1e12, 1e9, 0.0)) == list(range(7))


def test_by_hand():
    # One expert takes 66 µs on the CPU and 125 µs over the bus.
    costs = SharingCosts(ram=95e9, bus=50e9, handoff_seconds=20e-6)
    assert cpu_shares(6, EXPERT_NBYTES, costs) == [0, 1, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("speeds", [*itertools.product([10e9, 47e9, 90e9], [12e9, 50e9])])
def test_no_other_share_ends_earlier(speeds):
    costs = SharingCosts(*speeds, handoff_seconds=30e-6)
    for outside, chosen in enumerate(cpu_shares(8, EXPERT_NBYTES, costs)):
        times = [
            max(
                n * EXPERT_NBYTES / costs.ram + 30e-6 * (n > 0),
                (outside - n) * EXPERT_NBYTES / costs.bus,
            )
            for n in range(outside + 1)
        ]
        assert times[chosen] == min(times)


def test_speeds_must_be_positive():
    with pytest.raises(QuantError, match="positive"):
        SharingCosts(0.0, 1.0)


def test_for_a_prompt_cpu_and_bus_end_together():
    share = row_share(32, EXPERT_NBYTES, 50e9, 200e-6)
    cpu = REST_SECONDS + 32 * share * CROWDED * 200e-6
    assert cpu == pytest.approx(32 * (1 - share) * CROWDED * EXPERT_NBYTES / 50e9)
    assert row_share(1, EXPERT_NBYTES, 50e9, 200e-6) == 0  # not worth a handoff
