"""The chat in a pseudo-terminal: the whole screen, the keys while it works, the way out."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.ui.screen_of import TerminalRun, erniechat

MODEL = ("-m", "some-model")
PROMPT = r"(?m)^›"


def ready(run: TerminalRun) -> None:
    run.wait(lambda: "ctx " in run.text and re.search(PROMPT, run.text) is not None)


@pytest.mark.timed
def test_a_chat_from_greeting_to_goodbye_leaves_the_terminal_as_it_was():
    with erniechat("thinks", *MODEL, height=16) as run:
        before = run.mode
        ready(run)
        run.send("What is it?\r")
        run.wait(r"thinking \d\.\d s · \d tok +Ctrl-O shows it · Esc stops")
        run.wait("tok/s")
        ready(run)
        text = re.sub(r"thought for \d\.\d s", "thought for N s", run.text)
        assert text.splitlines() == [
            "some-model · nf4 · cpu · context 4,096 · can think",
            "/help lists commands · Alt-Enter new line · Esc stops an answer · Ctrl-D leaves",
            "",
            "› What is it?",
            "",
            "thought for N s · 6 tok",
            "",
            "Two roads diverged in a yellow wood, and sorry I could not travel both.",
            "",
            "14 tok · 3.5 tok/s · thought 2.0 s of 6.5 s",
            "",
            "›",
            "", "", "",
            "ctx 22/4.1k (6 thoughts not kept) · ram 2.0 GiB · some-model · nf4",
        ]  # fmt: skip
        run.send("\x04")
        assert run.end() == 0
        assert run.lines[-1] == "goodbye · 1 exchange"
        assert run.mode == before


def test_it_says_something_at_once_and_the_load_leaves_no_trace():
    with erniechat("plain", *MODEL, FAKE_LOAD_SECONDS="1.0") as run:
        run.wait("loading some-model")
        run.wait(r"loading some-model · \d+ MiB of 100 MiB · \d+ %")
        run.send("typed ahead")
        ready(run)
        run.wait("› typed ahead")
        assert "loading" not in run.text


@pytest.mark.timed
@pytest.mark.parametrize("key", ["\x1b", "\x03"])
def test_a_stop_keeps_the_part_and_typed_ahead_text(key: str):
    with erniechat("slow", *MODEL) as run:
        ready(run)
        run.send("Go\r")
        run.wait("Two roads")
        run.send("next one")
        run.run_for(0.2)
        assert "next" not in run.text
        began = time.monotonic()
        run.send(key)
        run.wait(r"stopped by you after \d+ tok · the part is kept")
        assert time.monotonic() - began < 1.5
        run.wait("› next one")
        run.send("\r")
        run.wait("Then a short one.")
        ready(run)
        run.send("\x04")
        assert run.end() == 0
        assert run.lines[-1] == "goodbye · 2 exchanges"


def test_the_model_warms_up_while_the_user_types_and_no_longer():
    with erniechat("warms-up", *MODEL) as run:
        ready(run)
        run.send("Go\r")
        run.wait("Warmed up 1 times.")
        ready(run)
        run.send("\x04")
        assert run.end() == 0


@pytest.mark.timed
def test_the_answer_streams():
    with erniechat("slow", *MODEL) as run:
        ready(run)
        run.send("Go\r")
        run.wait("Two roads")
        assert "both." not in run.text
        run.wait("both.")


@pytest.mark.timed
@pytest.mark.parametrize("scenario", ["stuck", "slow"])
def test_a_second_ctrl_c_leaves_whatever_the_model_does(scenario: str):
    with erniechat(scenario, *MODEL) as run:
        before = run.mode
        ready(run)
        run.send("Go\r")
        run.wait("begins|roads")
        run.send("\x03")
        run.run_for(0.8)
        if scenario == "stuck":
            assert run.lines[-1] == "stopping …    Ctrl-C again leaves"
        run.send("\x03")
        assert run.end() == 130
        assert run.mode == before
        assert "stopping" not in run.text


def test_ctrl_c_during_the_load_leaves():
    with erniechat("plain", *MODEL, FAKE_LOAD_SECONDS="20") as run:
        before = run.mode
        run.wait("MiB")
        run.send("\x03")
        assert run.end() == 130
        assert (run.text, run.mode) == ("", before)


@pytest.mark.timed
@pytest.mark.parametrize("at_prompt", [True, False])
def test_sigterm_gives_the_terminal_back(at_prompt: bool):
    with erniechat("endless", *MODEL) as run:
        before = run.mode
        ready(run)
        if not at_prompt:
            run.send("Go\r")
            run.wait("line of text")
        os.kill(run.child.pid, signal.SIGTERM)
        assert run.end() == 143
        assert run.mode == before
        assert b"\x1b[?25l" not in run.bytes.split(b"\x1b[?25h")[-1]  # the cursor is shown


def test_reading_is_shown_and_wiped():
    with erniechat("reads", *MODEL) as run:
        ready(run)
        run.send("Go\r")
        run.wait(r"reading 1,957 tok · 49 % · 1,\d{3} tok/s · 0\.[67] s left    Esc stops")
        run.wait("Read it.")
        assert "reading" not in run.text


def test_weights_on_their_way_are_shown_and_wiped():
    with erniechat("arrives", *MODEL) as run:
        ready(run)
        run.send("Go\r")
        run.wait(r"loading the model · 3.0 GiB of 11.0 GiB · 27 %    Esc stops")
        run.wait("reading 1,957 tok · 49 %")
        run.wait("Read it.")
        assert "loading" not in run.text


def test_ctrl_c_while_weights_are_on_their_way_gives_the_message_back():
    with erniechat("arrives-late", *MODEL) as run:
        ready(run)
        run.send("Go\r")
        run.wait("loading the model")
        run.send("\x03")
        run.wait("stopped by you before the answer began · the message is back")
        run.wait("(?m)^› Go")
        run.send("\r")
        run.wait("Here now.")


def test_weights_that_do_not_arrive_give_the_message_back():
    with erniechat("arrives-never", *MODEL) as run:
        ready(run)
        run.send("Go\r")
        run.wait("error: it is gone")
        run.wait("(?m)^› Go")


@pytest.mark.timed
def test_a_narrow_terminal_wraps_at_words_and_keeps_the_toolbar_on_one_line():
    with erniechat("thinks", *MODEL, width=24, height=20) as run:
        ready(run)
        run.send("Go\r")
        run.wait("tok/s")
        ready(run)
        poem = ["Two roads diverged in a", "yellow wood, and sorry", "I could not travel", "both."]
        start = run.lines.index(poem[0])
        assert run.lines[start : start + 4] == poem
        assert run.lines[-1].startswith("ctx 20/4.1k")


def test_help_and_settings_on_the_screen():
    with erniechat("plain", *MODEL, "--temperature", "0.3") as run:
        ready(run)
        run.send("/help\r")
        run.wait("send a line|sends a line")
        run.send("/set\r")
        run.wait(r"temperature +0\.3 +0\.8 +flag")


@pytest.mark.timed
def test_plain_has_no_escapes_and_works():
    with erniechat("thinks", *MODEL, "--plain") as run:
        before = run.mode
        run.wait(PROMPT)
        run.send("What?\n")
        run.wait("tok/s")
        run.wait(r"(?m)^›\s*\Z")
        run.send("\x04")
        assert run.end() == 0
        assert b"\x1b" not in run.bytes
        assert run.mode == before


def test_ctrl_c_at_the_prompt_of_plain_drops_the_line_and_not_the_chat():
    with erniechat("plain", *MODEL, "--plain") as run:
        run.wait(PROMPT)
        for count, typed in enumerate(("", "half a", '"""\nopen'), 1):
            run.send(typed + "\x03")
            run.wait(lambda count=count: run.text.count("Ctrl-D leaves\n›") == count)
        run.send("What is it?\n")
        run.wait(r"The answer is 42\.[^›]*›")
        assert "half a The" not in run.text
        run.send("\x04")
        assert run.end() == 0
        assert run.lines[-1] == "goodbye · 1 exchange"


