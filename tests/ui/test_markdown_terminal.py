"""Answers and thoughts on a real pseudo-terminal: Markdown, keys, settings, resizing."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.drive_fake import MARKDOWN
from tests.ui.screen_of import DEADLINE, ROOT, TerminalRun, erniechat

MODEL = ("-m", "some-model")
DRAWN = """Two roads

In the wood, a traveller sees two roads and can not take both; List<int> stays,
and so does
the line break.

  1. The first was
     ◦ worn, and
     ◦ wanted x² ≤ 1
  2. The second

```python
def choose(roads: list[str]) -> str:
    return roads[-1]  # less travelled
```

road    steps
──────  ─────
first   1,204
second      7

That has made all the difference."""


def ready(run: TerminalRun) -> None:
    run.wait(lambda: "ctx " in run.text and re.search(r"(?m)^›\s*$", run.text) is not None)


def ask(run: TerminalRun, text: str = "Go") -> None:
    ready(run)
    run.send(f"{text}\r")


def test_an_answer_is_drawn_as_markdown():
    with erniechat("markdown", *MODEL, height=40) as run:
        ask(run)
        run.wait("tok/s · thought")
        ready(run)
        assert DRAWN in run.text
        assert b"\x1b[?2026h" in run.bytes


def test_one_answer_on_a_terminal_is_drawn_too_and_in_a_pipe_it_is_not():
    with erniechat("markdown", "-p", "hi", *MODEL, height=40) as run:
        assert run.end() == 0
        assert run.text == DRAWN
    command = [sys.executable, "-m", "tests.ui.drive_fake", "markdown", "-p", "hi", *MODEL]
    piped = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert piped.stdout == MARKDOWN + "\n"


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        (("--no-markdown",), {}),
        (("--plain",), {}),
        ((), {"TERM": "dumb"}),
        ((), {"ERNIECHAT_MARKDOWN": "off"}),
    ],
)
def test_where_markdown_is_off_the_source_is_shown(flags: tuple[str, ...], environ: dict[str, str]):
    with erniechat("markdown", "-p", "hi", *MODEL, *flags, height=40, **environ) as run:
        assert run.end() == 0
        assert run.text.replace(" ", "").replace("\n", "") == re.sub(r"\s", "", MARKDOWN)


def test_without_colours_the_marks_carry_the_meaning():
    with erniechat("markdown", "-p", "hi", *MODEL, height=40, NO_COLOR="1") as run:
        assert run.end() == 0
        assert re.findall(rb"\x1b\[[\d;]*m", run.bytes) == []
        assert "# Two roads\n\nIn the **wood**, a traveller sees `two` roads" in run.text


def test_markdown_can_be_turned_off_and_the_last_answer_shown_as_it_is():
    with erniechat("markdown-now", *MODEL, height=60) as run:
        ask(run)
        run.wait("tok/s")
        ask(run, "/raw")
        run.wait(r"\| road \| steps \|")
        assert MARKDOWN.split("\n\n")[2] in run.text
        ask(run, "/markdown off")
        run.wait("markdown off · /set")
        run.screen.reset()
        ask(run, "again")
        run.wait("tok/s")
        assert "In the **wood**" in run.text


def test_thoughts_unfold_and_fold_while_they_come_and_can_be_read_afterwards():
    with erniechat("thinks-aloud", *MODEL, height=70) as run:
        ask(run)
        run.wait(r"thinking \d\.\d s · \d+ tok · \d+ tok/s +Ctrl-O shows it · Esc stops")
        assert "│" not in run.text
        run.send("\x0f")
        run.wait(r"thinking .* Ctrl-O folds it · Esc stops\n  │ step")
        run.wait(lambda: run.text.count("  │ ") == 6)
        run.send("\x0f")
        run.wait(lambda: "  │ " not in run.text)
        run.wait("Done.")
        ready(run)
        assert re.search(r"\n\nthought for \d\.\d s · \d+ tok\n\nDone\.\n", run.text)
        assert "Ctrl-O" not in run.text.split("thought for")[1]
        run.send("\x0f")
        run.wait(r"┌ thoughts of the last answer · \d+ tok · 2\.0 s\n│ step 0 of the thoughts")
        run.wait("└ not sent back to the model in later turns")
        ready(run)


@pytest.mark.timed
def test_a_stop_in_mid_answer_keeps_what_was_drawn():
    with erniechat("code", *MODEL, height=40) as run:
        ask(run)
        run.wait("step_2")
        run.send("\x1b")
        run.wait("stopped by you")
        ready(run)
        assert "```python\ndef step_0(x: int) -> int:\n    return x * 0  # a comment" in run.text
        assert "Done." not in run.text


# --- errors and thoughts of one answer


@pytest.mark.parametrize("flags", [(), ("--no-markdown",)])
def test_an_error_in_mid_answer_starts_a_line(flags: tuple[str, ...]):
    with erniechat("breaks", "-p", "hi", *MODEL, *flags) as run:
        assert run.end() == 4
        assert run.lines == ["Half an", "error: the GPU ran out of memory"]


@pytest.mark.timed
def test_full_thoughts_of_one_answer_stay_above_it():
    with erniechat("thinks-aloud", "-p", "hi", *MODEL, "--thoughts", "full", height=60) as run:
        assert run.end() == 0
        steps = [f"step {number} of the thoughts" for number in range(50)]
        assert run.lines == [*steps, "", "Done."]


# --- tmux: a terminal that reflows, suspends and keeps its scrollback


class Tmux:
    def __init__(self, folder: Path, command: str) -> None:
        self._socket = str(folder / "tmux")
        # pytest-xdist exports a size, which would then be the terminal's for good.
        ours = ("TMUX", "COLUMNS", "LINES")
        environ = {k: v for k, v in os.environ.items() if k not in ours and "ERNIECHAT" not in k}
        self._environ = environ | {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        self._environ |= {"ERNIECHAT_SAVE": "no", "ERNIECHAT_HISTORY": "no"}
        self("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh")
        self("send-keys", f"{command}; clear", "Enter")

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-S", self._socket, *arguments],
            capture_output=True, text=True, env=self._environ, cwd=ROOT, check=True,
        )  # fmt: skip
        return done.stdout

    @property
    def text(self) -> str:
        """Scrollback and screen; lines that the terminal broke are whole."""
        return self("capture-pane", "-p", "-J", "-S", "-")

    def wait(self, pattern: str, seconds: float = DEADLINE) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text
            time.sleep(0.05)


@pytest.fixture
def fake_in_tmux(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    run = Tmux(tmp_path, f"{sys.executable} -m tests.ui.drive_fake {request.param} -m some-model")
    try:
        run.wait("ctx 0/")
        run("send-keys", "Go", "Enter")
        yield run
    finally:
        run("kill-server")


# While nothing is written: a frame on its way to a terminal that has another size by then is
# drawn wrongly, and no program can know.
@pytest.mark.timed
@pytest.mark.parametrize("fake_in_tmux", ["roads-with-rests"], indirect=True)
def test_resizing_in_mid_answer_leaves_no_ghosts(fake_in_tmux: Tmux):
    tmux = fake_in_tmux
    for last, width in ((7, 50), (12, 30), (17, 100)):
        tmux.wait(rf"road\s+{last},")
        time.sleep(0.3)  # of the 1.5 s in which the model rests
        assert f"road {last + 2}," not in re.sub(r"\s+", " ", tmux.text)
        tmux("resize-window", "-x", str(width), "-y", "24")
    tmux.wait("tok/s")
    answer = tmux.text.split("› Go")[1].split("tok ·")[0]
    numbers = [int(number) for number in re.findall(r"road (\d+)", re.sub(r"\s+", " ", answer))]
    assert numbers == list(range(len(numbers)))
    assert answer.count("Some roads") == 1


@pytest.mark.timed
@pytest.mark.parametrize("fake_in_tmux", ["roads"], indirect=True)
def test_a_suspended_answer_is_drawn_again_below(fake_in_tmux: Tmux):
    tmux = fake_in_tmux
    tmux.wait("road 3,")
    tmux("send-keys", "C-z")
    tmux.wait("Stopped")
    tmux("send-keys", "fg", "Enter")
    tmux.wait("tok/s")
    below = re.sub(r"\s+", " ", tmux.text.split("Stopped")[1].split("tok ·")[0])
    assert [int(number) for number in re.findall(r"road (\d+)", below)] == list(range(40))
