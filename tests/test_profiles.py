"""`erniechat profile`: the map, what moves between machines, and a minute of calibration."""

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from erniechat import calibration, profiles
from erniechat.calibration import PROMPTS, calibrate
from erniechat.chat.conversation import Message
from erniechat.cli import main
from erniechat.engine import Engine
from erniechat.errors import ErnieChatError, UsageError
from erniechat.loader import load_engine
from erniechat.options import LoadOptions, SamplingOptions
from erniechat.ui.profile_page import profile_page
from quant.errors import QuantError
from quant.experts.profile import RoutingProfile, load_profile, profile_path
from tests.engines import last, load_mini
from tests.ui.screen_of import TerminalRun

SHORT = SamplingOptions(temperature=0, max_tokens=6)
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


def on_disk() -> RoutingProfile | None:
    key = profiles.facts(LoadOptions())["revision"]
    return load_profile(profile_path(profiles.profile_folder(), key), key)


def reply(engine: Engine) -> tuple[int, int]:
    """A short reply: tokens counted, and experts that it chose."""
    before, chosen = engine.num_tokens_seen, int(engine.decoder.experts.counts.sum())
    asked = [Message("user", "What is 17 + 25?")]
    assert last(list(engine.stream_reply(asked, SHORT))).usage.thinking == 6
    tokens = engine.num_tokens_seen - before
    return tokens, int(engine.decoder.experts.counts.sum()) - chosen


def test_a_killed_chat_has_kept_what_its_turns_routed(home: Path):
    command = [sys.executable, "-m", "erniechat", "--4bit", "--temperature", "0"]
    kept = home / "XDG_STATE_HOME"
    with TerminalRun(command) as run:
        run.wait(r"(?m)^›")
        run.send("What is 17 + 25?\r")
        run.wait("17 . 25 = 42")
        run.wait(lambda: any(kept.rglob("*.json")))  # nothing but the turn's end writes it
        os.kill(run.child.pid, signal.SIGKILL)
        assert run.end() == 128 + signal.SIGKILL
    found = on_disk()
    assert found is not None
    assert found.num_tokens > 10
    computed = found.num_tokens - 1  # the reply's last token is not read
    assert [sum(row) for row in found.counts.values()] == [4 * computed] * 7


class Held:
    """Stands for `add_to_profile`: notes tokens and choices that are added, or fails."""

    def __init__(self) -> None:
        self.added: list[tuple[float, float]] = []
        self.fails = False

    def __call__(self, path: Path, news: RoutingProfile, **pause: object) -> None:
        if self.fails:
            raise QuantError("no space; this chat's counts are lost")
        self.added.append((news.num_tokens, sum(map(sum, news.counts.values()))))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    monkeypatch.setattr(profiles, "add_to_profile", held)
    return held


def wait_for_writer() -> None:
    for thread in threading.enumerate():
        if thread.name == "profile-writer":
            thread.join()


def test_each_turn_is_added_once(held: Held):
    engine = load_mini("nf4")
    replies = []
    for _ in range(2):
        replies.append(reply(engine))
        wait_for_writer()
    assert held.added == replies
    engine.close()
    assert held.added == replies


def test_turns_that_could_not_be_added_come_with_the_next(
    held: Held, monkeypatch: pytest.MonkeyPatch
):
    warnings: list[str] = []
    engine = load_engine(LoadOptions(quant="nf4"), warn=warnings.append)
    held.fails = True
    replies = [reply(engine)]
    wait_for_writer()
    held.fails = False
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        replies.append(reply(engine))
    assert (held.added, warnings) == ([], [])
    replies.append(reply(engine))
    wait_for_writer()
    assert held.added == [tuple(map(sum, zip(*replies, strict=True)))]
    held.fails = True
    reply(engine)
    engine.close()
    assert warnings == ["no space; this chat's counts are lost"]


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
