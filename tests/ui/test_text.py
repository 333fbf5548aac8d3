"""Text for people: what is neutralised, measured, cut and rounded."""

import random

import pytest

from erniechat.ui import text
from erniechat.ui.reply import AnswerTrim
from erniechat.ui.wrap import StreamWrap, wrap_words


def test_control_characters_become_symbols_and_text_stays():
    assert text.visible("a\tb\nc\x1b[2J\x07\x9b\x7f\r") == "a\tb\nc␛[2J␇‹9b›␡␍"
    assert text.visible("你好 é 👋") == "你好 é 👋"


@pytest.mark.parametrize(
    ("number", "short"),
    [(0, "0"), (999, "999"), (4_200, "4.2k"), (32_768, "32.8k"), (131_072, "131k")],
)
def test_short_counts(number: int, short: str):
    assert text.short_count(number) == short


def test_units():
    assert [text.seconds(value) for value in (0.42, 6.4, 99.94, 422)] == [
        "0.4 s", "6.4 s", "99.9 s", "7 min 02 s",
    ]  # fmt: skip
    assert [text.gib(value) for value in (84 << 20, 3 << 29)] == ["84 MiB", "1.5 GiB"]
    assert [text.gib(value) for value in (0, 1, 20_000)] == ["0 MiB", "1 KiB", "20 KiB"]
    assert [text.rate(302, 4.5), text.rate(1957, 0.9), text.rate(0, 0)] == ["67.1", "2,174", "–"]


def test_fields_are_dropped_from_the_right_until_they_fit():
    parts = ["ctx 12", "ram 3", "model"]
    assert [text.join_fitting(parts, width) for width in (22, 21, 14, 3)] == [
        "ctx 12 · ram 3 · model", "ctx 12 · ram 3", "ctx 12 · ram 3", "ctx",
    ]  # fmt: skip


def test_an_answer_is_trimmed_the_same_however_it_is_cut():
    whole = "\n\n  Hello\n\n  world \n\n\n"
    for seed in range(50):
        rng, rest, trim, out = random.Random(seed), whole, AnswerTrim(), ""
        while rest:
            size = rng.randint(1, 5)
            out += trim.feed(rest[:size])
            rest = rest[size:]
        assert out == "Hello\n\n  world "
    assert AnswerTrim(keep_start=True).feed("  x\n") == "  x"


def on_screen(pieces: list[str], width: int, moves_cursor: bool = True) -> list[str]:
    """The lines of a terminal after the pieces were written."""
    import pyte

    screen = pyte.Screen(width, 40)
    screen.set_mode(pyte.modes.LNM)
    stream = pyte.Stream(screen)
    wrap = StreamWrap(stream.feed, lambda: width, moves_cursor)
    for piece in pieces:
        wrap.feed(piece)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def test_words_move_to_the_next_line_whole():
    assert on_screen(["Two roads diverged in a yellow wood"], 12) == [
        "Two roads", "diverged in", "a yellow", "wood",
    ]  # fmt: skip


def test_long_words_are_cut_and_indents_and_blank_lines_kept():
    assert on_screen(["abcdefghijklm\n\n  if x:\n\ty"], 8) == [
        "abcdefg", "hijklm", "", "  if x:", "    y",
    ]  # fmt: skip


def test_chinese_breaks_anywhere_and_never_in_the_last_column():
    assert on_screen(["你好世界你好"], 8) == ["你 好 世".replace(" ", ""), "界你好"]


def test_wrapping_is_the_same_however_the_stream_is_cut():
    whole = "The quick  brown fox, 你好世界, jumps\n\tover supercalifragilistic dogs.\n\nEnd é👋 x"
    for width in (8, 13, 21, 60):
        expected = on_screen([whole], width)
        for seed in range(20):
            rng, rest, pieces = random.Random(seed), whole, []
            while rest:
                size = rng.randint(1, 6)
                pieces.append(rest[:size])
                rest = rest[size:]
            assert on_screen(pieces, width) == expected


def test_without_cursor_motion_the_text_goes_out_as_it_is():
    written: list[str] = []
    wrap = StreamWrap(written.append, lambda: 10, moves_cursor=False)
    wrap.feed("a long line of words")
    assert written == ["a long line of words"]


@pytest.mark.parametrize(
    ("line", "width", "lines"),
    [
        ("--seed N      repeat a reply", 21, ["--seed N      repeat", "a reply"]),
        (
            "-q       nothing but the answer",
            20,
            ["-q       nothing", "         but the", "         answer"],
        ),
        ("  in full or not", 12, ["  in full", "  or not"]),
        ("kept in /a/very/long/path here", 10, ["kept in", "/a/very/long/path", "here"]),
        ("fits", 5, ["fits"]),
    ],
)
def test_a_line_goes_on_under_its_last_column_and_a_path_stays_whole(
    line: str, width: int, lines: list[str]
):
    assert wrap_words(line, width).split("\n") == lines
