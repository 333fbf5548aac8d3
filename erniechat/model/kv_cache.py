"""Keys and values of the tokens read so far, and which tokens those are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erniechat.model.lent_memory import CacheFullError, Growth, LentMemory

FIRST_CAPACITY = 1024  # tokens; doubled whenever it is full


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the start of two sequences are the same."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return index
    return min(len(one), len(other))


class KVCache:
    """Grows up to the context length; keys are stored after their rotation.

    On its own it doubles. Of a memory that it shares with experts it gets what these leave, and
    is laid out anew in place.

    Args:
        num_layers: Layers of the model.
        num_key_value_heads: Key and value heads.
        head_dim: Width of a head.
        max_tokens: Context length.
        dtype: Of keys and values.
        device: Where they are.
        at_once: Take the memory of the whole context now.
        memory: To share with experts; else it takes memory of its own.
    """

    def __init__(
        self,
        num_layers: int,
        num_key_value_heads: int,
        head_dim: int,
        max_tokens: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | None = None,
        at_once: bool = False,
        memory: LentMemory | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.token_ids: list[int] = []  # what the cache holds, in order
        self._memory = memory
        if memory is not None:
            self._data = memory.begin(self)
            return
        capacity = max_tokens if at_once else min(FIRST_CAPACITY, max_tokens)
        shape = (2, num_layers, num_key_value_heads, capacity, head_dim)
        self._data = torch.empty(shape, dtype=dtype, device=device)

    def __len__(self) -> int:
        """Tokens held."""
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._data.nbytes

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that one token takes."""
        return self._data[:, :, :, :1].numel() * self._data.itemsize

    def keep_prefix(self, input_ids: Sequence[int]) -> int:
        """Forget all but the longest common prefix with a new prompt.

        At least the prompt's last token is left to be read, since its logits are needed.

        Returns:
            Tokens kept.
        """
        length = common_length(self.token_ids, input_ids[:-1])
        self.forget_from(length)
        return length

    def forget_from(self, length: int) -> None:
        """Forget all but the first tokens."""
        del self.token_ids[length:]

    def append_tokens(self, input_ids: Sequence[int]) -> None:
        """Make room for tokens whose keys and values `store` then brings.

        Raises:
            CacheFullError: See `reserve`; callers check the length of a prompt before.
        """
        self.reserve(len(self.token_ids) + len(input_ids))
        self.token_ids.extend(input_ids)

    def reserve(self, needed: int) -> None:
        """Make room for so many tokens in all. What the cache holds so far is kept.

        Raises:
            CacheFullError: If they exceed max_tokens, or there is no memory for them: then
                max_tokens becomes what there is room for.
        """
        if needed > self.max_tokens:
            raise CacheFullError(f"{needed} tokens do not fit into a cache of {self.max_tokens}")
        capacity = self._data.shape[3]
        if needed <= capacity:
            return
        if self._memory is None:
            self._move_to(_doubled(capacity, needed, self.max_tokens))
            return
        try:
            new_capacity = self._memory.make_room(needed, self.max_tokens)
        except CacheFullError:
            self.max_tokens = capacity
            raise
        self._lay_out(self._memory, new_capacity, capacity)

    def shrink(self, needed: int) -> None:
        """Let experts return to what a conversation that needs so few tokens does not."""
        if self._memory is None:
            return
        capacity = self._data.shape[3]
        new_capacity = self._memory.smaller(capacity, max(needed, len(self)))
        if new_capacity < capacity:
            self._lay_out(self._memory, new_capacity, len(self))
            self._memory.give_back(new_capacity)

    def take_growth(self) -> Growth | None:
        """Once, what experts have left it since this was asked last."""
        return None if self._memory is None else self._memory.take_news()

    @property
    def most_tokens(self) -> int | None:
        """What it could hold in the memory that it shares; None if it has its own."""
        return None if self._memory is None else self._memory.most_tokens

    def _lay_out(self, memory: LentMemory, new_capacity: int, num_held: int) -> None:
        held, self.token_ids = self.token_ids, []  # broken off half-way it holds nothing
        self._data = memory.lay_out(self._data.shape[3], new_capacity, num_held)
        self.token_ids = held

    def _move_to(self, capacity: int) -> None:
        shape = (*self._data.shape[:3], capacity, self._data.shape[4])
        grown = torch.empty(shape, dtype=self._data.dtype, device=self._data.device)
        # All of it: a device may be ahead of token_ids.
        grown[:, :, :, : self._data.shape[3]] = self._data
        self._data = grown

    def stored(self, data: bytes, num_tokens: int) -> Tensor:
        """Keys and values of tokens in the form of `data`, from their bytes."""
        shape = (*self._data.shape[:3], num_tokens, self._data.shape[4])
        return torch.frombuffer(bytearray(data), dtype=self._data.dtype).view(shape)

    def append_stored(self, input_ids: Sequence[int], data: Tensor) -> None:
        """Append tokens whose keys and values are known already.

        Args:
            input_ids: The tokens.
            data: ``[2, layers, key and value heads, num_tokens, width]``, as in `data`.
        """
        begin = len(self.token_ids)
        self.reserve(begin + len(input_ids))
        self._data[:, :, :, begin : begin + len(input_ids)] = data
        self.token_ids.extend(input_ids)

    @property
    def storage(self) -> tuple[int, int]:
        """Address and capacity in tokens of ``[2, layers, key and value heads, capacity, width]``.

        They change when the cache grows.
        """
        return self._data.data_ptr(), self._data.shape[3]

    @property
    def data(self) -> Tensor:
        """All of it, ``[2, layers, key and value heads, capacity, width]``; another when grown."""
        return self._data

    def store(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values of the last appended tokens.

        Args:
            layer_idx: Layer of the model.
            keys: ``[num_key_value_heads, num_tokens, head_dim]``, rotated.
            values: The same shape.

        Returns:
            Keys and values of all tokens held, views of the cache.
        """
        end = len(self.token_ids)
        begin = end - keys.shape[1]
        self._data[0, layer_idx, :, begin:end] = keys
        self._data[1, layer_idx, :, begin:end] = values
        return self._data[0, layer_idx, :, :end], self._data[1, layer_idx, :, :end]


def _doubled(capacity: int, needed: int, most: int) -> int:
    """The next capacity, of which the old one is at most half: while it is copied, both are held.

    Memory that no token was written to yet takes no place, so the last step may be a long one.
    """
    while capacity < needed:
        capacity = 2 * capacity if 4 * capacity <= most else most
    return capacity
