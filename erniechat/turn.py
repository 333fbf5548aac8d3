"""One reply: how its tokens are chosen, what is counted while it runs, and why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from erniechat.chat.tags import Section
from erniechat.events import (
    BudgetReached,
    FinishReason,
    Seconds,
    StreamEvent,
    ThinkingEnd,
    TurnEnd,
    Usage,
)
from erniechat.generation.guide import Guide, ThinkingBudget
from erniechat.generation.sampling import Sampler
from erniechat.generation.structure import StructureGuide
from erniechat.options import SamplingOptions


@dataclass(slots=True)
class Turn:
    """One reply.

    Attributes:
        prompt: Tokens of its prompt.
        cached: Those of them that were not read for it.
        tokens: Written, by section.
        seconds: Taken, by section.
        read_seconds: Taken by the prompt.
        has_called: Whether a tool was called.
        finish_reason: Why it ended.
        budget_told: Whether it was told that the budget for thinking is used.
    """

    prompt: int
    cached: int = 0
    tokens: dict[Section, int] = field(default_factory=lambda: {"thinking": 0, "answer": 0})
    seconds: dict[Section, float] = field(default_factory=lambda: {"thinking": 0.0, "answer": 0.0})
    read_seconds: float = 0.0
    has_called: bool = False
    finish_reason: FinishReason = "length"
    budget_told: bool = False

    def end(self, seed: int, guides: Sequence[Guide] = ()) -> TurnEnd:
        """The event that ends the reply."""
        reason = self.finish_reason
        if reason == "stop" and self.has_called:
            reason = "tool_calls"
        thinking, answer = self.tokens["thinking"], self.tokens["answer"]
        usage = Usage(self.prompt, self.cached, thinking, answer)
        seconds = Seconds(self.read_seconds, self.seconds["thinking"], self.seconds["answer"])
        is_complete = all(g.is_complete for g in guides if isinstance(g, StructureGuide))
        return TurnEnd(reason, usage, seconds, seed, is_complete)

    def thinking_end(self) -> ThinkingEnd:
        """The event that ends the thinking."""
        return ThinkingEnd(self.tokens["thinking"], self.seconds["thinking"])

    def tell_budget(self, guides: Sequence[Guide]) -> list[StreamEvent]:
        """Once, that the thinking was closed."""
        if self.budget_told or not any(isinstance(g, ThinkingBudget) and g.is_used for g in guides):
            return []
        self.budget_told = True
        return [BudgetReached(self.tokens["thinking"])]


def sampler_of(options: SamplingOptions) -> Sampler:
    """The sampler of options; what is None changes nothing."""
    neutral = Sampler()
    return Sampler(
        temperature=neutral.temperature if options.temperature is None else options.temperature,
        top_k=options.top_k or neutral.top_k,
        top_p=options.top_p or neutral.top_p,
        min_p=options.min_p or neutral.min_p,
        repetition_penalty=options.repetition_penalty or neutral.repetition_penalty,
    )
