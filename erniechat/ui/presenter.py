"""Shows the events of one answer: as text on stdout, or as a line of JSON for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from erniechat.events import (
    BudgetReached,
    ContextGrown,
    Progress,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ToolCall,
)
from erniechat.ui.files import write_whole
from erniechat.ui.progress import progress_text
from erniechat.ui.reply import (
    AnswerTrim,
    ReplyRecord,
    call_arguments,
    call_json,
    growth_line,
    thinking_line,
    thought_line,
)
from erniechat.ui.terminal import AnswerStream, Terminal
from erniechat.ui.text import seconds, visible

if TYPE_CHECKING:
    from erniechat.ui.answer_view import AnswerView


class Out(Protocol):
    """Where an answer goes."""

    at_line_start: bool

    def write(self, text: str) -> None:
        """Take a piece."""
        ...

    def check_reader(self) -> None:
        """Raise BrokenPipeError if nobody reads any more."""
        ...


class FileOut:
    """An answer for a file, which is written once the answer is complete."""

    def __init__(self, path: Path) -> None:
        self.at_line_start = True
        self._path = path
        self._pieces: list[str] = []

    def write(self, text: str) -> None:
        """Take a piece."""
        self._pieces.append(text)
        self.at_line_start = text.endswith("\n")

    def check_reader(self) -> None:
        """A file has no reader that could leave."""

    def commit(self) -> None:
        """Write the file.

        Raises:
            ErnieChatError: If it cannot be written.
        """
        write_whole(self._path, "".join(self._pieces))


class TextPresenter:
    """The answer on stdout as it comes; thoughts and progress on stderr.

    Args:
        terminal: Where stderr is.
        out: Where the answer goes.
        thoughts: auto, full, summary or none.
        raw: Whether white space before the answer is part of it.
        silent: Whether the answer is only recorded (--json).
    """

    def __init__(
        self, terminal: Terminal, out: Out, thoughts: str, *, raw: bool, silent: bool
    ) -> None:
        self._terminal = terminal
        self._silent = silent
        self._asked = thoughts
        self._mode = thoughts
        if thoughts == "auto":
            self._mode = "summary" if terminal.stderr_is_tty else "none"
        self._trim = AnswerTrim(keep_start=raw)
        self.out = out
        self.record = ReplyRecord()
        self._thinking = False
        self._view: AnswerView | None = None
        if terminal.markdown and isinstance(out, AnswerStream) and not (silent or raw):
            from erniechat.ui.answer_view import markdown_on  # a pipe starts without its parser

            self._view = markdown_on(terminal)

    def show(self, events: list[StreamEvent]) -> None:
        """Take a group of events in."""
        answer = ""
        for event in events:
            self.record.add(event)
            match event:
                case Progress() if self.record.elapsed > 0.5:
                    self._terminal.live.show(progress_text(event))
                case ThinkingDelta(text):
                    self._thinking = True
                    self._think(text)
                case TextDelta(text):
                    self._end_thinking()
                    answer += self._trim.feed(text)
        if answer and not self._silent:
            self._terminal.live.wipe()
            self._write(answer)
        if self._view is not None:
            self._view.draw()
        if self._thinking and self._mode == "summary":
            spent = seconds(self.record.thought_for)
            self._terminal.live.show(thinking_line(spent, self.record.num_thinking_deltas))

    def _write(self, answer: str) -> None:
        if self._view is not None:
            self._view.feed(visible(answer))
        else:
            self.out.write(answer)

    def _think(self, text: str) -> None:
        if self._mode == "full" and not self._terminal.quiet:
            text = visible(text) if self._terminal.stderr_is_tty else text
            self._terminal.thoughts(text)

    def _end_thinking(self) -> None:
        if not self._thinking:
            return
        self._thinking = False
        if self._mode == "full" and not self._terminal.quiet:
            self._terminal.write_error("\n\n")
        if self._asked == "summary":
            spent, reached = seconds(self.record.thought_for), self.record.budget_reached
            self._terminal.line(thought_line(spent, self.record.num_thoughts, reached))

    def finish(self) -> None:
        """Calls and the last newline; then what the answer has cost."""
        self._end_thinking()
        self._terminal.live.wipe()
        if not self._silent:
            self._end_answer()
        if self.record.growth is not None:
            self._terminal.note(growth_line(self.record.growth))

    def _end_answer(self) -> None:
        if self._view is not None:
            self._view.close()
            self.out.at_line_start = True
        if self.record.calls:
            if not self.out.at_line_start:
                self.out.write("\n")
            self.out.write("".join(call_json(call) + "\n" for call in self.record.calls))
        elif self._view is None:
            self.out.write("\n")

    def break_off(self) -> None:
        """After an error: what was written stays, and the next line starts a line."""
        self._terminal.live.wipe()
        if self._view is not None:
            self._view.close()
        elif self._terminal.stdout_is_tty and not self.out.at_line_start and not self._silent:
            self.out.write("\n")


class JsonlPresenter:
    """A line of JSON for each event.

    Args:
        terminal: Where progress is shown.
        out: Where the lines go.
        start: The first line, without its type.
    """

    def __init__(self, terminal: Terminal, out: Out, start: dict[str, Any]) -> None:
        self._terminal = terminal
        self.out = out
        self.record = ReplyRecord()
        self.say("start", **start)

    def say(self, kind: str, **fields: Any) -> None:
        """Write a line."""
        self.out.write(json.dumps({"type": kind, **fields}, ensure_ascii=False) + "\n")

    def show(self, events: list[StreamEvent]) -> None:
        """Take a group of events in."""
        for event in events:
            self.record.add(event)
            match event:
                case ThinkingDelta(text):
                    self.say("thinking", text=text)
                case TextDelta(text):
                    self.say("text", text=text)
                case BudgetReached(num_tokens):
                    self.say("budget", tokens=num_tokens)
                case ContextGrown(num_tokens, num_experts):
                    self.say("context", tokens=num_tokens, experts_left=num_experts)
                case ToolCall():
                    arguments = call_arguments(event)
                    self.say("tool_call", id=event.id, name=event.name, arguments=arguments)
                case Progress() if self.record.elapsed > 0.5:
                    self._terminal.live.show(progress_text(event))

    def finish(self) -> None:
        """Nothing is held back."""
        self._terminal.live.wipe()

    def break_off(self) -> None:
        """Nothing is open."""
        self._terminal.live.wipe()


Presenter = TextPresenter | JsonlPresenter