@pytest.mark.timed
@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {}])
def test_no_color_means_no_colours(environ: dict[str, str]):
    with erniechat("thinks", *MODEL, **environ) as run:
        ready(run)
        run.send("What?\r")
        run.wait("tok/s")
        ready(run)
        codes = set(re.findall(rb"\x1b\[([\d;]*)m", run.bytes))
        assert bool(codes - {b"0", b""}) == (not environ)


# --- one-shot on a terminal


def test_one_shot_on_a_terminal_neutralises_and_wipes_its_progress():
    with erniechat("evil", "-p", "hi", *MODEL, FAKE_LOAD_SECONDS="0.6") as run:
        run.wait("loading some-model")
        assert run.end() == 0
        assert run.lines == ["␛[2Jwiped ‹9b›m ␇bell"]


@pytest.mark.timed
def test_one_shot_on_a_terminal_counts_the_thinking_and_wipes_it():
    with erniechat("thinks", "-p", "hi", *MODEL) as run:
        run.wait(r"thinking \d\.\d s · \d tok")
        assert run.end() == 0
        assert run.lines == [
            "Two roads diverged in a yellow wood, and sorry I could not travel both."
        ]


@pytest.mark.timed
@pytest.mark.parametrize(("flags", "term"), [(("--plain",), "xterm"), ((), "dumb")])
def test_one_shot_without_cursor_motion_sends_no_escape(flags: tuple[str, ...], term: str):
    with erniechat("thinks", "-p", "hi", *MODEL, *flags, TERM=term) as run:
        assert run.end() == 0
        assert b"\x1b" not in run.bytes


