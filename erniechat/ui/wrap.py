"""Streamed text wrapped at words, while the last word is still being written."""

import re
import textwrap
from collections.abc import Callable

from erniechat.ui.text import char_width, display_width

TAB = 4


def wrap_words(line: str, width: int) -> str:
    """A line with breaks between words where it is wider than width columns.

    What goes on is under its last column, if that begins in the left half. A path stays whole.
    """
    gaps = [gap.end() for gap in re.finditer(r"^ +|  +", line) if gap.end() <= width // 2]
    return textwrap.fill(
        line,
        max(width - 1, 1),
        subsequent_indent=" " * max(gaps, default=0),
        break_long_words=False,
        break_on_hyphens=False,
    )


class StreamWrap:
    """Writes pieces of text at once and moves a word that grows too long to the next line.

    Args:
        write: Takes text for the terminal.
        width: Columns now; the last one stays empty, for terminals wrap on their own there.
        moves_cursor: Whether text may be taken back; if not, the terminal does the wrapping.
    """

    def __init__(
        self, write: Callable[[str], object], width: Callable[[], int], moves_cursor: bool = True
    ) -> None:
        self._write = write
        self._width = width
        self._moves_cursor = moves_cursor
        self._column = 0  # where the unfinished word begins
        self._word = ""
        self._out: list[str] = []

    @property
    def at_line_start(self) -> bool:
        """Whether the next character starts a line."""
        return self._column == 0 and not self._word

    def feed(self, text: str) -> None:
        """Write a piece."""
        if not self._moves_cursor:
            self._write(text)
            self._column = 0 if text.endswith("\n") else 1 if text else self._column
            return
        limit = max(self._width() - 1, 4)
        drawn = self._word  # what of the word is on the screen already
        for char in text:
            if char == "\n":
                drawn = self._end_word(drawn)
                self._out.append("\n")
                self._column = 0
            elif char in " \t":
                drawn = self._end_word(drawn)
                self._space(TAB - self._column % TAB if char == "\t" else 1, limit)
            elif char_width(char) == 2:
                drawn = self._end_word(drawn)
                self._wide(char, limit)
            else:
                drawn = self._grow(char, drawn, limit)
        self._out.append(self._word[len(drawn) :])
        self._write("".join(self._out))
        self._out.clear()

    def _end_word(self, drawn: str) -> str:
        """Make the word permanent."""
        self._out.append(self._word[len(drawn) :])
        self._column += display_width(self._word)
        self._word = ""
        return ""

    def _space(self, num_columns: int, limit: int) -> None:
        if self._column + num_columns <= limit:
            self._out.append(" " * num_columns)
            self._column += num_columns

    def _wide(self, char: str, limit: int) -> None:
        """A wide character is a word of its own: lines of Chinese break anywhere."""
        if self._column + 2 > limit:
            self._out.append("\n")
            self._column = 0
        self._out.append(char)
        self._column += 2

    def _grow(self, char: str, drawn: str, limit: int) -> str:
        """Add a character to the word; return what of the word is on the screen."""
        grown = self._word + char
        if self._column + display_width(grown) <= limit:
            self._word = grown
            return drawn
        if self._column == 0:  # longer than a line: cut it
            self._out.append(self._word[len(drawn) :] + "\n")
            self._word = char
            return ""
        if drawn:
            self._out.append(f"\x1b[{display_width(drawn)}D\x1b[K")
        self._out.append("\n")
        self._column, self._word = 0, grown
        return ""
