"""An answer that comes in pieces: at its end the screen is as if it had been printed at once."""

import random
import re
from io import StringIO

import pyte
import pytest

from erniechat.ui.answer_view import MarkdownAnswer
from erniechat.ui.live import BEGIN_FRAME, END_FRAME, LiveArea
from erniechat.ui.markdown.render import Look
from erniechat.ui.markdown.stream import MarkdownStream
from tests.bench.render_cost import COST_LIMIT, measure
from tests.ui.markdown_documents import DOCUMENTS

HEIGHT = 12


class Emulator(StringIO):
    """A terminal with scrollback that counts what it is sent."""

    def __init__(self, width: int, height: int = HEIGHT) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(width, height, history=5000)
        self.screen.set_mode(pyte.modes.LNM)  # type: ignore[attr-defined]  # not in its stubs
        self._stream = pyte.Stream(self.screen)
        self.sent = ""

    def write(self, text: str) -> int:
        self.sent += text
        # It takes the two sequences for unknown ones, but joins no emoji.
        self._stream.feed(re.sub("\x1b\\[\\?2026[hl]|[\u200d\ufe0f]", "", text))
        return len(text)

    @property
    def lines(self) -> list[str]:
        """Scrollback and screen, without blanks at the ends of lines."""
        columns = range(self.screen.columns)
        lines = ["".join(row[x].data for x in columns) for row in self.screen.history.top]
        lines = [line.rstrip() for line in [*lines, *self.screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines


class EagerArea(LiveArea):
    """Draws every frame, as if a tenth of a second had passed since the last."""

    @property
    def is_due(self) -> bool:
        return True


def view_on(terminal: Emulator, *, reflows: bool = True) -> MarkdownAnswer:
    screen = terminal.screen
    area = EagerArea(terminal, True, True, lambda: (screen.columns, screen.lines), reflows=reflows)
    return MarkdownAnswer(area, Look(), lambda: 0.0)  # drawing takes no time


def printed_at_once(text: str, width: int) -> list[str]:
    terminal = Emulator(width)
    view = view_on(terminal)
    view.feed(text)
    view.close()
    return terminal.lines


def pieces_of(text: str, rng: random.Random, longest: int) -> list[str]:
    pieces = []
    while text:
        size = rng.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("longest", [6, 60])
@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_screen_and_the_scrollback_are_those_of_printing_at_once(width: int, longest: int):
    assert len(DOCUMENTS) >= 30
    for seed, (name, text) in enumerate(DOCUMENTS.items()):
        terminal = Emulator(width)
        view = view_on(terminal)
        for piece in pieces_of(text, random.Random(seed * width), longest):
            view.feed(piece)
            view.draw()
        view.close()
        assert terminal.lines == printed_at_once(text, width), name


@pytest.mark.parametrize("longest", [1, 7])
@pytest.mark.parametrize("styled", [True, False])
def test_finished_lines_do_not_depend_on_the_pieces(longest: int, styled: bool):
    look = Look(styled=styled)
    for name, text in DOCUMENTS.items():
        whole, cut = MarkdownStream(look), MarkdownStream(look)
        whole.feed(text)
        lines = []
        for piece in pieces_of(text, random.Random(longest), longest):
            cut.feed(piece)
            lines += cut.finished(33)
        assert lines + cut.close(33) == whole.close(33), name


def test_every_block_but_the_last_is_finished():
    stream = MarkdownStream(Look(styled=False))
    stream.feed("# One\n\ntwo\n")
    assert (stream.finished(40), stream.tail(40)) == (["# One"], ["", "two"])
    stream.feed("\n- a\n- b\n- c")
    assert (stream.finished(40), stream.tail(40)) == (["", "two", "", "  • a"], ["  • b", "  • c"])


def test_finished_lines_of_open_code_are_final_and_a_started_fence_does_not_show():
    stream = MarkdownStream(Look(styled=False))
    stream.feed("```py\nx = 1\ny =")
    assert (stream.finished(40), stream.tail(40)) == (["```py", "x = 1"], ["y ="])
    stream.feed(" 2\n``")
    assert (stream.finished(40), stream.tail(40)) == (["y = 2"], [])
    stream.feed("`\nz")
    assert (stream.finished(40), stream.tail(40)) == (["```"], ["", "z"])


def test_numbers_go_on_after_their_items_were_finished():
    stream = MarkdownStream(Look(styled=False))
    for number in range(1, 12):
        stream.feed(f"1. item {number}\n")
        stream.finished(40)
    assert stream.tail(40)[-1] == "  11. item 11"


# --- the live area


def test_the_area_is_never_taller_than_the_screen_and_shows_the_end():
    terminal = Emulator(40)
    view = view_on(terminal)
    view.feed("> " + "\n> ".join(f"line {number}" for number in range(30)))
    view.draw()
    assert len(terminal.screen.history.top) == 0
    assert terminal.lines[-1] == "│ line 29"
    view.close()
    assert terminal.lines == [f"│ line {number}" for number in range(30)]


def test_frames_are_synchronized_and_unchanged_lines_are_not_sent_again():
    terminal = Emulator(40)
    view = view_on(terminal)
    view.feed("> first line\n> second")
    view.draw()
    assert terminal.sent.startswith(BEGIN_FRAME)
    assert terminal.sent.endswith(END_FRAME)
    terminal.sent = ""
    view.feed(" more")
    view.draw()
    assert "first" not in terminal.sent
    terminal.sent = ""
    view.draw()
    assert terminal.sent == ""
    view.close()
    assert terminal.lines == ["│ first line", "│ second more"]


def test_lines_that_go_away_take_the_cursor_back():
    terminal = Emulator(40)
    area = EagerArea(terminal, True, True, lambda: (40, HEIGHT))
    for lines in (["a", "b", "c"], ["a"], ["a", "d"], ["a", "d"], []):
        area.draw(lines)
        assert terminal.lines == lines
    area.draw([], ["end"])
    assert terminal.lines == ["end"]


def test_the_whole_screen_is_never_erased_at_once_for_tmux_would_keep_it():
    terminal = Emulator(40, 4)
    area = EagerArea(terminal, True, True, lambda: (40, 4))
    for lines in (["a"], ["b"], ["c", "d", "e"], ["f", "g", "h"], ["i"], []):
        area.draw(lines)
        assert terminal.lines == lines
    before_erasing = terminal.sent.split("\x1b[J")[:-1]
    assert all(piece.endswith("\x1b[K\x1b[1B") for piece in before_erasing)


def test_ten_frames_a_second_at_most():
    terminal = Emulator(40)
    view = MarkdownAnswer(LiveArea(terminal, True, True, lambda: (40, HEIGHT)), Look())
    for _ in range(50):
        view.feed("word ")
        view.draw()
    assert terminal.sent.count(BEGIN_FRAME) <= 2
    view.close()
    assert " ".join(terminal.lines).split() == ["word"] * 50


@pytest.mark.parametrize("width", [30, 90])
def test_a_resize_in_mid_answer_leaves_no_ghosts(width: int):
    terminal = Emulator(60)
    view = view_on(terminal, reflows=False)  # as the emulator
    view.feed("Finished.\n\n" + "some words " * 12)
    view.draw()
    terminal.screen.resize(HEIGHT, width)
    view.draw()
    view.feed("and an end")
    view.draw()
    view.close()
    assert terminal.lines[0] == "Finished."
    assert " ".join(terminal.lines[1:]).split() == ["some", "words"] * 12 + ["and", "an", "end"]


def test_a_narrower_terminal_that_reflows_is_erased_by_its_new_lines():
    size = [60, HEIGHT]
    out = StringIO()
    area = LiveArea(out, True, False, lambda: (size[0], size[1]))
    area.draw(["x" * 50, "y" * 10])
    size[0] = 20
    out.truncate(0)
    area.draw(["z"])
    assert "\x1b[3A" in out.getvalue()  # 50 columns are three lines of 20, and one of 10


def test_the_rest_of_the_screen_can_be_used_between_frames():
    terminal = Emulator(40)
    view = view_on(terminal)
    view.feed("text")
    view.draw("stopping …")
    assert terminal.lines == ["text", "stopping …"]
    view.draw()
    assert terminal.lines == ["text"]


# --- cost


def test_drawing_takes_a_tenth_of_the_time_however_long_a_block_is():
    terminal = Emulator(40)
    area = EagerArea(terminal, True, True, lambda: (40, HEIGHT))
    times = iter([0.0, 0.5, 1.0, 4.9, 5.1, 5.6])  # each drawing takes half a second
    view = MarkdownAnswer(area, Look(), lambda: next(times))
    drawn = []
    for word in ("one", " two", " three", " four"):
        view.feed(word)
        view.draw()
        drawn.append(terminal.lines[-1])
    assert drawn == ["one", "one", "one", "one two three four"]


def test_drawing_costs_at_most_a_tenth_of_redrawing_the_whole_answer():
    cost = measure(num_paragraphs=6, every=8)
    assert cost.ours < COST_LIMIT * cost.rich_live, cost
