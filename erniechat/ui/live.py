"""The last lines of the screen, drawn over again and again until they are finished."""

import re
from collections.abc import Callable, Sequence
from typing import TextIO

from erniechat.ui.terminal import DIM, RESET, LiveLine, is_utf8
from erniechat.ui.text import ascii_only, clip, display_width, visible

# Between these a terminal that knows them shows nothing, so that no half-drawn frame is seen.
BEGIN_FRAME, END_FRAME = "\x1b[?2026h", "\x1b[?2026l"
_STYLES = re.compile(r"\x1b\[[\d;]*m")


class LiveArea(LiveLine):
    """A few lines at the end of the output that are drawn over and leave no trace.

    Args:
        stream: The terminal.
        enabled: Whether it can be drawn over; if not, only finished lines are written.
        color: Whether it shows styles.
        size: Columns and lines now.
        reflows: Whether the terminal breaks lines anew when it gets narrower, as most do.
    """

    def __init__(
        self,
        stream: TextIO,
        enabled: bool,
        color: bool,
        size: Callable[[], tuple[int, int]],
        *,
        reflows: bool = True,
    ) -> None:
        super().__init__(stream, enabled, color)
        self._size = size
        self._reflows = reflows
        self._lines: list[str] = []
        self._widths: list[int] = []
        self._drawn_columns = 0

    @property
    def columns(self) -> int:
        """Columns now."""
        return max(self._size()[0], 2)

    def show(self, text: str, *, now: bool = False) -> None:
        """Draw one dim line, at most ten times a second unless now."""
        if self.enabled and text != self._shown and (now or self.is_due or not self._lines):
            self.draw([self.dim(text)])
            self._shown = text

    def dim(self, text: str) -> str:
        """One line of plain text in the style of a note, cut to the width."""
        text = clip(visible(text).replace("\n", " "), self._size()[0] - 1)
        text = text if is_utf8(self._stream) else ascii_only(text)
        return f"{DIM}{text}{RESET}" if self._color else text

    def draw(self, lines: Sequence[str], above: Sequence[str] = ()) -> None:
        """Put lines in the place of the last ones; those above are finished and scroll away.

        Args:
            lines: None wider than the width less one; of too many, the last are drawn.
            above: Lines for good.
        """
        columns, rows = self._size()
        shown = list(lines)[-max(rows - 1, 1) :] if self.enabled else []
        if shown == self._lines and not above and columns == self._drawn_columns:
            return
        keep = 0
        if not above and columns == self._drawn_columns:
            keep = _num_equal(self._lines, shown)
        finished = "".join(f"{line}\n" for line in above)
        frame = self._back_to(keep, columns) + finished + "\n".join(shown[keep:])
        self._stream.write(f"{BEGIN_FRAME}{frame}{END_FRAME}" if self.enabled else frame)
        self._stream.flush()
        self._lines, self._drawn_columns = shown, columns
        self._widths = [display_width(_STYLES.sub("", line)) for line in shown]
        self._shown = ""
        self.restart_clock()

    def forget(self) -> None:
        """The lines have scrolled away, as they do while the program is suspended."""
        self._lines, self._shown, self._drawn_columns = [], "", 0

    def wipe(self) -> None:
        """Take the lines away."""
        if self._lines:
            self.draw([])

    def _back_to(self, number: int, columns: int) -> str:
        """Moves to the start of a drawn line and erases from there."""
        if not self._lines:
            return ""
        heights = [1] * len(self._lines)
        if self._reflows and columns < self._drawn_columns:
            heights = [max(1, -(-width // columns)) for width in self._widths]
        up = sum(heights[number:]) - 1
        # Erasing all from the first line of the screen on would put it into tmux's scrollback.
        return f"\r\x1b[{up}A\x1b[K\x1b[1B\x1b[J\x1b[1A" if up else "\r\x1b[K"


def _num_equal(old: Sequence[str], new: Sequence[str]) -> int:
    """How many lines at the start may stay; the cursor must end on the last, so that is drawn."""
    limit = max(min(len(old), len(new)) - 1, 0)
    return next((index for index in range(limit) if old[index] != new[index]), limit)
