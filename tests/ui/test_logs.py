"""-q, -v, -vv and --log: more or less on stderr, and never another byte on stdout."""

from pathlib import Path

import pytest

from tests.test_cli import MODEL, run
from tests.ui.screen_of import erniechat

HI = ("-p", "secret words", *MODEL)


@pytest.mark.parametrize("flags", [("-q",), ("-v",), ("-vv",), ("-v", "-v"), ("--log", "-")])
@pytest.mark.parametrize("scenario", ["plain", "thinks", "calls"])
def test_stdout_is_the_same_however_much_is_said(flags: tuple[str, ...], scenario: str):
    assert run(scenario, *HI, *flags).stdout == run(scenario, *HI).stdout


def test_each_step_says_more():
    sizes = [len(run("plain", *HI, *flags).stderr) for flags in (("-q",), (), ("-v",), ("-vv",))]
    assert sizes[0] == sizes[1] == 0
    assert sizes[1] < sizes[2] < sizes[3]


def test_the_log_holds_what_was_done_and_not_what_was_said(tmp_path: Path):
    path = tmp_path / "log"
    run("thinks", *HI, "--log", str(path), "--seed", "5")
    run("bug", *HI, "--log", str(path))
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    for wanted in ("loading some-model", "loaded some-model nf4", "reply stop: read 5", "seed 5",
                   "Traceback", "ValueError: shapes differ"):  # fmt: skip
        assert wanted in text
    for private in ("secret", "roads", "think about"):
        assert private not in text


def test_the_chat_logs_its_replies(tmp_path: Path):
    path = tmp_path / "log"
    with erniechat("plain", *MODEL, "--log", str(path)) as terminal:
        terminal.wait("ctx ")
        terminal.send("secret\r")
        terminal.wait("tok/s")
        terminal.send("/log\r")
        terminal.wait(f"log {tmp_path}"[:40])
        terminal.send("\x04")
        assert terminal.end() == 0
    assert "reply stop" in path.read_text()
    assert "secret" not in path.read_text()


def test_a_log_that_cannot_be_written_is_refused():
    done = run("plain", *HI, "--log", "/nowhere/log")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b'error: cannot write --log "/nowhere/log": No such file or directory\n'
