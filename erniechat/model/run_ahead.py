"""What a model offers that chooses its tokens itself, ahead of whoever reads their ids."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are chosen; `erniechat.generation.sampling.Sampler` says what each means.

    Attributes:
        temperature: 0 takes the likeliest.
        top_k: 0 for all.
        top_p: 1 for all.
        min_p: 0 for all.
        repetition_penalty: 1 for none.
        num_tokens: Tokens that may be chosen: those with the lowest ids.
        seed: Of the draws; the same one at the same place of a text draws the same.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    num_tokens: int
    seed: int


class TokenRun(Protocol):
    """Tokens that are chosen one after the other; the first one is on its way from the start."""

    def advance(self) -> None:
        """Begin to read the token chosen last, at the end of the cache, and to choose the next.

        Neither waits for the device. The cache does not count the token before its id is known
        and appended; if it never is, what was computed is overwritten.

        Raises:
            CacheFullError: If the cache has no room for it.
        """
        ...

    def take(self) -> int:
        """The next id, in order; waits until it is there."""
        ...
