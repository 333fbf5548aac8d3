"""Progress in words and bars, carried from the engine's thread to the screen."""

import time
from collections import deque

from erniechat.events import Progress
from erniechat.ui.live import LiveArea
from erniechat.ui.terminal import LiveLine, Terminal, size_of
from erniechat.ui.text import count, gib, rate, seconds

_LINE_SECONDS = 5.0
_SPEED_SECONDS = 10.0  # over which a speed is taken
_BAR_COLUMNS = 32
_GB = 1e9
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


def reading_text(progress: Progress, cached: int, elapsed: float) -> str:
    """How far a prompt is read: ``reading 1,957 tok (182 cached) · 61 % · 214 tok/s · 4 s left``.

    Args:
        progress: The newest state; cached tokens count as read.
        cached: Tokens that needed no reading.
        elapsed: Seconds since the reading began.
    """
    held = f" ({count(cached)} cached)" if cached else ""
    text = f"reading {count(progress.total)} tok{held}"
    num_read, left = progress.done - cached, progress.total - progress.done
    if num_read <= 0 or elapsed <= 0:
        return text
    speed = num_read / elapsed
    percent = 100 * progress.done // progress.total
    return f"{text} · {percent} % · {rate(num_read, elapsed)} tok/s · {seconds(left / speed)} left"


class Stage:
    """One of the bars: how far it is, how fast, and how long it will take."""

    def __init__(self, progress: Progress, now: float) -> None:
        self.latest = progress
        self.began_at = self.ended_at = now
        self.first = progress.done
        self._seen: deque[tuple[float, int]] = deque([(now, progress.done)])

    def update(self, progress: Progress, now: float) -> None:
        """Take a newer state."""
        self.latest, self.ended_at = progress, now
        self._seen.append((now, progress.done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _SPEED_SECONDS:
            self._seen.popleft()

    @property
    def is_done(self) -> bool:
        """Whether all bytes are done."""
        return self.latest.done >= self.latest.total

    @property
    def speed(self) -> float:
        """Bytes a second lately."""
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def bar(self, label: str, columns: int) -> str:
        """``download   ━━━━━━╺──────   24.9/43.7 GB   104 MB/s   3 min 01 s left``."""
        done, total = self.latest.done, max(self.latest.total, 1)
        texts = [f"{done / _GB:.1f}/{total / _GB:.1f} GB"]
        if self.speed > 0 and not self.is_done:
            texts.append(f"{self.speed / 1e6:.0f} MB/s")
            texts.append(f"{seconds((total - done) / self.speed)} left")
        tail = "   ".join(texts)
        width = max(4, min(_BAR_COLUMNS, columns - len(tail) - 16))
        filled = min(width * done // total, width)
        return f"{label:<10} {'━' * filled}{'─' * (width - filled)}   {tail}"


class LoadProgress:
    """Takes Progress on any thread; draws it from the main one.

    Where no line can be drawn over, a line is printed for each tenth, at most one in five
    seconds, so that a log stays short and a quick load silent.
    """

    def __init__(self, terminal: Terminal, model: str) -> None:
        self._terminal = terminal
        self._model = model
        self._latest: Progress | None = None
        self._stages: dict[str, Stage] = {}
        self._told_at = time.monotonic()
        self._told = ("", -1)
        self._warnings: deque[str] = deque()
        if terminal.live.enabled and not isinstance(terminal.live, LiveArea):
            terminal.live.wipe()
            terminal.live = LiveArea(
                terminal.stderr,
                True,
                terminal.stderr_color,
                lambda: size_of(terminal.stderr),
                reflows=terminal.reflows,
            )

    def __call__(self, progress: Progress) -> None:
        """Keep the newest state."""
        now = time.monotonic()
        if stage := self._stages.get(progress.stage):
            stage.update(progress, now)
        else:
            self._stages[progress.stage] = Stage(progress, now)
        self._latest = progress

    def warn(self, text: str) -> None:
        """Keep a warning until the main thread says it."""
        self._warnings.append(text)

    def say_warnings(self) -> None:
        """Say what did not work and is not needed, and what a first start has done."""
        while self._warnings:
            self._terminal.note(self._warnings.popleft())
        download, quantize = self._stages.get("download"), self._stages.get("quantize")
        if download and quantize and download.is_done and quantize.is_done:
            self._stages.clear()
            fetched = download.latest.total - download.first
            more = max(0.0, quantize.ended_at - download.ended_at)
            took = seconds(download.ended_at - download.began_at)
            self._terminal.note(
                f"downloaded {fetched / _GB:.1f} GB in {took}, quantized in {seconds(more)} more; "
                "the next start needs neither"
            )

    @property
    def text(self) -> str:
        """What is going on, in one line."""
        if self._latest is None:
            return f"loading {self._model}"
        download, quantize = self._stages.get("download"), self._stages.get("quantize")
        if download and not download.is_done:
            more = ""
            if quantize and quantize.latest.total:
                more = f" · quantized {100 * quantize.latest.done // quantize.latest.total} %"
            return progress_text(download.latest, self._model) + more
        return progress_text(self._latest, self._model)

    def bars(self, columns: int) -> list[str]:
        """Download, quantizing and loading as three bars; one line where nothing is fetched."""
        download, quantize = self._stages.get("download"), self._stages.get("quantize")
        if download is None:
            return [self.text]
        behind = "quantize   waiting for the first file"
        done = bool(quantize and quantize.is_done)
        return [
            download.bar("download", columns),
            quantize.bar("quantize", columns) if quantize else behind,
            "load       " + ("now" if done else "waiting      Ctrl-C stops; what is done is kept"),
        ]

    def draw_on(self, live: LiveLine) -> None:
        """Draw the newest state over the last one."""
        if isinstance(live, LiveArea) and "download" in self._stages:
            if live.enabled and live.is_due:
                live.draw([live.dim(line) for line in self.bars(live.columns)])
        else:
            live.show(self.text)

    def draw(self) -> None:
        """Show the newest state."""
        if self._terminal.live.enabled:
            self.draw_on(self._terminal.live)
        elif self._latest is not None and self._latest.total > 0:
            download = self._stages.get("download")
            shown = download.latest if download and not download.is_done else self._latest
            tenth = 10 * shown.done // max(shown.total, 1)
            now = time.monotonic()
            step = (shown.stage, tenth)
            if step != self._told and now - self._told_at >= _LINE_SECONDS:
                self._told, self._told_at = step, now
                self._terminal.line(self.text)
