"""A ChatBackend that plays scripts: events, pauses and failures, and records what it was asked."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from erniechat.backend import ExpertUse, MemoryUse, ModelInfo
from erniechat.chat.conversation import Message, ThinkMode
from erniechat.events import (
    BudgetReached,
    ContextGrown,
    Seconds,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    TurnEnd,
    Usage,
)
from erniechat.options import SamplingOptions, Structure

GIB = 1 << 30
SPENT = Seconds(0.5, 2.0, 4.0)  # of every reply that ends by itself


@dataclass(frozen=True)
class Pause:
    """Wait; cancel() ends it, unless it is stuck as a kernel can be."""

    seconds: float
    stuck: bool = False


Step = StreamEvent | Pause | Exception
Script = Sequence[Step]


def words(text: str, pause: float = 0.0) -> list[Step]:
    """A TextDelta for each word, each after a pause."""
    return [step for delta in _split(text) for step in (Pause(pause), TextDelta(delta))]


def thinking(text: str, pause: float = 0.0) -> list[Step]:
    """A ThinkingDelta for each word, each after a pause."""
    return [step for delta in _split(text) for step in (Pause(pause), ThinkingDelta(delta))]


def _split(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(" " + word for word in rest)]


@dataclass
class Asked:
    """What one call of stream_reply or stream_completion was given."""

    messages: list[Message]
    sampling: SamplingOptions
    tools: tuple[dict[str, Any], ...] = ()
    think: ThinkMode = "auto"
    text: str = ""
    part: Message | None = None
    structure: Structure | None = None
    session: str = ""


INFO = ModelInfo(
    model="fake-21B",
    quant="nf4",
    device="cpu",
    context_length=4096,
    thinking="switchable",
    has_chat_template=True,
    load_seconds=0.25,
    defaults=SamplingOptions(temperature=0.8, top_p=0.8),
)


MEMORY = MemoryUse(
    weights_nbytes=3 * GIB // 2,
    kv_cache_nbytes=GIB // 8,
    host_nbytes=2 * GIB,
    host_peak_nbytes=3 * GIB,
)


@dataclass
class FakeBackend:
    """Plays the scripts in turn, the last one again and again."""

    scripts: Sequence[Script] = ()
    info: ModelInfo = INFO
    memory_use: MemoryUse = MEMORY
    experts: ExpertUse = field(default_factory=ExpertUse)
    asked: list[Asked] = field(default_factory=list)
    closed: bool = False
    num_cancels: int = 0
    warm_ups: list[SamplingOptions] = field(default_factory=list)
    stopped_at: float | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def stream_reply(
        self,
        messages: Sequence[Message],
        sampling: SamplingOptions,
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
        part: Message | None = None,
        structure: Structure | None = None,
        session: str = "",
    ) -> Iterator[StreamEvent]:
        asked = Asked(list(messages), sampling, tuple(tools), think, "", part, structure, session)
        prompt = self.render_prompt(messages, tools=tools, think=think)
        return self._play(asked, prompt)

    def warm_up(self, sampling: SamplingOptions, stop: Callable[[], bool]) -> None:
        self.warm_ups.append(sampling)

    def stream_completion(
        self, text: str, sampling: SamplingOptions, *, structure: Structure | None = None
    ) -> Iterator[StreamEvent]:
        return self._play(Asked([], sampling, text=text, structure=structure), text)

    def _play(self, asked: Asked, prompt: str) -> Iterator[StreamEvent]:
        self._cancelled.clear()
        self.asked.append(asked)
        usage = Usage(prompt=self.count_tokens(prompt))
        seed = asked.sampling.seed if asked.sampling.seed is not None else 7
        began, is_thinking = time.monotonic(), False
        script = self.scripts[min(len(self.asked), len(self.scripts)) - 1] if self.scripts else []
        for step in script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Pause):
                time.sleep(step.seconds) if step.stuck else self._cancelled.wait(step.seconds)
            elif isinstance(step, TurnEnd):
                yield step
                return
            if self._cancelled.is_set():
                self.stopped_at = time.monotonic()
                spent = Seconds(write=time.monotonic() - began)
                yield TurnEnd("cancelled", usage, spent, seed)
                return
            if not isinstance(step, Pause):
                if isinstance(step, TextDelta | ToolCall) and is_thinking:
                    yield ThinkingEnd(usage.thinking, SPENT.think)
                is_thinking = isinstance(step, ThinkingDelta | BudgetReached)
                usage = _counted(usage, step)
                yield step
        called = any(isinstance(step, ToolCall) for step in script)
        yield TurnEnd("tool_calls" if called else "stop", usage, SPENT, seed)

    def render_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> str:
        asked = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        shown = [  # as ERNIE's template has it, thoughts stay until the next question
            f"<think> {m.thoughts} </think> {m.content}" if m.thoughts and i > asked else m.content
            for i, m in enumerate(messages)
        ]
        pairs = zip(messages, shown, strict=True)
        return "".join(f"<{m.role}> {text} </{m.role}>\n" for m, text in pairs) + "<assistant> "

    def count_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> int:
        return self.count_tokens(self.render_prompt(messages, tools=tools, think=think))

    def count_tokens(self, text: str, *, raw: bool = False) -> int:
        return len(text.split())

    def raise_context(self, num_tokens: int) -> None:
        self.info = dataclasses.replace(self.info, context_length=num_tokens)

    def cancel(self) -> None:
        self.num_cancels += 1
        self._cancelled.set()

    def memory(self) -> MemoryUse:
        return self.memory_use

    def expert_use(self) -> ExpertUse:
        return self.experts

    def close(self) -> None:
        self.closed = True


def _counted(usage: Usage, step: Step) -> Usage:
    if isinstance(step, ThinkingDelta):
        return dataclasses.replace(usage, thinking=usage.thinking + 1)
    if isinstance(step, ContextGrown):
        return usage
    return dataclasses.replace(usage, answer=usage.answer + 1)
