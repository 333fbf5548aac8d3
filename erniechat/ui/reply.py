"""What a reply has brought so far, and the form in which its answer is shown."""

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from erniechat.events import (
    BudgetReached,
    ContextGrown,
    Progress,
    Seconds,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    TurnEnd,
    Usage,
)


@dataclass(slots=True)
class ReplyRecord:
    """The events of one reply, added up."""

    thoughts: str = ""
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    end: TurnEnd | None = None
    num_thinking_deltas: int = 0
    thinking_began_at: float | None = None
    thinking_end: ThinkingEnd | None = None
    budget_reached: bool = False
    growth: ContextGrown | None = None
    started_at: float = field(default_factory=time.monotonic)

    def add(self, event: StreamEvent) -> None:
        """Count an event in."""
        match event:
            case ThinkingDelta(text):
                self.thoughts += text
                self.num_thinking_deltas += 1
                if self.thinking_began_at is None:
                    self.thinking_began_at = time.monotonic()
            case ThinkingEnd():
                self.thinking_end = event
            case TextDelta(text):
                self.text += text
            case ToolCall():
                self.calls.append(event)
            case BudgetReached():
                self.budget_reached = True
            case ContextGrown(num_tokens, num_experts):
                before = self.growth.num_experts if self.growth else 0
                self.growth = ContextGrown(num_tokens, before + num_experts)
            case TurnEnd():
                self.end = event
            case Progress():
                pass

    @property
    def has_answer(self) -> bool:
        """Whether any part of an answer or a call has come."""
        return bool(self.text.strip() or self.calls)

    @property
    def thought_for(self) -> float:
        """Seconds of thinking so far."""
        if self.thinking_end is not None:
            return self.thinking_end.seconds
        began = self.thinking_began_at
        return 0.0 if began is None else time.monotonic() - began

    @property
    def num_thoughts(self) -> int:
        """Tokens of thinking so far, as they will be counted."""
        if self.thinking_end is not None:
            return self.thinking_end.num_tokens
        return self.end.usage.thinking if self.end else self.num_thinking_deltas

    @property
    def elapsed(self) -> float:
        """Seconds since the request."""
        return time.monotonic() - self.started_at


@dataclass(slots=True)
class Totals:
    """All replies of a session, added up."""

    num_replies: int = 0
    num_stopped: int = 0
    usage: Usage = field(default_factory=Usage)
    seconds: Seconds = field(default_factory=Seconds)

    def add(self, end: TurnEnd) -> None:
        """Count a reply in."""
        self.num_replies += 1
        self.num_stopped += end.finish_reason == "cancelled"
        names = ("prompt", "cached", "thinking", "answer")
        sums = {name: getattr(self.usage, name) + getattr(end.usage, name) for name in names}
        self.usage = replace(self.usage, **sums)
        phases = ("read", "think", "write")
        times = {name: getattr(self.seconds, name) + getattr(end.seconds, name) for name in phases}
        self.seconds = replace(self.seconds, **times)


class AnswerTrim:
    """Passes an answer on without white space before it and newlines after it.

    Newlines are held back until more follows, so that the answer ends with exactly as many as
    the caller adds. With ``keep_start`` (raw completion) white space before it is kept.
    """

    def __init__(self, keep_start: bool = False) -> None:
        self._started = keep_start
        self._held = ""

    def feed(self, text: str) -> str:
        """What may be shown now."""
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        text = self._held + text
        shown = text.rstrip("\n")
        self._held = text[len(shown) :]
        return shown


def trimmed(text: str, keep_start: bool = False) -> str:
    """A whole answer as AnswerTrim shows it."""
    return AnswerTrim(keep_start).feed(text)


def call_arguments(call: ToolCall) -> Any:
    """The arguments of a call as data; as text where the model wrote no JSON."""
    try:
        return json.loads(call.arguments)
    except json.JSONDecodeError:
        return call.arguments


def call_json(call: ToolCall) -> str:
    """A call as one line of JSON."""
    return json.dumps({"name": call.name, "arguments": call_arguments(call)}, ensure_ascii=False)


def thinking_line(seconds: str, num_tokens: int) -> str:
    """The live line while the model thinks."""
    return f"thinking {seconds} · {num_tokens:,} tok"


def thought_line(seconds: str, num_tokens: int, budget_reached: bool = False) -> str:
    """The line that stays once it has thought."""
    end = " (budget)" if budget_reached else ""
    return f"thought for {seconds} · {num_tokens:,} tok{end}"


def growth_line(growth: ContextGrown) -> str:
    """The line that says what a longer conversation has cost."""
    experts = "1 expert" if growth.num_experts == 1 else f"{growth.num_experts:,} experts"
    return f"context grew to {growth.num_tokens:,} tokens; {experts} left the GPU"
