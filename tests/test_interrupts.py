"""Stopping and waiting: signals in every phase, stdin read while the model loads, short logs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erniechat.chat.sessions import load_session
from tests.test_cli import MODEL, clean_environ, run, started
from tests.ui.screen_of import DEADLINE, erniechat

HI = ("-p", "hi", *MODEL)


@pytest.mark.timed
@pytest.mark.parametrize(
    ("scenario", "phase", "environ"),
    [
        ("plain", "load", {"FAKE_LOAD_SECONDS": "20"}),
        ("reads", "prefill", {}),
        ("thinks-long", "thinking", {}),
        ("slow", "decode", {}),
    ],
)
def test_one_interrupt_ends_every_phase_at_once(scenario: str, phase: str, environ: dict[str, str]):
    with started(scenario, *HI, "--jsonl", env=clean_environ(**environ)) as process:
        assert process.stdout is not None
        if phase == "load":
            time.sleep(0.8)
        else:  # the first line comes before the prompt is read, the second one after
            for _ in range({"prefill": 1, "thinking": 3, "decode": 3}[phase]):
                while process.stdout.read(1) != b"\n":
                    pass
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert time.monotonic() - began < 0.8  # 0.3 of ours, and Python's own end
        assert (process.returncode, stderr) == (130, b"")


WHILE_IMPORTING = """
import builtins, os, runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
load = builtins.__import__
def load_and_be_interrupted(name, *rest, **others):
    if name == "erniechat.ui.failure":
        os.kill(os.getpid(), signal.SIGINT)
    return load(name, *rest, **others)
builtins.__import__ = load_and_be_interrupted
runpy.run_module("erniechat.__main__", run_name="__main__")
"""


def test_an_interrupt_while_python_still_imports_shows_no_traceback():
    command = [sys.executable, "-c", WHILE_IMPORTING, *HI]
    done = subprocess.run(command, capture_output=True, env=clean_environ(), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_after_an_interrupt_the_next_line_is_the_shells_own(tmp_path: Path):
    log = tmp_path / "log"
    with erniechat("plain", *HI, "-q", "--log", str(log), FAKE_LOAD_SECONDS="20") as run:
        run.wait(lambda: log.exists() and "loading some-model" in log.read_text())
        run.send("\x03")
        assert run.end() == 130
        assert b"^C" in run.bytes
        assert (run.text, run.screen.cursor.x) == ("", 0)


@pytest.mark.timed
def test_stdin_is_read_while_the_model_loads():
    environ = clean_environ(FAKE_LOAD_SECONDS="1.5")
    with started("plain", *HI, stdin=subprocess.PIPE, env=environ) as process:
        assert process.stdin is not None
        began = time.monotonic()
        document = b"x" * (1 << 20)  # a pipe holds a sixteenth of it
        process.stdin.write(document)
        process.stdin.close()
        taken = time.monotonic() - began
        process.wait(timeout=60)
        whole = time.monotonic() - began
        assert process.returncode == 0
    assert taken < whole - 0.5  # the rest of the load


@pytest.mark.timed
def test_a_long_load_fills_no_log():
    done = run("plain", *HI, FAKE_LOAD_SECONDS="6")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0
    assert len(lines) == 1  # at most one in five seconds
    assert all(line.startswith("loading some-model · ") for line in lines)
    assert "\r" not in done.stderr.decode()


@pytest.mark.parametrize("variable", ["HOME", "TERM", "LANG", "SHELL", "PATH", "TMPDIR"])
def test_odd_variables_do_no_harm(variable: str):
    for value in (None, "", "/nowhere/at all", "\udcff"):
        environ = clean_environ(**{variable: value} if value is not None else {})
        if value is None:
            environ.pop(variable, None)
        with started("plain", *HI, env=environ) as process:
            stdout, _ = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (0, b"The answer is 42.\n")


def test_a_terminal_that_is_gone_ends_the_chat_and_keeps_what_was_written(tmp_path: Path):
    home = {"XDG_DATA_HOME": str(tmp_path), "ERNIECHAT_SAVE": "yes"}
    run = erniechat("slow", *MODEL, **home)
    run.wait("ctx ")
    run.send("Go\r")
    run.wait("Two roads")
    run.child.ptyproc.fileobj.close()
    run.child.closed = run.child.ptyproc.closed = True  # or its number would be closed once more
    end = time.monotonic() + DEADLINE
    while not (found := os.waitpid(run.child.pid, os.WNOHANG))[0]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(found[1]) == 129
    (path,) = (tmp_path / "erniechat" / "sessions").iterdir()
    assert load_session(path).messages[1].content.startswith("Two roads")
