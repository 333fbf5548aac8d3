"""GPU memory that a KV cache shares with experts: as a conversation grows, experts make room."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.lending import SlotLender
from quant.experts.pool import ExpertPool

LEAST_STEP = 2048  # tokens that a growing cache gets at once, at least


class CacheFullError(ValueError):
    """A cache may not hold as many tokens, or there is no memory for them."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What a cache has become.

    Attributes:
        num_tokens: That it holds room for now.
        num_experts: That left the GPU's memory for it.
    """

    num_tokens: int
    num_experts: int


class LentMemory:
    """The end of the experts' block of memory, and the slots before it that experts can leave.

    A cache of capacity C is ``num_rows`` rows of C tokens that end where the block ends.

    Args:
        pool: The experts', with a tail that holds the planned tokens.
        lender: Makes its last slots free.
        shape: Of a cache before its tokens, ``(2, layers, key and value heads)``.
        head_dim: Numbers of a head.
        dtype: Of them.
        planned_tokens: What the tail holds; no expert leaves for these.
    """

    def __init__(
        self,
        pool: ExpertPool,
        lender: SlotLender,
        shape: tuple[int, int, int],
        head_dim: int,
        dtype: torch.dtype,
        planned_tokens: int,
    ) -> None:
        self._pool, self.lender = pool, lender
        self._shape, self._head_dim, self._dtype = shape, head_dim, dtype
        self._num_rows = shape[0] * shape[1] * shape[2]
        self._entry_nbytes = head_dim * dtype.itemsize
        self._planned = planned_tokens
        self._holder: weakref.ref[object] | None = None
        self._news: Growth | None = None

    @property
    def is_free(self) -> bool:
        """Whether no cache has it."""
        return self._holder is None or self._holder() is None

    @property
    def most_tokens(self) -> int:
        """What a cache could hold if all experts left that can."""
        return max(self._planned, self._tokens_beside(self.lender.least_slots))

    def begin(self, holder: object) -> Tensor:
        """Memory for the planned tokens of a cache, until that is gone."""
        self._holder = weakref.ref(holder)
        self.lender.take_back(self._slots_beside(self._planned))
        return self.view(self._planned)

    def view(self, capacity: int) -> Tensor:
        """``[2, layers, heads, capacity, width]`` at the block's end."""
        nbytes = self._num_rows * capacity * self._entry_nbytes
        data = self._pool.block[len(self._pool.block) - nbytes :].view(self._dtype)
        return data.view(*self._shape, capacity, self._head_dim)

    def make_room(self, needed: int, most: int) -> int:
        """Let experts leave for more tokens; returns how many fit then.

        Args:
            needed: Tokens that there must be room for.
            most: Tokens that there may be room for.

        Raises:
            CacheFullError: If they cannot leave; then all is as it was.
        """
        reachable = min(most, self.most_tokens)
        if needed > reachable:
            raise CacheFullError(f"{needed} tokens do not fit beside the experts, {reachable} do")
        wanted = min(reachable, needed + step_tokens(needed))
        try:
            num_experts = self._lend(wanted, needed)
        except QuantError as exc:
            raise CacheFullError(f"{needed} tokens do not fit: {exc}") from exc
        capacity = min(most, self._tokens_beside(self.lender.num_usable))
        num_experts += 0 if self._news is None else self._news.num_experts
        self._news = Growth(capacity, num_experts) if num_experts else None
        return capacity

    def _lend(self, wanted: int, needed: int) -> int:
        try:
            return self.lender.lend(self._slots_beside(wanted))
        except QuantError:
            if wanted == needed:
                raise
        return self.lender.lend(self._slots_beside(needed))

    def lay_out(self, capacity: int, new_capacity: int, num_held: int) -> Tensor:
        """Move a cache's rows to where they are for another capacity; no further memory is used.

        Args:
            capacity: Now.
            new_capacity: For which there is room.
            num_held: Tokens at the beginning of each row that are kept.
        """
        move_rows(
            self._pool.block,
            self._num_rows,
            capacity * self._entry_nbytes,
            new_capacity * self._entry_nbytes,
            num_held * self._entry_nbytes,
        )
        return self.view(new_capacity)

    def smaller(self, capacity: int, needed: int) -> int:
        """The capacity that a conversation of so many tokens should leave of a grown cache."""
        if 2 * needed > capacity:
            return capacity
        return min(capacity, max(self._planned, needed + step_tokens(needed)))

    def give_back(self, capacity: int) -> None:
        """Let experts return to what a cache of this capacity, laid out already, leaves."""
        self.lender.take_back(self._slots_beside(capacity))
        self._news = None

    def take_news(self) -> Growth | None:
        """Once, what it has grown to since this was asked last."""
        news, self._news = self._news, None
        return news

    def _slots_beside(self, num_tokens: int) -> int:
        rest = len(self._pool.block) - num_tokens * self._num_rows * self._entry_nbytes
        return max(0, rest) // self._pool.slot_nbytes

    def _tokens_beside(self, num_slots: int) -> int:
        rest = len(self._pool.block) - num_slots * self._pool.slot_nbytes
        return rest // (self._num_rows * self._entry_nbytes)


def step_tokens(needed: int) -> int:
    """Tokens beyond the needed ones: few, so that experts stay; enough that it grows seldom."""
    return max(LEAST_STEP, needed // 4)


def move_rows(
    block: Tensor, num_rows: int, old_nbytes: int, new_nbytes: int, held_nbytes: int
) -> None:
    """Give rows that end at a block's end another width, in place.

    Growing rows go to lower addresses, the first row first; shrinking ones to higher addresses,
    the last first: so none comes where another still is. Within a row pieces as long as the way
    that they go do not touch themselves.

    Args:
        block: uint8 ``[bytes]``.
        num_rows: Rows.
        old_nbytes: Of a row now.
        new_nbytes: Of a row then.
        held_nbytes: At the beginning of each row that are kept; no more than either.
    """
    grows = new_nbytes > old_nbytes
    rows: Sequence[int] = range(num_rows) if grows else range(num_rows - 1, -1, -1)
    for row in rows:
        source = len(block) - (num_rows - row) * old_nbytes
        target = len(block) - (num_rows - row) * new_nbytes
        way = abs(target - source)
        pieces: Sequence[int] = range(0, held_nbytes, way) if way else []
        for first in pieces if grows else reversed(pieces):
            size = min(way, held_nbytes - first)
            piece = block[source + first : source + first + size]
            block[target + first : target + first + size].copy_(piece)
