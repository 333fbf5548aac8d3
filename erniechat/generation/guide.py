"""Guides: what may come next, told to the sampler as logits; decoding asks them before each token.

A guide sees every token. It rules only in its own section of the reply: an answer's grammar
leaves the thinking free.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Guide(Protocol):
    """Narrows the choice of the next token."""

    def constrain(self, logits: Tensor) -> Tensor:
        """The logits, float32 ``[num_tokens]``, with -inf at tokens that must not follow."""
        ...

    def accept(self, token_id: int) -> None:
        """Take note of the token that was chosen."""
        ...


def only(logits: Tensor, token_ids: Collection[int]) -> Tensor:
    """Logits of which only some tokens are left."""
    ids = torch.tensor(sorted(token_ids), dtype=torch.int64, device=logits.device)
    return torch.full_like(logits, -torch.inf).index_copy(0, ids, logits[ids])


class ThinkingBudget:
    """Closes the thinking section once it has had its tokens, and again if it is reopened.

    Args:
        num_tokens: Tokens of thinking before it is closed.
        closing_ids: The tokens that close it.
        in_thinking: Whether the next token is part of the section.
    """

    def __init__(
        self, num_tokens: int, closing_ids: Sequence[int], in_thinking: Callable[[], bool]
    ) -> None:
        self.is_used = False
        self._left = num_tokens
        self._closing_ids = list(closing_ids)
        self._num_closed = 0  # tokens of the closing that were chosen
        self._in_thinking = in_thinking

    def constrain(self, logits: Tensor) -> Tensor:
        """See `Guide`."""
        closing = self._closing_ids[self._num_closed : self._num_closed + 1]
        if not self._in_thinking() or self._left > 0 or not closing:
            return logits
        return only(logits, closing)

    def accept(self, token_id: int) -> None:
        """See `Guide`."""
        if not self._in_thinking():
            self._num_closed = 0
        elif self._left > 0:
            self._left -= 1
        elif self._num_closed < len(self._closing_ids):
            self.is_used = True
            self._num_closed += 1
