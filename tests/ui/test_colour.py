"""Colour and form: who decides, that nothing is said by colour alone, and every width works."""

import itertools
import re

import pytest

from erniechat.ui.terminal import wants_color
from tests.ui.drive_fake import MARKDOWN
from tests.ui.screen_of import TerminalRun, erniechat

MODEL = ("-m", "some-model")

# --color, environment, on a terminal, in a pipe that takes FORCE_COLOR (stderr), in a pipe of data
MATRIX = [
    ("auto", {}, True, False, False),
    ("auto", {"NO_COLOR": "1"}, False, False, False),
    ("auto", {"NO_COLOR": ""}, True, False, False),
    ("auto", {"FORCE_COLOR": "1"}, True, True, False),
    ("auto", {"FORCE_COLOR": ""}, True, False, False),
    ("auto", {"CLICOLOR_FORCE": "1"}, True, True, False),
    ("auto", {"CLICOLOR_FORCE": "0"}, True, False, False),
    ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False, False),
    ("auto", {"TERM": "dumb"}, False, False, False),
    ("always", {"NO_COLOR": "1"}, True, True, True),
    ("always", {"TERM": "dumb"}, True, True, True),
    ("never", {"FORCE_COLOR": "1"}, False, False, False),
]


@pytest.mark.parametrize(("choice", "environ", "terminal", "pipe", "data"), MATRIX)
def test_who_decides_about_colours(
    choice: str, environ: dict[str, str], terminal: bool, pipe: bool, data: bool
):
    assert wants_color(choice, True, environ, forced=True) == terminal
    assert wants_color(choice, False, environ, forced=True) == pipe
    assert wants_color(choice, False, environ, forced=False) == data


@pytest.mark.parametrize(
    ("flags", "environ", "colours"),
    [
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"NO_COLOR": ""}, True),
        (("--color", "never"), {"FORCE_COLOR": "1"}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
        (("--plain",), {}, False),
    ],
)
def test_the_program_obeys_on_a_terminal(
    flags: tuple[str, ...], environ: dict[str, str], colours: bool
):
    with erniechat("markdown-now", "-p", "hi", *MODEL, *flags, height=40, **environ) as run:
        assert run.end() == 0
        assert (re.search(rb"\x1b\[[\d;]*[1-9][\d;]*m", run.bytes) is not None) == colours


@pytest.mark.timed
def test_without_colours_words_and_numbers_say_it_all():
    with erniechat("thinks", *MODEL, NO_COLOR="1", width=90) as run:
        run.wait("ctx ")
        run.send("What is it?\r")
        run.wait(r"thinking \d")
        run.wait("tok/s · thought")
        run.send("/nope\r")
        run.wait("error: no command /nope")
        run.send("\x04")
        assert run.end() == 0
        text = re.sub(r"\d\.\d s", "N s", run.text)
        assert "\nthought for N s · 6 tok\n\nTwo roads diverged" in text
        assert re.search(r"14 tok · 3\.5 tok/s · thought N s of N s", text)
        assert not re.search(rb"\x1b\[[\d;]*[1-9][\d;]*m", run.bytes)


def seen(run: TerminalRun) -> str:
    """All that was printed, scrollback and screen, without the line breaks of the width."""
    above = ["".join(cell.data for cell in line.values()) for line in run.screen.history.top]
    return re.sub(r"\s+", " ", "\n".join([*above, *run.lines]))


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_chat_works_at_every_width(width: int):
    with erniechat("markdown-now", *MODEL, width=width, height=30) as run:
        run.wait("ctx ")
        run.send("Go\r")
        run.wait(r"made all\s+the\s+difference")
        run.wait("tok/s")
        run.wait(lambda: run.text.splitlines()[-1].startswith("ctx "))
        assert len(run.text.splitlines()[-1]) < width  # the toolbar is one line
        assert max(map(len, run.lines)) <= width
        for word in re.findall(r"[a-z]{5,}", MARKDOWN.split("```")[0]):
            assert word in seen(run).replace(" ", "") or word == "wanted"


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations((24, 60, 100), 2)))
def test_a_resize_at_the_prompt_draws_it_again(first: int, then: int):
    with erniechat("plain", *MODEL, width=first, height=20) as run:
        run.wait("ctx ")
        run.send("some words")
        run.wait("› some words")
        run.child.setwinsize(20, then)
        run.screen.resize(20, then)
        run.send(" more")
        run.wait("› some words more")
        run.wait(lambda: run.text.count("ctx ") == 1)
        assert len(run.lines[-1]) <= then