def test_an_earlier_message_is_found_and_sent_again():
    with erniechat("plain", *MODEL, height=40) as run:
        for number, text in enumerate(("hello one", "other"), 1):
            ready(run)
            run.send(f"{text}\r")
            run.wait(lambda number=number: run.text.count("tok/s") == number)
        ready(run)
        run.send("\x12hel")
        run.wait(r"I-search backward: *hel")
        run.wait("hello one")
        run.send("\r")
        run.wait(lambda: "I-search" not in run.text)
        run.send("\r")
        run.wait(lambda: run.text.count("tok/s") == 3)
        assert run.text.count("› hello one") == 2


def test_what_is_typed_while_python_starts_is_sent_by_its_enter():
    with erniechat("plain", *MODEL) as run:
        run.send("What is it?\r")  # the terminal is not ours yet
        run.wait(r"The answer is 42\.")
        run.wait("ctx ")
        run.send("\x04")
        assert run.end() == 0


def test_what_is_typed_while_a_command_works_is_sent_by_its_enter(tmp_path: Path):
    mark = tmp_path / "mark"
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\ntouch {mark}\nsleep 1\nexit 1\n")
    editor.chmod(0o700)
    with erniechat("plain", "-m", "some-model", EDITOR=str(editor)) as run:
        run.wait("ctx ")
        run.send("Hi\r")
        run.wait(r"The answer is 42\.[^›]*›")
        run.send("/edit\r")
        run.wait(mark.exists)
        run.send("Hello\r")
        run.wait(r"› Hello\n\nThe answer is 42\.")
        run.send("\x04")
        assert run.end() == 0


@pytest.mark.parametrize(("width", "chat"), [(40, True), (20, True), (40, False)])
def test_the_lines_before_the_prompt_and_errors_break_between_words(width: int, chat: bool):
    words = () if chat else ("-p", "hi")
    with erniechat("missing", "-m", "missing", *words, width=width, ERNIECHAT_X="1") as run:
        assert run.end() == 3
    assert " ".join(run.lines) == (
        "warning: unknown environment variable ERNIECHAT_X; ignored "
        'error: no model "missing" on the hub; check the name'
    )
    assert all(len(line) < width for line in run.lines)


@pytest.mark.parametrize("plain", [(), ("--plain",)])
def test_sigterm_is_no_answer_to_a_question(plain: tuple[str, ...]):
    enter = "\n" if plain else "\r"
    with erniechat("plain", *MODEL, *plain) as run:
        before = run.mode
        run.wait(PROMPT)
        for number in (1, 2):
            run.send("word " * 100 + enter)
            run.wait(lambda number=number: run.text.count("tok/s") == number)
        run.send("/compact" + enter)
        run.wait(r"Go on\? \[y/N\]")
        os.kill(run.child.pid, signal.SIGTERM)
        assert run.end() == 143
        assert run.mode == before


@pytest.mark.parametrize("words", [("--help",), ("help", "sessions"), ("config", "show")])
@pytest.mark.parametrize("width", [40, 80])
def test_a_page_on_a_terminal_breaks_between_words(words: tuple[str, ...], width: int):
    with erniechat("plain", *words, width=width, height=300) as run, TerminalRun(
        ["sh", "-c", f"{sys.executable} -m tests.ui.drive_fake plain {' '.join(words)} | cat"],
        width=200, height=300,
    ) as pipe:  # fmt: skip
        assert (run.end(), pipe.end()) == (0, 0)
    whole = set(pipe.text.split())
    assert {word for word in run.text.split() if len(word) < width - 1} <= whole
    assert words[0] == "config" or max(map(len, run.lines)) < width
