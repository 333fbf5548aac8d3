"""All that a front-end may ask of an engine: the ChatBackend protocol, and what it tells back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from erniechat.chat.conversation import Message, ThinkingSupport, ThinkMode
from erniechat.events import StreamEvent
from erniechat.options import SamplingOptions, Structure


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded and what it can do.

    Attributes:
        model: As it was asked for.
        quant: The format of its weights.
        device: Where it runs.
        context_length: Tokens of prompt and answer together.
        thinking: Whether it thinks.
        has_chat_template: Whether it can chat.
        load_seconds: What loading took.
        defaults: The checkpoint's own sampling.
        max_context_length: What the context can be raised to; the model's own limit.
        kv_nbytes_per_token: Memory that a token in the context takes.
        planned_context: Tokens from which on experts leave the GPU's memory for the context; 0
            where that takes memory of its own.
    """

    model: str
    quant: str
    device: str
    context_length: int
    thinking: ThinkingSupport
    has_chat_template: bool
    load_seconds: float
    defaults: SamplingOptions = field(default_factory=SamplingOptions)
    max_context_length: int = 0
    kv_nbytes_per_token: int = 0
    planned_context: int = 0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes held now and at most since the start; the GPU's are 0 without one."""

    weights_nbytes: int = 0
    kv_cache_nbytes: int = 0
    host_nbytes: int = 0
    host_peak_nbytes: int = 0
    gpu_nbytes: int = 0
    gpu_peak_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class PlaceReads:
    """What decoded tokens read from one place, weights that every token uses included.

    Attributes:
        nbytes_per_token: On average.
        nbytes_per_second: Over all their time.
        measured: Bytes a second that the place was measured to give; None if it was not.
    """

    nbytes_per_token: float
    nbytes_per_second: float
    measured: float | None = None

    @property
    def share(self) -> float | None:
        """Of the measured speed; None without one."""
        return self.nbytes_per_second / self.measured if self.measured else None


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """Where the routed experts of a model were found since the start.

    Attributes:
        num_tokens: Tokens computed.
        runs: By place (``GPU``, ``bus``, ``RAM``, ``disk``) how many experts were run from there.
        nbytes: By place the bytes that they read.
        reads: By place what decoded tokens read.
    """

    num_tokens: int = 0
    runs: Mapping[str, int] = field(default_factory=dict)
    nbytes: Mapping[str, int] = field(default_factory=dict)
    reads: Mapping[str, PlaceReads] = field(default_factory=dict)


class ChatBackend(Protocol):
    """An engine as a front-end sees it. One reply at a time."""

    @property
    def info(self) -> ModelInfo:
        """What is loaded and what it can do."""
        ...

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
        """Answer a conversation; the last event is always a TurnEnd.

        Args:
            messages: The conversation.
            sampling: How tokens are chosen.
            tools: What the model may call.
            think: Whether it thinks.
            part: What there is of the answer already; only what follows it is told.
            structure: What the answer must be; the thinking is free.
            session: The name under which the conversation is saved, empty if it is not. What was
                read of it may be kept on disk under that name, and is when the next conversation
                begins or the engine is closed.

        Raises:
            UsageError: If the model cannot think as asked, has no chat template, or the structure
                cannot be used.
            ContextLengthError: If the prompt leaves no room for an answer.
        """
        ...

    def stream_completion(
        self, text: str, sampling: SamplingOptions, *, structure: Structure | None = None
    ) -> Iterator[StreamEvent]:
        """Go on from raw text, without a chat template; yields TextDelta and a TurnEnd.

        Markup in the text becomes its tokens: whoever writes raw text writes the template.
        """
        ...

    def render_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> str:
        """The exact text that stream_reply would read.

        What spells markup in a message is read as text, which this cannot show.
        """
        ...

    def count_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> int:
        """The exact number of tokens that stream_reply would read."""
        ...

    def count_tokens(self, text: str, *, raw: bool = False) -> int:
        """Tokens of a text, without any that a template adds.

        Args:
            text: A text in a message.
            raw: Whether it is one for stream_completion, where markup counts as such.
        """
        ...

    def warm_up(self, sampling: SamplingOptions, stop: Callable[[], bool]) -> None:
        """Make ready what the first reply would otherwise wait for.

        Args:
            sampling: How its tokens will be chosen.
            stop: Asked between steps of seconds; once it is true, the rest is left undone.
        """
        ...

    def cancel(self) -> None:
        """End the running reply after its current step; callable from any thread or handler."""
        ...

    def raise_context(self, num_tokens: int) -> None:
        """Let prompt and answer be longer from the next reply on; nothing is read again.

        Raises:
            UsageError: If the model was not made for so many tokens.
            MemoryLimitError: If they would not fit into the free memory.
        """
        ...

    def memory(self) -> MemoryUse:
        """Bytes held now and at most."""
        ...

    def expert_use(self) -> ExpertUse:
        """Where routed experts were found; no places for a model without any."""
        ...

    def close(self) -> None:
        """Keep what must be kept (routing counts) and let go of the weights."""
        ...
