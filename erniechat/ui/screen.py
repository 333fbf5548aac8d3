"""What the REPL prints: lines and tables through rich, one live line, streamed text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from erniechat.ui.live import LiveArea
from erniechat.ui.log import Log
from erniechat.ui.markdown.render import Look
from erniechat.ui.terminal import LiveLine, Terminal, is_utf8
from erniechat.ui.text import display_width, one_line, visible
from erniechat.ui.wrap import StreamWrap


@dataclass(slots=True)
class Screen:
    """The one owner of the terminal while no prompt is up."""

    console: Console
    live: LiveLine
    moves_cursor: bool = True
    quiet: bool = False
    log: Log = field(default_factory=Log)

    @property
    def width(self) -> int:
        """Columns now."""
        return self.console.width

    @property
    def area(self) -> LiveArea | None:
        """Lines that can be drawn over, where the terminal can do that."""
        return self.live if isinstance(self.live, LiveArea) and self.live.enabled else None

    @property
    def look(self) -> Look:
        """What can be shown of Markdown."""
        return Look(self.console.color_system is not None, is_utf8(self.console.file))

    def line(self, text: str = "", style: str = "") -> None:
        """One line, wrapped at words where it is too long."""
        self.show(Text(one_line(text), style=style))

    def note(self, text: str) -> None:
        """A dim line about what happened."""
        self.line(text, style="dim")

    def error(self, text: str) -> None:
        """A line about what went wrong."""
        message = Text("error:", style="bold red")
        message.append(f" {one_line(text)}", style="not bold default")
        self.show(message)

    def block(self, text: str, style: str = "") -> None:
        """Text of many lines, control characters made visible."""
        self.show(Text(visible(text), style=style))

    def show(self, renderable: RenderableType) -> None:
        """Anything of rich, without the blanks at the ends of its lines."""
        self.live.wipe()
        with self.console.capture() as captured:
            self.console.print(renderable)
        lines = (line.rstrip(" ") for line in captured.get().split("\n"))
        self.console.file.write("\n".join(lines))
        self.console.file.flush()

    def raw(self, text: str) -> None:
        """Text as it is, control characters made visible; the terminal breaks the lines."""
        self.live.wipe()
        self.console.file.write(visible(text) + "\n")
        self.console.file.flush()

    def stream(self, style: str = "") -> StreamWrap:
        """A writer for text that comes in pieces."""

        def write(text: str) -> None:
            if text:
                self.live.wipe()
                self.console.file.write(self._styled(text, style))
                self.console.file.flush()

        return StreamWrap(write, lambda: self.width, self.moves_cursor)

    def _styled(self, text: str, style: str) -> str:
        if style != "dim" or self.console.color_system is None:
            return text
        return f"\x1b[2m{text}\x1b[22m"


def make_screen(terminal: Terminal) -> Screen:
    """The screen on stdout."""
    console = Console(
        file=terminal.stdout,
        color_system="standard" if terminal.stdout_color else None,
        no_color=not terminal.stdout_color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    live = LiveArea(
        terminal.stdout,
        terminal.stdout_is_tty and terminal.moves_cursor,
        terminal.stdout_color,
        lambda: (console.size.width, console.size.height),
        reflows=terminal.reflows,
    )
    return Screen(console, live, terminal.moves_cursor, terminal.quiet, terminal.log)


def columns_that_fit(rows: Sequence[Sequence[str]], width: int, least: int = 2) -> int:
    """How many columns from the left fit whole into a width, two blanks between; at least so many.

    A narrow terminal gets the first columns instead of all of them cut.
    """
    widest = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    shown = len(widest)
    while shown > least and sum(widest[:shown]) + 2 * (shown - 1) > width:
        shown -= 1
    return shown


def plain_table(*headers: str, right: tuple[int, ...] = (), whole: tuple[int, ...] = ()) -> Table:
    """A table without lines: columns two blanks apart, the header dim.

    Args:
        headers: Of the columns.
        right: Columns of numbers, at the right.
        whole: Other columns that are not broken where it is narrow.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.show_header = bool(headers)
    for number, header in enumerate(headers):
        justify: JustifyMethod = "right" if number in right else "left"
        table.add_column(header, justify=justify, no_wrap=number in (*right, *whole))
    return table
