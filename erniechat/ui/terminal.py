"""The two output streams as this program uses them: what each can show, and one live line."""

import os
import select
import time
from collections.abc import Mapping
from typing import IO, TextIO

from erniechat.errors import ErnieChatError
from erniechat.options import DisplayOptions
from erniechat.ui.log import Log
from erniechat.ui.text import ascii_only, clip, one_line, visible
from erniechat.ui.wrap import wrap_words

DIM, RED, RESET = "\x1b[2m", "\x1b[1;31m", "\x1b[0m"
REDRAW_SECONDS = 0.1


class Terminal:
    """Streams with what was found out about them; notes and errors go to stderr.

    Attributes:
        stdout: Holds the answer and nothing else.
        stderr: Holds notes, progress and errors.
        stdin_is_tty: Whether a person can type.
        stdout_is_tty: Whether a person reads the answer as it comes.
        stderr_is_tty: Whether a person reads the notes.
        stdout_color: Whether stdout may hold colours.
        stderr_color: Whether stderr may hold colours.
        moves_cursor: Whether a line may be drawn over; not with --plain or TERM=dumb.
        reflows: Whether it breaks its lines anew when its width changes; a few do not.
        markdown: Whether an answer on stdout is drawn as Markdown.
        quiet: Nothing but errors on stderr.
        live: A line on stderr that is drawn over.
        log: Lines for a bug report.
    """

    def __init__(self, stdin: object, stdout: TextIO, stderr: TextIO) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.stdin_is_tty = is_tty(stdin)
        self.stdout_is_tty = is_tty(stdout)
        self.stderr_is_tty = is_tty(stderr)
        self.configure(DisplayOptions(), {})

    def configure(self, display: DisplayOptions, environ: Mapping[str, str]) -> None:
        """Obey display settings and the environment."""
        plain = display.plain or display.screen_reader
        choice = "never" if plain and display.color == "auto" else display.color
        out_tty, err_tty = self.stdout_is_tty, self.stderr_is_tty
        self.stdout_color = wants_color(choice, out_tty, environ, forced=out_tty)
        self.stderr_color = wants_color(choice, err_tty, environ, forced=True)
        self.moves_cursor = not plain and environ.get("TERM") != "dumb"
        self.reflows = "XTERM_VERSION" not in environ and environ.get("TERM") != "linux"
        self.markdown = display.markdown and self.stdout_is_tty and self.moves_cursor
        self.quiet = display.quiet
        self.log = Log(display.log)
        can = err_tty and self.moves_cursor and not (self.quiet or self.log.to_stderr)
        self.live = LiveLine(self.stderr, can, self.stderr_color)

    def note(self, text: str) -> None:
        """A line about what goes on, unless --quiet."""
        if not self.quiet:
            self._say(f"note: {one_line(text)}")

    def error(self, text: str) -> None:
        """A line about what went wrong, always."""
        label = f"{RED}error:{RESET}" if self.stderr_color else "error:"
        self._say(f"error: {one_line(text)}", label)

    def line(self, text: str) -> None:
        """A line on stderr as it is, control characters made visible, unless --quiet."""
        if not self.quiet:
            self._say(one_line(text))

    def thoughts(self, text: str) -> None:
        """A piece of thinking on stderr, dimmed where there are colours."""
        self.live.wipe()
        self.write_error(f"{DIM}{text}{RESET}" if self.stderr_color else text)

    def _say(self, line: str, label: str = "") -> None:
        if not self.log.to_stderr:
            self.log.write(line)
        self.live.wipe()
        shown = self.wrap(line)
        self.write_error(f"{label}{shown.removeprefix('error:') if label else shown}\n")

    def wrap(self, line: str) -> str:
        """A line for stderr, broken between words where that is a terminal too narrow for it."""
        return wrap_words(line, columns(self.stderr)) if self.stderr_is_tty else line

    def wipe_echo(self) -> None:
        """Take away the ^C that a terminal shows, so that what comes next begins a line."""
        if self.stderr_is_tty and self.moves_cursor:
            self.write_error("\r\x1b[K")

    def write_error(self, text: str) -> None:
        """Write to stderr; a reader of stderr that has gone away is no error."""
        if not is_utf8(self.stderr):
            text = ascii_only(text)
        try:
            self.stderr.write(text)
            self.stderr.flush()
        except (OSError, ValueError):
            return


