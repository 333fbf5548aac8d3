"""The keyboard while the model works: owned, so that no key lands in the answer.

Keys that stop, suspend or unfold act at once; all others are kept for the next prompt. One context
manager takes the terminal and gives it back on every way out.
"""

import os
import select
import signal
import sys
import threading
import time
import types
from typing import Literal, Protocol, Self

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

ESCAPE_SECONDS = 0.05
_DROPPED = {Keys.ControlD, Keys.CPRResponse, Keys.Vt100MouseEvent, Keys.Ignore}

Action = Literal["interrupt", "stop", "unfold", "resumed"]


class KeyWatch(Protocol):
    """What the loop of a reply asks of the keyboard."""

    def __enter__(self) -> Self:
        """Take the keyboard."""
        ...

    def __exit__(self, *exc: object) -> None:
        """Give it back."""
        ...

    def poll(self, timeout: float) -> list[Action]:
        """Wait up to timeout seconds; what the keys pressed since ask for."""
        ...


class _SigintFlag:
    """Within: SIGINT sets a flag instead of raising."""

    def __init__(self) -> None:
        self._seen = False
        self._before: object = None

    def start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        self._seen = True

    def take(self) -> list[Action]:
        seen, self._seen = self._seen, False
        return ["interrupt"] if seen else []

    def end(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]  # it came from there


class RawKeys:
    """Every key by itself, unechoed; what is typed ahead goes into the next prompt."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._sigint = _SigintFlag()
        self._kept: list[KeyPress] = []
        self._read_at = 0.0
        self._due: list[Action] = []

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._sigint.start()
        self._raw_mode = self._source.raw_mode()
        self._raw_mode.__enter__()
        self._due = self._sort([as_typed(key) for key in self._pending()])
        return self

    def _pending(self) -> list[KeyPress]:
        ready, _, _ = select.select([self._source.fileno()], [], [], 0)
        return self._source.read_keys() if ready else []

    def __exit__(self, *exc: object) -> None:
        """Give it back, and the keys to the next prompt."""
        self._kept += [key for key in self._source.flush_keys() if key.key not in _DROPPED]
        store_typeahead(self._source, self._kept)
        self._kept = []
        self._raw_mode.__exit__(None, None, None)
        self._sigint.end()

    def poll(self, timeout: float) -> list[Action]:
        """Wait up to timeout seconds for a key.

        Raises:
            EOFError: If the terminal is gone.
        """
        if self._due:
            due, self._due = self._due, []
            return due
        ready, _, _ = select.select([self._source.fileno()], [], [], timeout)
        if ready:
            keys = self._source.read_keys()
            self._read_at = time.monotonic()
            if self._source.closed:
                raise EOFError
            return self._sigint.take() + self._sort(keys)
        actions = self._sigint.take()
        if time.monotonic() - self._read_at >= ESCAPE_SECONDS:
            # A lone Esc comes out here; as the start of a longer sequence it came with it above.
            keys = self._source.flush_keys()
            if keys and keys[-1].key == Keys.Escape:
                keys.pop()
                actions.append("stop")
            actions += self._sort(keys)
        return actions

    def _sort(self, keys: list[KeyPress]) -> list[Action]:
        actions: list[Action] = []
        for key in keys:
            if key.key == Keys.ControlC:
                actions.append("interrupt")
            elif key.key == Keys.ControlZ:
                self._suspend()
                actions.append("resumed")
            elif key.key == Keys.ControlO:
                actions.append("unfold")
            elif key.key not in _DROPPED:
                self._kept.append(key)
        return actions

    def _suspend(self) -> None:
        """Stop as a job of the shell, with its terminal as it was; go on after `fg`."""
        self._raw_mode.__exit__(None, None, None)
        os.kill(os.getpid(), signal.SIGTSTP)
        self._raw_mode = self._source.raw_mode()
        self._raw_mode.__enter__()


def as_typed(key: KeyPress) -> KeyPress:
    """A key that came before the terminal was ours: there it made a newline of Enter."""
    return KeyPress(Keys.ControlM, "\r") if key.key == Keys.ControlJ else key


class QuietKeys:
    """For --plain and TERM=dumb: lines stay with the terminal, unechoed; only Ctrl-C acts."""

    def __init__(self) -> None:
        self._sigint = _SigintFlag()
        self._before: list[object] | None = None

    def __enter__(self) -> Self:
        """Turn the echo off."""
        self._sigint.start()
        try:
            import termios

            self._before = termios.tcgetattr(sys.stdin.fileno())
            quiet = list(self._before)
            quiet[3] = termios.tcgetattr(sys.stdin.fileno())[3] & ~termios.ECHO
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, quiet)  # type: ignore[arg-type]  # as read
        except (ImportError, OSError, ValueError):
            self._before = None
        return self

    def __exit__(self, *exc: object) -> None:
        """Turn it on again."""
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._before)  # type: ignore[arg-type]  # as read
        self._sigint.end()

    def poll(self, timeout: float) -> list[Action]:
        """Wait timeout seconds."""
        time.sleep(timeout)
        return self._sigint.take()
