"""The buffers of a captured step: all that its kernels pass on, and what the host sets."""

import torch
from torch import Tensor

from quant.kernels.triton.step_weights import MLP_SPLITS, StepSizes, Tuning


class StepBuffers:
    """Tensors on the device that stay where they are, since captured launches hold addresses.

    Args:
        sizes: Of the model.
        tuning: How kernels are cut.
        linear_format: Of the layers' weights.
        slot_of: See `StepExperts`; None for a dense model.
        device: Where.

    Attributes:
        state: int64 on the device: position of the token to read, and address and capacity of
            the KV cache.
        token: int64 ``[1]``, the token to read; `pick` writes the next one.
        seen: uint8 ``[vocab_size]``, 1 for tokens under the repetition penalty.
        penalty: float32 ``[1]``.
        logits: float32 ``[vocab_size]``.
    """

    def __init__(
        self,
        sizes: StepSizes,
        tuning: Tuning,
        linear_format: str,
        slot_of: Tensor | None,
        device: torch.device,
    ) -> None:
        self.sizes = sizes
        self.tuning = tuning
        self._device = device
        self._linear_format = linear_format
        self._make_stream()
        self._make_attention()
        self._make_routing(slot_of)
        self._make_ends()

    def _new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _make_stream(self) -> None:
        """The residual stream, and activations on the way to the next product."""
        sizes, tuning = self.sizes, self.tuning
        hidden, heads = sizes.hidden_size, sizes.num_heads * sizes.head_dim
        slots = sizes.num_experts_per_tok + sizes.num_shared_experts
        inner = max(sizes.intermediate_size, slots * sizes.expert_width)
        codes = torch.bfloat16 if self._linear_format == "bf16" else torch.int16
        self._x = self._new(hidden)
        self._squares = self._new(hidden // 16)
        self._xq, self._xs = self._new(hidden, dtype=codes), self._new(hidden // 16)
        self._aq, self._as = self._new(inner, dtype=codes), self._new(inner // 16)
        self._oq, self._os = self._new(heads, dtype=codes), self._new(heads // 16)
        self._partial = self._new(max(tuning.down_splits, MLP_SPLITS) * hidden)
        self._counters = self._new(hidden // 16, dtype=torch.int32)

    def _make_attention(self) -> None:
        sizes, splits = self.sizes, self.tuning.attention_splits
        kv = sizes.num_kv_heads
        self._padded_rep = 16
        self._angles = self._new(sizes.head_dim)
        self._qkv = self._new((sizes.num_heads + 2 * kv) * sizes.head_dim)
        self._attention_acc = self._new(kv, splits, self._padded_rep, sizes.head_dim)
        self._attention_max = self._new(kv, splits, self._padded_rep)
        self._attention_sum = self._new(kv, splits, self._padded_rep)

    def _make_routing(self, slot_of: Tensor | None) -> None:
        sizes = self.sizes
        slots = max(sizes.num_experts_per_tok + sizes.num_shared_experts, 1)
        self._logit_parts = self._new(sizes.hidden_size // 16, max(sizes.num_experts, 1))
        self._slots = self._new(sizes.num_layers, slots, dtype=torch.int64)
        self._weights = self._new(sizes.num_layers, slots) + 1.0
        self._dense_slot = self._new(1, dtype=torch.int64)
        self._num_asked = self._new(sizes.num_layers, dtype=torch.int32)
        self._asked = self._new(1, dtype=torch.int32)
        self._arrived = self._new(2, dtype=torch.int32)
        self._fetched = self._new(sizes.hidden_size)
        if slot_of is not None and sizes.num_shared_experts:
            self._slots[:, sizes.num_experts_per_tok :] = slot_of[:, sizes.num_experts :]

    def _make_ends(self) -> None:
        """What the host sets and reads."""
        vocab_size = self.sizes.vocab_size
        num_best = -(-vocab_size // self.tuning.head_rows)
        self._best = self._new(num_best)
        self._best_at = self._new(num_best, dtype=torch.int64)
        self.logits = self._new(vocab_size)
        self.state = self._new(3, dtype=torch.int64)
        self.token = self._new(1, dtype=torch.int64)
        self.seen = self._new(vocab_size, dtype=torch.uint8)
        self.penalty = self._new(1) + 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for t in vars(self).values() if isinstance(t, Tensor))
