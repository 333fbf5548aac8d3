"""A program in a pseudo-terminal whose whole screen can be read: pexpect drives, pyte draws."""

import os
import re
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pexpect
import pyte

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0  # costs nothing unless it is missed; a busy machine may need it


class TerminalRun:
    """One run of a command in a pseudo-terminal of a given size."""

    def __init__(
        self, command: Sequence[str], *, width: int = 80, height: int = 24, **environ: str
    ) -> None:
        self.screen = pyte.HistoryScreen(width, height, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self.bytes = b""
        self._last_mode: list[object] = []
        base = {key: value for key, value in os.environ.items() if "ERNIECHAT" not in key}
        base |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        base |= {"ERNIECHAT_SAVE": "no", "ERNIECHAT_HISTORY": "no"}  # tests say if they want it
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
            base.pop(name, None)
        self.child = pexpect.spawn(
            command[0],
            list(command[1:]),
            env=base | environ,
            dimensions=(height, width),
            cwd=str(ROOT),
            timeout=DEADLINE,
        )
        self.screen.write_process_input = self._answer  # type: ignore[method-assign]  # queries

    def _answer(self, data: str) -> None:
        self.child.send(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.child.close(force=True)

    @property
    def lines(self) -> list[str]:
        """The screen, without blanks at the ends of lines and empty lines at the end."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def pump(self, seconds: float = 0.02) -> bool:
        """Draw what has arrived; False once the program has ended."""
        try:
            data = self.child.read_nonblocking(1 << 16, seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.bytes += data
        self._stream.feed(data)
        return True

    def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.pump():
            pass

    def wait(self, condition: str | Callable[[], bool], timeout: float = DEADLINE) -> None:
        """Draw until a pattern is on the screen, or a condition holds."""
        end = time.monotonic() + timeout
        if isinstance(condition, str):
            pattern = condition
            condition = lambda: re.search(pattern, self.text) is not None  # noqa: E731
        while not condition():
            alive = self.pump()
            if condition():
                return
            if not alive or time.monotonic() > end:
                raise AssertionError(f"never came: {condition}\n{self.text}")

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def end(self) -> int:
        """Draw until the program ends; its exit status."""
        end = time.monotonic() + DEADLINE
        while self.pump():
            if time.monotonic() > end:
                raise AssertionError(f"did not end\n{self.text}")
        self._last_mode = self.mode
        self.child.close()
        if self.child.exitstatus is None:
            return 128 + int(self.child.signalstatus or 0)
        return int(self.child.exitstatus)

    @property
    def mode(self) -> list[object]:
        """The terminal's settings, as `stty -g` shows them."""
        if self.child.closed:
            return self._last_mode
        return termios.tcgetattr(self.child.child_fd)


def erniechat(scenario: str, *arguments: str, **kwargs: object) -> TerminalRun:
    """The real command line on a scripted backend."""
    command = [sys.executable, "-m", "tests.ui.drive_fake", scenario, *arguments]
    return TerminalRun(command, **kwargs)  # type: ignore[arg-type]  # passed on
