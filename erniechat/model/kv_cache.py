"""Keys and values of the tokens read so far, and which tokens those are."""

from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_CAPACITY = 1024  # tokens; doubled whenever it is full


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the start of two sequences are the same."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return index
    return min(len(one), len(other))


class KVCache:
    """Grows by doubling up to the context length; keys are stored after their rotation.

    Args:
        num_layers: Layers of the model.
        num_key_value_heads: Key and value heads.
        head_dim: Width of a head.
        max_tokens: Context length.
        dtype: Of keys and values.
        device: Where they are.
        at_once: Take the memory of the whole context now.
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
    ) -> None:
        self.max_tokens = max_tokens
        self.token_ids: list[int] = []  # what the cache holds, in order
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
            ValueError: If they exceed max_tokens; callers check the length of a prompt before.
        """
        self.reserve(len(self.token_ids) + len(input_ids))
        self.token_ids.extend(input_ids)

    def reserve(self, needed: int) -> None:
        """Make room for so many tokens in all. What the cache holds so far is kept.

        Raises:
            ValueError: If they exceed max_tokens.
        """
        if needed > self.max_tokens:
            raise ValueError(f"{needed} tokens do not fit into a cache of {self.max_tokens}")
        capacity = self._data.shape[3]
        while capacity < needed:
            capacity = min(2 * capacity, self.max_tokens)
        if capacity > self._data.shape[3]:
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
