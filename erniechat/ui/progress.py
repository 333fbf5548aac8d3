"""Progress in words, and the load's progress carried from the engine's thread to the screen."""

import time
from collections import deque

from erniechat.events import Progress
from erniechat.ui.terminal import Terminal
from erniechat.ui.text import count, gib

_LINE_SECONDS = 5.0
_VERBS = {
    "load": "loading",
    "quantize": "quantizing",
    "download": "downloading",
    "read": "reading",
    "wait": "waiting for another process that quantizes",
}


def progress_text(progress: Progress, what: str = "") -> str:
    """A stage in one line: ``loading mini · 1.2 of 11.7 GiB · 10 %``."""
    verb = _VERBS[progress.stage]
    start = f"{verb} {what}" if what else verb
    if progress.total <= 0:
        return start
    percent = f"{100 * progress.done // progress.total} %"
    if progress.stage == "read":
        return f"{start} {count(progress.total)} tok · {percent}"
    return f"{start} · {gib(progress.done)} of {gib(progress.total)} · {percent}"


class LoadProgress:
    """Takes Progress on any thread; draws it from the main one.

    Where no line can be drawn over, a line is printed for each tenth, at most one in five
    seconds, so that a log stays short and a quick load silent.
    """

    def __init__(self, terminal: Terminal, model: str) -> None:
        self._terminal = terminal
        self._model = model
        self._latest: Progress | None = None
        self._told_at = time.monotonic()
        self._told = ("", -1)
        self._warnings: deque[str] = deque()

    def __call__(self, progress: Progress) -> None:
        """Keep the newest state."""
        self._latest = progress

    def warn(self, text: str) -> None:
        """Keep a warning until the main thread says it."""
        self._warnings.append(text)

    def say_warnings(self) -> None:
        """Say what did not work and is not needed."""
        while self._warnings:
            self._terminal.note(self._warnings.popleft())

    @property
    def text(self) -> str:
        """What is going on, in one line."""
        if self._latest is None:
            return f"loading {self._model}"
        return progress_text(self._latest, self._model)

    def draw(self) -> None:
        """Show the newest state."""
        if self._terminal.live.enabled:
            self._terminal.live.show(self.text)
        elif self._latest is not None and self._latest.total > 0:
            tenth = 10 * self._latest.done // self._latest.total
            now = time.monotonic()
            step = (self._latest.stage, tenth)
            if step != self._told and now - self._told_at >= _LINE_SECONDS:
                self._told, self._told_at = step, now
                self._terminal.line(self.text)
