"""What a reply is made of: the events that an engine yields and a front-end draws."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from erniechat.errors import ErnieChatError

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A further piece of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A further piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingEnd:
    """The thinking is over: the tokens and seconds that `TurnEnd` will count as such."""

    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BudgetReached:
    """The thinking was closed because its budget of tokens is used."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class ContextGrown:
    """The context holds so many tokens now, for which experts have left the GPU's memory."""

    num_tokens: int
    num_experts: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call of a tool; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: ``stage`` is "read" (tokens), or one of the load's (bytes).

    "download" and "quantize" run at the same time; "wait" is for another process that quantizes.
    """

    stage: Literal["read", "load", "quantize", "download", "wait"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class StartNotice:
    """What a start will do, told before it does it.

    Attributes:
        lines: For people.
        download_nbytes: To be fetched.
        keep_nbytes: To be kept on the disk.
        facts: For scripts, as JSON.
        problem: Why it cannot be; None if it can.
    """

    lines: tuple[str, ...]
    download_nbytes: int
    keep_nbytes: int
    facts: Mapping[str, Any]
    problem: ErnieChatError | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply. ``prompt`` includes ``cached``, those found in the KV cache.

    ``thinking + answer`` is every generated token, tags and the stop token included.
    """

    prompt: int = 0
    cached: int = 0
    thinking: int = 0
    answer: int = 0


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of one reply by phase: reading the prompt, thinking, writing the answer."""

    read: float = 0.0
    think: float = 0.0
    write: float = 0.0


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The last event of a reply. ``seed`` repeats the reply when given again.

    ``is_complete`` is false where a structure was asked for and the answer ends before it does.
    """

    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    seconds: Seconds = field(default_factory=Seconds)
    seed: int = 0
    is_complete: bool = True


StreamEvent = (
    ThinkingDelta
    | ThinkingEnd
    | TextDelta
    | BudgetReached
    | ContextGrown
    | ToolCall
    | Progress
    | TurnEnd
)
