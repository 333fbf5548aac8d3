"""What sharing experts costs here: kept figures are believed until a quick probe is faster."""

import pytest
import torch

from erniechat.model import machine_costs
from erniechat.model.machine_costs import sharing_costs
from quant.figures import KeptFigures

MIB = 1 << 20


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch):
    """What measuring finds; a probe is told by its number of runs."""
    found = {"ram": 20e9, "bus": 10e9, "quick ram": 18e9, "quick bus": 9e9, "asked": []}

    def measure(name):
        def of(*args):
            quick = args[-1:] == (1,)
            found["asked"].append(("quick " if quick else "") + name)
            return found[found["asked"][-1]]

        return of

    monkeypatch.setattr(machine_costs, "measure_ram", measure("ram"))
    monkeypatch.setattr(machine_costs, "measure_bus", measure("bus"))
    monkeypatch.setattr(machine_costs, "LEAST_RAM_NBYTES", 8 * MIB)
    monkeypatch.setattr(machine_costs, "LEAST_PROBE_NBYTES", 2 * MIB)
    return found


HOST = torch.zeros(10, MIB, dtype=torch.uint8)
FREE = torch.zeros(3, MIB, dtype=torch.uint8)


def test_a_first_start_measures_and_a_second_probes(speeds):
    figures = KeptFigures(None, "")
    first = sharing_costs(figures, HOST, FREE)
    assert (first.ram, first.bus) == (20e9, 10e9)
    assert speeds["asked"] == ["ram", "bus"]
    assert sharing_costs(figures, HOST, FREE) == first
    assert speeds["asked"][2:] == ["quick ram", "quick bus"]


@pytest.mark.parametrize("name", ["ram", "bus"])
def test_what_was_measured_beside_other_work_is_measured_again(speeds, name):
    figures = KeptFigures(None, "")
    figures.put({"ram": 20e9, "bus": 10e9} | {name: 5e9} | {"expert 1": 3.0})
    found = sharing_costs(figures, HOST, FREE)
    assert (found.ram, found.bus) == (20e9, 10e9)
    assert figures.get("expert 1") is None  # measured at the same time


def test_a_busy_machine_does_not_unsettle_what_is_known(speeds):
    speeds["quick ram"] = speeds["quick bus"] = 1e9
    figures = KeptFigures(None, "")
    figures.put({"ram": 20e9, "bus": 10e9, "expert 1": 3.0})
    found = sharing_costs(figures, HOST, FREE)
    assert (found.ram, found.bus, figures.get("expert 1")) == (20e9, 10e9, 3.0)
    assert "ram" not in speeds["asked"]


def test_too_few_experts_are_no_probe(speeds):
    figures = KeptFigures(None, "")
    figures.put({"ram": 1.0, "bus": 1.0})
    for count in (0, 1):
        found = sharing_costs(figures, HOST[:count], FREE)
        assert (found.ram, found.bus) == (1.0, 1.0)
    assert speeds["asked"] == []
