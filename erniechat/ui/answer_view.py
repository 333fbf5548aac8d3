"""The text of an answer on the screen: as Markdown where it can be drawn over, else as it comes."""

import time
from collections.abc import Callable
from typing import Protocol

from erniechat.ui.live import LiveArea
from erniechat.ui.markdown.render import Look
from erniechat.ui.markdown.stream import MarkdownStream
from erniechat.ui.terminal import Terminal, is_utf8, size_of
from erniechat.ui.wrap import StreamWrap

SHARE = 0.1  # of the time may go into drawing; the rest belongs to the model


class AnswerView(Protocol):
    """What draws the text of an answer; control characters in it are visible already."""

    def feed(self, text: str) -> None:
        """Take a piece."""
        ...

    def draw(self, note: str = "") -> None:
        """Bring the screen up to date, with a note under the text where there is one."""
        ...

    def close(self) -> None:
        """The text is complete; the next output starts a line."""
        ...


class PlainAnswer:
    """The text as it is, wrapped at words."""

    def __init__(self, stream: StreamWrap) -> None:
        self._stream = stream

    def feed(self, text: str) -> None:
        """Write a piece at once."""
        self._stream.feed(text)

    def draw(self, note: str = "") -> None:
        """Nothing: the text is on the screen already."""
        if note:
            self.close()

    def close(self) -> None:
        """End the line."""
        if not self._stream.at_line_start:
            self._stream.feed("\n")


class ParagraphAnswer(PlainAnswer):
    """The text as it is, a whole paragraph at a time, for a screen reader."""

    def __init__(self, stream: StreamWrap) -> None:
        super().__init__(stream)
        self._held = ""

    def feed(self, text: str) -> None:
        """Write what is complete."""
        complete, blank_line, rest = (self._held + text).rpartition("\n\n")
        if complete:
            super().feed(complete + blank_line)
        self._held = rest if complete else self._held + text

    def draw(self, note: str = "") -> None:
        """Nothing: half a paragraph is not read out."""

    def close(self) -> None:
        """Write the rest, and end the line."""
        super().feed(self._held)
        self._held = ""
        super().close()


class MarkdownAnswer:
    """Finished blocks for good, the last one drawn again as it grows.

    Args:
        area: Where the unfinished end is drawn, at most ten times a second.
        look: What the terminal can show.
        clock: Seconds.
    """

    def __init__(
        self, area: LiveArea, look: Look, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._area = area
        self._clock = clock
        self._rests_until = float("-inf")
        self._stream = MarkdownStream(look)
        self._is_stale = False
        self._drawn_columns = 0
        self._note = ""

    def feed(self, text: str) -> None:
        """Take a piece; it is drawn when the next frame is due."""
        self._stream.feed(text)
        self._is_stale = True

    def draw(self, note: str = "") -> None:
        """Draw a frame, if anything has changed and one is due."""
        columns = self._area.columns
        changed = self._is_stale or columns != self._drawn_columns or note != self._note
        began = self._clock()
        if not changed or not self._area.is_due or began < self._rests_until:
            return
        above = self._stream.finished(columns - 1)
        lines = self._stream.tail(columns - 1)
        self._area.draw([*lines, *([self._area.dim(note)] if note else [])], above)
        self._is_stale, self._drawn_columns, self._note = False, columns, note
        ended = self._clock()
        self._rests_until = ended + (ended - began) * (1 / SHARE - 1)

    def close(self) -> None:
        """Everything for good."""
        width = self._area.columns - 1
        finished = self._stream.finished(width)
        self._area.draw([], [*finished, *self._stream.close(width)])
        self._is_stale = False


def markdown_on(terminal: Terminal) -> MarkdownAnswer:
    """An answer drawn on the terminal behind stdout."""
    area = LiveArea(
        terminal.stdout,
        True,
        terminal.stdout_color,
        lambda: size_of(terminal.stdout),
        reflows=terminal.reflows,
    )
    return MarkdownAnswer(area, Look(terminal.stdout_color, is_utf8(terminal.stdout)))