class LiveLine:
    """One line that is drawn over and leaves no trace; silent where that cannot be."""

    def __init__(self, stream: TextIO, enabled: bool, color: bool = False) -> None:
        self._stream = stream
        self.enabled = enabled
        self._color = color
        self._shown = ""
        self._drawn_at = 0.0

    def show(self, text: str, *, now: bool = False) -> None:
        """Draw a line over the last one, at most ten times a second unless now."""
        if not self.enabled or text == self._shown:
            return
        if not now and self._shown and not self.is_due:
            return
        line = clip(visible(text).replace("\n", " "), columns(self._stream) - 1)
        line = line if is_utf8(self._stream) else ascii_only(line)
        self._write("\r\x1b[K" + (f"{DIM}{line}{RESET}" if self._color else line))
        self._shown = text
        self.restart_clock()

    @property
    def is_due(self) -> bool:
        """Whether the last drawing is so long ago that the next may come."""
        return time.monotonic() - self._drawn_at >= REDRAW_SECONDS

    def restart_clock(self) -> None:
        """Say that something was drawn just now."""
        self._drawn_at = time.monotonic()

    def wipe(self) -> None:
        """Take the line away."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = ""

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self.enabled = False


class AnswerStream:
    """stdout, flushed at each piece; a reader that went away and a full disk are errors."""

    def __init__(self, stream: TextIO, *, sanitize: bool) -> None:
        self._stream = stream
        self._sanitize = sanitize
        self._poll: select.poll | None = None
        self.at_line_start = True
        try:
            self._poll = select.poll()
            self._poll.register(stream.fileno(), 0)
        except (AttributeError, OSError, ValueError):
            self._poll = None

    def write(self, text: str) -> None:
        """Write and flush.

        Raises:
            BrokenPipeError: If nobody reads any more.
            ErnieChatError: If it cannot be written for another reason.
        """
        if not text:
            return
        try:
            self._stream.write(visible(text) if self._sanitize else text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise ErnieChatError(f"cannot write the answer to stdout: {exc.strerror}") from exc
        self.at_line_start = text.endswith("\n")

    def check_reader(self) -> None:
        """Raise BrokenPipeError if nobody reads any more, without writing."""
        if self._poll is not None and any(mask & select.POLLERR for _, mask in self._poll.poll(0)):
            raise BrokenPipeError


def is_utf8(stream: IO[str]) -> bool:
    """Whether a stream can hold any character."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "").startswith("utf8")


def is_tty(stream: object) -> bool:
    """Whether a stream is a terminal; False where it cannot say."""
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]  # asked for by the try
    except (AttributeError, ValueError, OSError):
        return False


def columns(stream: TextIO) -> int:
    """Columns of the terminal behind a stream, 80 where there is none."""
    return size_of(stream)[0]


def size_of(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of the terminal behind a stream, 80 and 24 where there is none."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return 80, 24
    return size.columns or 80, size.lines or 24


def wants_color(choice: str, tty: bool, environ: Mapping[str, str], *, forced: bool) -> bool:
    """Whether a stream gets colours: --color, then NO_COLOR, then FORCE_COLOR, then the TTY.

    Args:
        choice: The value of --color.
        tty: Whether the stream is a terminal.
        environ: The environment.
        forced: Whether FORCE_COLOR counts for this stream; not for a stdout that holds data.
    """
    if choice != "auto":
        return choice == "always"
    if environ.get("NO_COLOR"):
        return False
    if forced and (
        environ.get("FORCE_COLOR") or environ.get("CLICOLOR_FORCE", "0") not in ("", "0")
    ):
        return True
    return tty and environ.get("TERM") != "dumb"


def print_page(terminal: Terminal, text: str, *, for_people: bool = False) -> int:
    """Print a page on stdout, where a full disk is an error; status 0.

    Args:
        terminal: Whose stdout.
        text: Lines.
        for_people: Whether lines are broken between words where stdout is a narrow terminal.
    """
    if for_people and terminal.stdout_is_tty:
        width = columns(terminal.stdout)
        text = "\n".join(wrap_words(line, width) if line else line for line in text.split("\n"))
    AnswerStream(terminal.stdout, sanitize=False).write(text)
    return 0
