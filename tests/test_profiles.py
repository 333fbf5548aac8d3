"""`erniechat profile`: the map, what moves between machines, and a minute of calibration."""

import io
import json
import sys
from pathlib import Path

import pytest

from erniechat import calibration, profiles
from erniechat.calibration import PROMPTS, calibrate
from erniechat.cli import main
from erniechat.errors import ErnieChatError, UsageError
from erniechat.options import LoadOptions
from erniechat.ui.profile_page import profile_page
from tests.engines import load_mini

FACTS = {"model": "m", "num_tokens": 1234.0, "counts": {"1": [8.0, 0, 0, 0], "2": [1.0, 1, 1, 1]}}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_the_map_has_a_line_a_layer_and_a_cell_an_expert():
    page = profile_page(FACTS, color=False, utf8=True).splitlines()
    assert page[0] == "m · 1,234 recent tokens"
    assert page[1] == "layer  1 |█   |"  # 4 times the average, and three never
    assert page[2] == "layer  2 |▂▂▂▂|"
    # Of eight experts the busiest two take 9 of 12 uses, four 11, six all.
    assert page[4] == "the busiest 25 % take 75 %, 50 % take 92 %, 75 % take 100 % of the uses"


def test_the_map_in_colour_and_in_ascii():
    assert "\x1b[38;5;203m█\x1b[0m" in profile_page(FACTS, color=True, utf8=True)
    assert profile_page(FACTS, color=False, utf8=False).split("\n", 1)[1].isascii()


def test_experts_beyond_a_line_go_on_in_the_next():
    facts = {**FACTS, "counts": {"1": [1.0] * 100}}
    lines = profile_page(facts, color=False, utf8=True).splitlines()
    assert lines[1] == f"layer  1 |{'▂' * 64}|"
    assert lines[2] == f"{'':<9}|{'▂' * 36}|"


@pytest.mark.parametrize(("width", "cells"), [(80, 64), (75, 64), (74, 32), (40, 16), (20, 8)])
def test_the_map_keeps_to_the_terminals_width(width: int, cells: int):
    facts = {**FACTS, "counts": {str(layer): [1.0] * 64 for layer in range(1, 28)}}
    lines = profile_page(facts, color=False, utf8=True, width=width).splitlines()
    assert lines[1] == f"layer  1 |{'▂' * cells}|"
    assert lines[1 + 64 // cells] == f"layer  2 |{'▂' * cells}|"
    assert max(map(len, lines)) <= max(width, 45)  # the scale's line
    nothing = profile_page({**FACTS, "counts": {}}, color=False, utf8=True, width=width)
    assert max(map(len, nothing.splitlines())) < width


def test_a_profile_is_made_shown_moved_and_forgotten(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
):
    assert "no routing profile yet" in printed(capsys, "profile", "show")
    monkeypatch.setattr(calibration, "PROMPTS", PROMPTS[:2])
    assert "recent tokens" in printed(capsys, "profile", "calibrate")
    before = json.loads(printed(capsys, "profile", "show", "--json"))
    assert list(before["counts"]) == [str(i) for i in range(1, 8)]
    assert sum(before["counts"]["1"]) == pytest.approx(4 * before["num_tokens"], rel=0.01)
    file = str(home / "profile.json")
    assert "wrote" in printed(capsys, "profile", "export", file)
    assert "forgot" in printed(capsys, "profile", "reset")
    assert "had no" in printed(capsys, "profile", "reset")
    assert "now has" in printed(capsys, "profile", "import", file)
    assert json.loads(printed(capsys, "profile", "--json")) == before


def test_what_cannot_be_moved_is_told(home: Path):
    options = LoadOptions()
    with pytest.raises(UsageError, match="has no routing profile; erniechat profile calibrate"):
        profiles.export(options, str(home / "x"))
    with pytest.raises(UsageError, match="there is no file"):
        profiles.bring_in(options, str(home / "x"))
    (home / "x").write_text("{}")
    with pytest.raises(UsageError, match="is no routing profile"):
        profiles.bring_in(options, str(home / "x"))
    key = profiles.facts(options)["revision"]
    text = {"kind": "routing-profile", "version": 1, "model": key, "num_tokens": 1, "counts": {}}
    (home / "x").write_text(json.dumps(text | {"counts": {"1": [1, 2]}}))
    with pytest.raises(UsageError, match="other layers and experts"):
        profiles.bring_in(options, str(home / "x"))


def test_a_profile_that_cannot_be_deleted_is_told(home: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **more: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ErnieChatError, match=r"cannot delete .*\.json: Read-only file system"):
        profiles.forget(LoadOptions())


def test_calibration_ends_when_its_time_is_over():
    engine = load_mini("nf4")
    told: list[str] = []
    assert calibrate(engine, told.append, max_seconds=0.0) == 0
    assert engine.num_tokens_seen == 0
    assert calibrate(engine, told.append, max_seconds=0.05) < len(PROMPTS)
    assert told[0].startswith(f"calibrating: 0 of {len(PROMPTS)} prompts")


def test_unknown_actions_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert main(["profile", "export"]) == 2
    assert main(["profile", "paint"]) == 2
    assert "erniechat profile" in printed(capsys, "profile", "--help")
