"""How a failure is told: one line on stderr, and with --json an object on stdout."""

import errno
import io
import json
import os
import re
from contextlib import suppress
from typing import TextIO, cast

from erniechat.errors import ErnieChatError
from erniechat.ui.terminal import Terminal
from erniechat.ui.text import one_line, visible


def describe(exc: Exception) -> str:
    """A bug in one line."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def error_code(exc: Exception) -> str:
    """The kind of an error as a word: UsageError is ``usage``, a bug ``internal``."""
    if not isinstance(exc, ErnieChatError):
        return "internal"
    name = type(exc).__name__.removesuffix("Error")
    return "error" if name == "ErnieChat" else re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def report_failure(exc: Exception, terminal: Terminal, *, form: str, debug: bool) -> int:
    """Say what went wrong, on stderr and with --json on stdout as well; the exit status.

    Args:
        exc: An error for the user, or a bug.
        terminal: Where to say it.
        form: text, or json or jsonl where stdout gets an object as well.
        debug: Whether the traceback is shown.
    """
    status = exc.exit_status if isinstance(exc, ErnieChatError) else 1
    message, hint = str(exc), ""
    if isinstance(exc, ErnieChatError):
        message, hint = exc.message, exc.hint
    else:
        message = describe(exc)
    terminal.live.wipe()
    terminal.log.failure(exc)
    if debug:
        import traceback

        terminal.write_error(visible("".join(traceback.format_exception(exc))))
    if isinstance(exc, ErnieChatError):
        terminal.error(str(exc))
    else:
        tail = "" if debug else " (ERNIECHAT_DEBUG=1 shows where)"
        terminal.write_error(f"internal error: {one_line(message)}{tail}\n")
    error = {"code": error_code(exc), "message": message, "hint": hint, "exit_status": status}
    try:
        if form != "text":
            told = {"error": error} if form == "json" else {"type": "error", **error}
            terminal.stdout.write(json.dumps(told) + "\n")
        terminal.stdout.flush()
    except OSError:
        silence(terminal.stdout)
    return status


def silence(stream: TextIO) -> None:
    """Let the interpreter's last flush of a stream that cannot be written go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return


def flush_or_silence(stream: TextIO | None) -> None:
    """Flush a stream for the last time; one that cannot be flushed is left in peace.

    The interpreter would try again when it ends, and leave with status 120.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        silence(stream)
        with suppress(OSError, ValueError):
            stream.flush()


def closed_stream(*, is_error: bool) -> TextIO:
    """What takes the place of a standard stream that the program was started without.

    Args:
        is_error: Whether writing to it is one; notes may get lost, an answer may not.
    """
    return cast(TextIO, _ClosedStream(is_error=is_error))


class _ClosedStream(io.TextIOBase):
    def __init__(self, *, is_error: bool) -> None:
        self._is_error = is_error

    def write(self, text: str) -> int:
        if self._is_error:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return len(text)


def fill_descriptors() -> None:
    """Put the null device where a standard stream is closed.

    Else the next file that is opened would get its number, and what a library prints.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
