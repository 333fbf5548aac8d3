"""SIGINT, SIGTERM and SIGHUP as one exception in the main thread; a second one ends at once."""

import os
import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end; the exit status is 128 + its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """What a shell calls the end by this signal."""
        return 128 + self.signum


def _tty_restorer() -> Callable[[], None]:
    """A function that puts the terminal behind stdin back into the mode it is in now."""
    try:
        import termios

        before = termios.tcgetattr(0)
    except (ImportError, OSError, ValueError, termios.error):
        return lambda: None

    def restore() -> None:
        with suppress(OSError, termios.error):  # it may be gone
            if termios.tcgetattr(0) != before:  # to set it in the background would stop us
                termios.tcsetattr(0, termios.TCSANOW, before)

    return restore


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within: the first signal raises Interrupted, the second leaves whatever hangs.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    restore_tty = _tty_restorer()

    def handle(signum: int, frame: types.FrameType | None) -> None:
        if seen:
            restore_tty()
            os._exit(128 + signum)
        seen.append(signum)
        raise Interrupted(signum)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), handle) for name in names}
    try:
        yield
    finally:
        if seen:
            restore_tty()  # whoever was just changing its mode had no time to
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
