"""The screen reader's mode: sentences instead of a live line, paragraphs instead of pieces."""

from pathlib import Path

import pytest

from erniechat.ui.answer_view import ParagraphAnswer
from erniechat.ui.wrap import StreamWrap
from tests.ui.drive_fake import POEM
from tests.ui.screen_of import erniechat


def test_a_chat_is_told_in_sentences():
    with erniechat("reads-and-thinks", "-m", "m", ACCESSIBLE="1", width=100) as run:
        run.wait(r"(?m)^›")
        run.send("What?\n")
        run.wait(r"Done, \d+ tokens\.")
        run.send("\x04")
        assert run.end() == 0
        answer = run.text.split("What?")[1].split("saved")[0]
        lines = [line for line in answer.splitlines() if line]
        assert lines[:5] == [
            "Reading 1,957 tokens.", "Thought for 2 seconds.", "Answer:", POEM, "Done, 16 tokens.",
        ]  # fmt: skip
        assert b"\x1b" not in run.bytes
        assert not any(sign in run.text for sign in "│┌└━▏⏹")


def test_the_flag_the_variable_and_the_key_ask_for_it(tmp_path: Path):
    config = tmp_path / "erniechat" / "config.toml"
    config.parent.mkdir()
    config.write_text("screen_reader = true\n")
    for flags, environ in (
        (("--screen-reader",), {}),
        ((), {"ERNIECHAT_SCREEN_READER": "1"}),
        ((), {"XDG_CONFIG_HOME": str(tmp_path)}),
    ):
        with erniechat("plain", "-m", "m", *flags, **environ) as run:
            run.wait(r"(?m)^›")
            run.send("What?\n")
            run.wait(r"Answer:\nThe answer is 42\.\n+Done, 4 tokens\.")


def test_half_a_paragraph_is_held_back():
    written: list[str] = []
    answer = ParagraphAnswer(StreamWrap(written.append, lambda: 80, moves_cursor=False))
    for piece in ("One", " two.\n", "\nThree", " four.\n\nFi", "ve"):
        answer.feed(piece)
        answer.draw()
    assert written == ["One two.\n\n", "Three four.\n\n"]
    answer.close()
    assert "".join(written) == "One two.\n\nThree four.\n\nFive\n"


@pytest.mark.timed
def test_one_answer_says_what_it_does_without_moving_the_cursor():
    with erniechat("thinks", "-p", "hi", "-m", "m", "--screen-reader") as run:
        assert run.end() == 0
        assert run.lines == [POEM]
        assert b"\x1b" not in run.bytes


def test_weights_on_their_way_are_told_once():
    with erniechat("arrives", "-m", "m", ACCESSIBLE="1", width=100) as run:
        run.wait(r"(?m)^›")
        run.send("What?\n")
        run.wait(r"Done, \d+ tokens\.")
        lines = [line for line in run.text.split("What?")[1].splitlines() if line]
        assert lines[:3] == ["Loading the model.", "Reading 1,957 tokens.", "Answer:"]
