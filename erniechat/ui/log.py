"""What the program does, line by line, for a bug report: into a file, or with -vv to stderr.

Times, sizes, settings and errors with their traceback; never what was said.
"""

import os
import sys
import time
import traceback

from erniechat.errors import UsageError
from erniechat.paths import user_path
from erniechat.ui.text import one_line, visible

STDERR = "-"


class Log:
    """Lines with the time, or nothing where no log is asked for.

    Args:
        target: A file to append to, "-" for stderr, None for no log.

    Raises:
        UsageError: If the file cannot be opened.
    """

    def __init__(self, target: str | None = None) -> None:
        self._file = None
        self.to_stderr = target == STDERR
        if target is None or self.to_stderr:
            return
        path = user_path(target)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as exc:
            raise UsageError(f'cannot write --log "{path}": {exc.strerror}') from exc
        self._file = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> None:
        """One line; a log that cannot be written costs nothing else."""
        self._put(one_line(text))

    def failure(self, exc: BaseException) -> None:
        """An error, with where it was raised."""
        for part in traceback.format_exception(exc):
            for line in part.rstrip("\n").split("\n"):
                self._put(visible(line))

    def _put(self, line: str) -> None:
        stream = sys.stderr if self.to_stderr else self._file
        if stream is None:
            return
        milliseconds = f"{time.time() % 1:.3f}"[1:]
        try:
            stream.write(f"{time.strftime('%H:%M:%S')}{milliseconds} {line}\n")
            stream.flush()
        except (OSError, ValueError):
            return
