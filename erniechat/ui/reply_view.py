"""Draws one reply in the REPL as it comes: reading, thinking, answering, and its last line."""

import json
import time
from collections.abc import Sequence

from erniechat.events import Progress, StreamEvent, TextDelta, ThinkingDelta, ToolCall, TurnEnd
from erniechat.ui.answer_view import AnswerView, MarkdownAnswer, ParagraphAnswer, PlainAnswer
from erniechat.ui.keys import Action
from erniechat.ui.progress import progress_text, reading_text
from erniechat.ui.reply import (
    AnswerTrim,
    ReplyRecord,
    call_arguments,
    thinking_line,
    thought_line,
)
from erniechat.ui.screen import Screen
from erniechat.ui.text import rate, seconds, visible, whole_seconds
from erniechat.ui.thoughts import unfolded, with_hints
from erniechat.ui.wrap import StreamWrap

QUIET_SECONDS = 0.5
STOP_HINT = "Esc stops"
STOPPING = "stopping …    Ctrl-C again leaves"


class ReplyView:
    """The state machine of one reply: waiting → thinking → answering.

    Args:
        screen: Where to draw.
        thoughts: full, summary or none.
        keep_start: Whether white space before the answer is part of it (raw completion).
        markdown: Whether the answer is drawn as Markdown, where the screen can.
        sentences: Whether what goes on is told in sentences, and the answer by paragraphs, for a
            screen reader.
    """

    def __init__(
        self,
        screen: Screen,
        thoughts: str,
        keep_start: bool = False,
        *,
        markdown: bool = False,
        sentences: bool = False,
    ) -> None:
        self.record = ReplyRecord()
        self._screen = screen
        self._thoughts = thoughts
        self._trim = AnswerTrim(keep_start)
        self._reading: Progress | None = None
        self._num_cached, self._read_from, self._read_at = 0, 0.0, 0.0
        self._arriving: Progress | None = None
        self._thinking_since: float | None = None
        self._stopping_since: float | None = None
        self._thought_text: StreamWrap | None = None
        self._answer: AnswerView | None = None
        self._markdown = markdown
        self._sentences = sentences
        self._told: set[str] = set()
        self._is_unfolded = False

    def show(self, events: Sequence[StreamEvent]) -> None:
        """Take a group of events in, and draw them."""
        answer = ""
        for event in events:
            self.record.add(event)
            match event:
                case Progress(stage="load"):
                    self._arriving = event
                case Progress():
                    if self._reading is None:
                        self._num_cached, self._read_from = event.done, self.record.elapsed
                    self._reading, self._read_at = event, self.record.elapsed
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
        self._thinking_since = None
        spent = self.record.thought_for
        if self._thought_text is not None:
            self._close(self._thought_text)
        if self._sentences:
            self._screen.line(f"Thought for {whole_seconds(spent)}.")
        elif self._thoughts != "none":
            num_tokens, reached = self.record.num_thoughts, self.record.budget_reached
            self._screen.note(thought_line(seconds(spent), num_tokens, reached))
            self._screen.line()

    def _write_answer(self, text: str) -> None:
        if self._answer is None:
            area = self._screen.area if self._markdown else None
            if self._sentences:
                self._screen.line("Answer:")
                self._answer = ParagraphAnswer(self._screen.stream())
            elif area is None:
                self._answer = PlainAnswer(self._screen.stream())
            else:
                self._answer = MarkdownAnswer(area, self._screen.look)
        self._answer.feed(text)

    def _close(self, text: StreamWrap) -> None:
        if not text.at_line_start:
            text.feed("\n")

    def obey(self, action: Action) -> None:
        """A key that changes what is drawn."""
        if action == "unfold":
            self._is_unfolded = not self._is_unfolded
        elif self._screen.area is not None:
            self._screen.area.forget()
        self._tick(now=True)

    def stopping(self) -> None:
        """Say that a stop was asked for."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self._tick()

    def _tick(self, *, now: bool = False) -> None:
        """Bring what is drawn up to date."""
        if self._stopping_since is not None:
            self._tick_stopping(time.monotonic() - self._stopping_since)
            return
        if self._answer is not None:
            self._answer.draw()
            return
        if self._thought_text is not None:
            return
        if self._thinking_since is not None and self._thoughts == "summary":
            self._draw_thinking(time.monotonic() - self._thinking_since, now=now)
        elif self._sentences:
            self._tell_reading()
        elif self.record.elapsed > QUIET_SECONDS:
            self._screen.live.show(f"{self._doing()}    {STOP_HINT}")

    def _doing(self) -> str:
        """What goes on before the first word, in one line."""
        if self._reading is None and self._arriving is not None:
            return progress_text(self._arriving, "the model")
        if self._reading is None or self._thinking_since is not None:
            return f"working {seconds(self.record.elapsed)}"
        return reading_text(self._reading, self._num_cached, self._read_at - self._read_from)

    def _tell_reading(self) -> None:
        """Each once, and only where it takes a while."""
        if self._thinking_since is not None or self.record.elapsed < QUIET_SECONDS:
            return
        if self._reading is not None and "reading" not in self._told:
            self._told.add("reading")
            self._screen.line(f"Reading {self._reading.total:,} tokens.")
        elif self._reading is None and self._arriving is not None and not self._told:
            self._told.add("loading")
            self._screen.line("Loading the model.")

    def _draw_thinking(self, spent: float, *, now: bool) -> None:
        """One line, and the last lines of the thoughts where they are asked for."""
        num_tokens = self.record.num_thinking_deltas
        line = thinking_line(seconds(spent), num_tokens)
        if spent > QUIET_SECONDS:
            line += f" · {num_tokens / spent:.0f} tok/s"
        area = self._screen.area
        if area is None:
            return
        width = area.columns - 1
        if not self._is_unfolded:
            line = with_hints(line, ("Ctrl-O shows it", STOP_HINT), width)
            area.show(line, now=now)
        elif now or area.is_due:
            line = with_hints(line, ("Ctrl-O folds it", STOP_HINT), width)
            area.draw([area.dim(text) for text in (line, *unfolded(self.record.thoughts, width))])

    def _tick_stopping(self, waited: float) -> None:
        """A step that takes long to end is worth a line of its own."""
        if waited < QUIET_SECONDS:
            return
        if self._thought_text is not None:
            self._close(self._thought_text)
        if self._answer is not None:
            self._answer.draw(STOPPING)
        if not isinstance(self._answer, MarkdownAnswer):
            self._screen.live.show(STOPPING)

    def finish(self) -> None:
        """End the text and show the calls."""
        if self._answer is not None:
            self._answer.close()
        self._screen.live.wipe()
        self._end_thinking()
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
