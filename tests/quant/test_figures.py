"""Figures of a machine in a file: whose they are, how long they count, and what is damaged."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.figures import MAX_AGE_SECONDS, KeptFigures, is_doubted, machine_name

CPU = torch.device("cpu")


class Clock:
    """Time that stands still until it is moved."""

    seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "machine.json"


def never() -> float:
    raise AssertionError("it is known and need not be measured")


def test_a_figure_is_measured_once_for_all_processes(path: Path):
    first = KeptFigures(path, "this one")
    assert first.measured("ram", lambda: 3e10) == 3e10
    assert first.measured("ram", never) == 3e10
    assert KeptFigures(path, "this one").get("ram") is None  # not kept yet
    first.save()
    assert KeptFigures(path, "this one").measured("ram", never) == 3e10


def test_another_machine_has_figures_of_its_own(path: Path):
    for machine, speed in (("one", 1e9), ("other", 2e9)):
        figures = KeptFigures(path, machine)
        assert figures.get("ram") is None
        figures.put({"ram": speed})
        figures.save()
    assert KeptFigures(path, "one").get("ram") == 1e9
    assert KeptFigures(path, "other").get("ram") == 2e9


def test_a_file_holds_the_machines_seen_last(path: Path):
    for number in range(12):
        figures = KeptFigures(path, f"machine {number}")
        figures.put({"ram": 1e9})
        figures.save()
        if number == 6:
            again = KeptFigures(path, "machine 0")
            again.put({"ram": 2e9})
            again.save()
    assert len(json.loads(path.read_text())["machines"]) == 8
    assert KeptFigures(path, "machine 0").get("ram") == 2e9
    assert KeptFigures(path, "machine 5").get("ram") == 1e9
    assert KeptFigures(path, "machine 4").get("ram") is None


def test_the_name_tells_what_figures_depend_on(tmp_path: Path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nmodel name\t: again\n")
    name = machine_name(CPU, "program 1.2", info)
    assert name.startswith("Some CPU @ 2GHz · ")
    assert " threads · " in name
    assert name.endswith(f"torch {torch.__version__} · program 1.2")
    assert machine_name(CPU, "program 1.3", info) != name
    assert machine_name(CPU, "program 1.2", tmp_path / "none")  # other systems have no such file


def test_no_figure_counts_for_ever(path: Path):
    clock = Clock()
    figures = KeptFigures(path, "m", clock)
    figures.put({"ram": 1e9})
    figures.save()
    clock.seconds += MAX_AGE_SECONDS
    assert KeptFigures(path, "m", clock).get("ram") == 1e9
    clock.seconds += 1
    late = KeptFigures(path, "m", clock)
    assert late.measured("ram", lambda: 2e9) == 2e9
    clock.seconds = 1.0  # a clock that was set back says nothing
    assert figures.get("ram") is None


def test_only_a_faster_probe_shows_a_figure_to_be_wrong():
    assert is_doubted(1e9, 1.3e9)
    assert not is_doubted(1e9, 1.2e9)
    assert not is_doubted(1e9, 1e8)


def test_forgetting_reaches_the_file_and_spares_other_machines(path: Path):
    for machine in ("one", "other"):
        figures = KeptFigures(path, machine)
        figures.put({"ram": 1e9})
        figures.save()
    figures.forget()
    figures.save()
    assert KeptFigures(path, "other").get("ram") is None
    assert KeptFigures(path, "one").get("ram") == 1e9


def test_a_file_without_news_is_not_written(path: Path):
    figures = KeptFigures(path, "m")
    figures.save()
    assert not path.exists()
    figures.put({"ram": 1e9})
    figures.save()
    path.unlink()
    figures.save()
    assert not path.exists()
    assert os.listdir(path.parent) == []  # nor is anything left beside it


def test_nothing_is_kept_without_a_file():
    figures = KeptFigures(None, "m")
    figures.put({"ram": 1e9})
    figures.save()
    assert figures.get("ram") == 1e9


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "folder").write_text("a file")
    figures = KeptFigures(tmp_path / "folder" / "machine.json", "m")
    figures.put({"ram": 1e9})
    with pytest.raises(OSError, match="exists"):
        figures.save()


WHOLE = {"kind": "machine", "version": 1, "machines": {"m": {"ram": [1e9, 1e9], "bus": [2e9, 1e9]}}}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "null", "\0", '{"kind": "other"}', json.dumps(WHOLE | {"version": 2}),
        json.dumps(WHOLE | {"machines": [1]}), json.dumps(WHOLE | {"machines": {"m": [1]}}),
        json.dumps(WHOLE | {"machines": {"m": {"ram": 1e9}}}),
        json.dumps(WHOLE | {"machines": {"m": {"ram": [0, 1e9]}}}),
        json.dumps(WHOLE | {"machines": {"m": {"ram": [float("nan"), 1e9]}}}),
        json.dumps(WHOLE | {"machines": {"m": {"ram": [True, 1e9]}}}),
        json.dumps(WHOLE | {"machines": {"m": {"ram": ["1e9", 1e9]}}}), "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_damaged_is_measured_anew(path: Path, text: str):
    path.parent.mkdir()
    path.write_text(text)
    figures = KeptFigures(path, "m", Clock())
    assert figures.measured("ram", lambda: 7.0) == 7.0
    figures.save()
    assert KeptFigures(path, "m", Clock()).get("ram") == 7.0


@given(st.integers(0, 200), st.binary(max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_no_damage_makes_reading_fail(path: Path, at: int, junk: bytes):
    path.parent.mkdir(exist_ok=True)
    data = json.dumps(WHOLE).encode()
    path.write_bytes(data[:at] + junk + data[at + len(junk) :])
    value = KeptFigures(path, "m", Clock()).get("ram")
    assert value is None or value > 0
