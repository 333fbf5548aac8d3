"""What a kernel backend is, and the layer of routed experts built from its matrix product."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.tensor import QuantTensor


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert: a SwiGLU of width I on H features.

    Attributes:
        gate_up: ``[2I, H]``, the gate's rows first.
        down: ``[H, I]``.
    """

    gate_up: QuantTensor
    down: QuantTensor

    @property
    def nbytes(self) -> int:
        """Bytes of both matrices."""
        return self.gate_up.nbytes + self.down.nbytes

    def to(self, device: torch.device) -> "ExpertWeights":
        """The expert on a device; itself if it is there."""
        return ExpertWeights(self.gate_up.to(device), self.down.to(device))


class KernelBackend(Protocol):
    """Products with quantized weights. Held to ``reference`` by tests/quant/test_kernels.py."""

    @property
    def name(self) -> str:
        """The key in ``BACKENDS``."""
        ...

    def why_not(self, format_name: str, device: torch.device) -> str:
        """Why this backend cannot serve a format on a device; empty if it can."""
        ...

    def prepare(self, tensor: QuantTensor) -> QuantTensor:
        """The same weight in the layout that this backend reads; it is what the copy stores."""
        ...

    def matmul(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        """``hidden_states @ weight.T`` in the dtype of hidden_states.

        Args:
            hidden_states: ``[num_tokens, in_features]``, float32 or bfloat16.
            weight: Prepared by this backend.

        Returns:
            ``[num_tokens, out_features]``.
        """
        ...

    def routed_experts(
        self,
        hidden_states: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: Sequence[ExpertWeights],
    ) -> Tensor:
        """The weighted sum of each token's chosen experts.

        Args:
            hidden_states: ``[num_tokens, hidden_size]``.
            topk_ids: int64 ``[num_tokens, num_experts_per_tok]``, distinct in a row.
            topk_weights: float32 ``[num_tokens, num_experts_per_tok]``.
            experts: The layer's experts by id.

        Returns:
            ``[num_tokens, hidden_size]`` in the dtype of hidden_states.
        """
        ...


Matmul = Callable[[Tensor, QuantTensor], Tensor]


def expert_mlp(matmul: Matmul, hidden_states: Tensor, expert: ExpertWeights) -> Tensor:
    """One expert's SwiGLU: ``down(silu(gate(x)) * up(x))``."""
    gate, up = matmul(hidden_states, expert.gate_up).chunk(2, -1)
    return matmul(F.silu(gate) * up, expert.down)


def routed_experts_by_matmul(
    matmul: Matmul,
    hidden_states: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    experts: Sequence[ExpertWeights],
) -> Tensor:
    """The layer of routed experts from a backend's matmul: each used expert once, over its tokens.

    The sum over a token's experts is kept in float32. See `KernelBackend.routed_experts`.
    """
    num_experts_per_tok = topk_ids.shape[1]
    order = topk_ids.flatten().argsort(stable=True)
    token_of = order.div(num_experts_per_tok, rounding_mode="floor")
    weight_of = topk_weights.flatten()[order]
    counts = torch.bincount(topk_ids.flatten(), minlength=len(experts)).tolist()
    out = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    begin = 0
    for expert, count in zip(experts, counts, strict=True):
        if count:
            rows = token_of[begin : begin + count]
            result = expert_mlp(matmul, hidden_states[rows], expert).float()
            out.index_add_(0, rows, result * weight_of[begin : begin + count, None])
            begin += count
    return out.to(hidden_states.dtype)


class MatmulBackend(ABC):
    """A backend whose layer of routed experts is built from its own matmul."""

    @abstractmethod
    def matmul(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        """See `KernelBackend.matmul`."""

    def routed_experts(
        self,
        hidden_states: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: Sequence[ExpertWeights],
    ) -> Tensor:
        """See `KernelBackend.routed_experts`."""
        return routed_experts_by_matmul(self.matmul, hidden_states, topk_ids, topk_weights, experts)
