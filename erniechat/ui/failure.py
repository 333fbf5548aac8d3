"""How a failure is told: one line on stderr, and with --json an object on stdout."""

import json
import os
import re
from typing import TextIO

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
