"""`erniechat bench --ab`: which settings it takes, in which order it measures, what it prints."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from erniechat import fit, placing
from erniechat.cli import main
from erniechat.comparison import changed, compare, format_comparison
from erniechat.errors import UsageError
from erniechat.memory_plan import MemoryPlan
from erniechat.options import BenchOptions, LoadOptions
from quant.memory import ProcessMemory

GIVEN = LoadOptions(threads=2)


def test_settings_are_those_of_the_flags():
    load = changed(GIVEN, "stage=off, cpu-share=0.5,gpu_memory=4GiB")
    assert load == LoadOptions(threads=2, stage=False, cpu_share=0.5, gpu_memory="4GiB")
    assert load != GIVEN


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", 'got ""'),
        ("stage", 'got "stage"'),
        ("temperature=1", 'got "temperature=1"'),
        ("no_such=1", 'got "no_such=1"'),
        ("cpu_share=2", 'cpu_share in --ab must be a number at least 0 and at most 1, got "2"'),
    ],
)
def test_others_are_refused(text: str, told: str):
    with pytest.raises(UsageError, match=told):
        changed(GIVEN, text)


def test_sides_are_measured_in_turns_and_the_ratio_is_of_each_round():
    asked: list[bool] = []
    speeds = iter([10.0, 20.0, 40.0, 10.0, 10.0, 10.0])  # the machine is another each round

    def measure(load: LoadOptions) -> dict[str, float]:
        asked.append(load.stage)
        speed = next(speeds)
        hits = 0.5 if load.stage else 0.25
        return {
            "prefill": speed, "decode": 2 * speed, "first_token": 1 / speed, "hit_rate": hits
        }  # fmt: skip

    told: list[str] = []
    result = compare(GIVEN, "stage=off", 3, measure, told.append)
    assert asked == [True, False, False, True, True, False]
    assert result["measured"]["prefill"] == {"given": 10.0, "changed": 20.0, "ratio": 2.0}
    assert result["measured"]["first_token"]["ratio"] == 0.5
    assert told[:2] == ["round 1 of 3, as given", "round 1 of 3, stage=off"]
    page = format_comparison(result)
    assert "ratio: stage=off to as given" in page
    assert "decode, tok/s           20          40    2.00×" in page
    assert "hit rate, share        0.5        0.25    0.50×" in page


def test_the_bench_compares_on_a_real_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    flags = ["--4bit", "-p", "4", "-n", "2", "-r", "1", "--ab", "kernels=reference", "--json"]
    assert main(["bench", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["measured"]["decode"]["ratio"] < 0.7  # the reference is not made for speed
    assert main(["bench", "--ab", "x=1"]) == 2
    assert "settings of a model" in capsys.readouterr().err


def test_both_sides_have_the_same_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """However much the program holds by then."""
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    held = itertools.count(100 << 20, 1 << 20)
    monkeypatch.setattr(fit, "process_memory", lambda: ProcessMemory(next(held), 0))
    flags = ["-p", "4", "-n", "2", "-r", "2", "--cpu-memory", "171MiB", "--4bit", "--json"]
    seen: list[int] = []
    plan = placing.fit

    def planned(*args: Any) -> MemoryPlan:
        memory = plan(*args)
        seen.append(memory.num_experts("RAM"))
        return memory

    monkeypatch.setattr(placing, "fit", planned)
    assert main(["bench", *flags, "--ab", "stage=off"]) == 0
    assert len(seen) == 8  # before and after the weights, of two rounds' two sides
    assert 0 < seen[0] < 224
    assert set(seen) == {seen[0]}


@pytest.mark.parametrize(
    "settings",
    [
        *("profile=off", "adapt=off", "read_ahead=on", "stage=off", "keep_speeds=off"),
        *("cpu_share=0", "prompt_cpu_share=0", "cpu_memory=90%"),
    ],
)
def test_every_policy_has_an_a_b_on_the_command_line(
    settings: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each side is loaded with the settings as they are given and as they are changed."""
    seen: list[LoadOptions] = []

    def once(load: LoadOptions, **_: object) -> dict[str, float]:
        seen.append(load)
        return dict.fromkeys(("prefill", "decode", "first_token", "hit_rate"), 1.0)

    monkeypatch.setattr("erniechat.bench._once", once)
    assert main(["bench", "-r", "1", "--ab", settings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ab"] == settings
    name = settings.partition("=")[0]
    assert getattr(seen[0], name) != getattr(seen[1], name)
    assert dataclasses.replace(seen[1], **{name: getattr(seen[0], name)}) == seen[0]


def test_quality_is_not_compared():
    with pytest.raises(UsageError, match="--ab compares speeds"):
        BenchOptions(ab="stage=off", quality="text")
