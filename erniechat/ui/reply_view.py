"""Draws one reply in the REPL as it comes: reading, thinking, answering, and its last line."""

import json
import time
from collections.abc import Callable, Sequence

from erniechat.events import Progress, StreamEvent, TextDelta, ThinkingDelta, ToolCall, TurnEnd
from erniechat.ui.progress import progress_text
from erniechat.ui.reply import (
    AnswerTrim,
    ReplyRecord,
    call_arguments,
    thinking_line,
    thought_line,
)
from erniechat.ui.screen import Screen
from erniechat.ui.text import rate, seconds, visible
from erniechat.ui.wrap import StreamWrap

QUIET_SECONDS = 0.5
STOP_HINT = "Esc stops"


class ReplyView:
    """The state machine of one reply: waiting → thinking → answering.

    Args:
        screen: Where to draw.
        thoughts: full, summary or none.
        count_tokens: Counts the thoughts once they are complete.
        keep_start: Whether white space before the answer is part of it (raw completion).
    """

    def __init__(
        self,
        screen: Screen,
        thoughts: str,
        count_tokens: Callable[[str], int],
        keep_start: bool = False,
    ) -> None:
        self.record = ReplyRecord()
        self._screen = screen
        self._thoughts = thoughts
        self._count_tokens = count_tokens
        self._trim = AnswerTrim(keep_start)
        self._reading: Progress | None = None
        self._thinking_since: float | None = None
        self._stopping_since: float | None = None
        self._thought_text: StreamWrap | None = None
        self._answer: StreamWrap | None = None

    def show(self, events: Sequence[StreamEvent]) -> None:
        """Take a group of events in, and draw them."""
        answer = ""
        for event in events:
            self.record.add(event)
            match event:
                case Progress():
                    self._reading = event
                case ThinkingDelta(text):
                    self._think(text)
                case TextDelta(text):
                    self._end_thinking()
                    answer += self._trim.feed(text)
        if answer:
            self._write_answer(visible(answer))
        self._tick()

    def _think(self, text: str) -> None:
        if self._thinking_since is None:
            self._thinking_since = time.monotonic()
        if self._thoughts == "full":
            if self._thought_text is None:
                text = text.lstrip()
                self._thought_text = self._screen.stream("dim") if text else None
            if self._thought_text is not None:
                self._thought_text.feed(visible(text))

    def _end_thinking(self) -> None:
        if self._thinking_since is None:
            return
        spent, self._thinking_since = time.monotonic() - self._thinking_since, None
        if self._thought_text is not None:
            self._close(self._thought_text)
        if self._thoughts != "none":
            num_tokens = self._count_tokens(self.record.thoughts)
            reached = self.record.budget_reached
            self._screen.note(thought_line(seconds(spent), num_tokens, reached))
            self._screen.line()

    def _write_answer(self, text: str) -> None:
        if self._answer is None:
            self._answer = self._screen.stream()
        self._answer.feed(text)

    def _close(self, text: StreamWrap) -> None:
        if not text.at_line_start:
            text.feed("\n")

    def stopping(self) -> None:
        """Say that a stop was asked for."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self._tick()

    def _tick(self) -> None:
        """Draw the live line, where no text is being written."""
        if self._stopping_since is not None:
            self._tick_stopping(time.monotonic() - self._stopping_since)
            return
        if self._answer is not None or self._thought_text is not None:
            return
        if self._thinking_since is not None and self._thoughts == "summary":
            spent = time.monotonic() - self._thinking_since
            line = thinking_line(seconds(spent), self.record.num_thinking_deltas)
            self._screen.live.show(f"{line}    {STOP_HINT}")
        elif self.record.elapsed > QUIET_SECONDS:
            text = f"working {seconds(self.record.elapsed)}"
            if self._reading is not None and self._thinking_since is None:
                text = progress_text(self._reading)
            self._screen.live.show(f"{text}    {STOP_HINT}")

    def _tick_stopping(self, waited: float) -> None:
        """A step that takes long to end is worth a line of its own."""
        if waited < QUIET_SECONDS:
            return
        for text in (self._thought_text, self._answer):
            if text is not None:
                self._close(text)
        self._screen.live.show("stopping …    Ctrl-C again leaves")

    def finish(self) -> None:
        """End the text and show the calls."""
        self._screen.live.wipe()
        self._end_thinking()
        if self._answer is not None:
            self._close(self._answer)
        for call in self.record.calls:
            if self._answer is not None:
                self._screen.line()
            self._screen.line(call_line(call), style="bold")

    def summary(self, end: TurnEnd) -> str:
        """The line under an answer: ``118 tok · 67.2 tok/s · thought 6.4 s of 8.2 s``."""
        parts = [f"{end.usage.answer:,} tok"]
        if end.seconds.write > 0:
            parts.append(f"{rate(end.usage.answer, end.seconds.write)} tok/s")
        if end.usage.thinking:
            whole = end.seconds.read + end.seconds.think + end.seconds.write
            parts.append(f"thought {seconds(end.seconds.think)} of {seconds(whole)}")
        return " · ".join(parts)


def call_line(call: ToolCall) -> str:
    """A call as it would be written in code: ``→ get_weather(city="Paris")``."""
    arguments = call_arguments(call)
    if not isinstance(arguments, dict):
        return f"→ {call.name}({call.arguments})"
    inside = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items()
    )
    return f"→ {call.name}({inside})"
