"""The one door to routed experts: runs them wherever they live and counts who was used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import ExpertWeights, KernelBackend


@dataclass(frozen=True, slots=True)
class TierUse:
    """What one place of experts has done since the start.

    Attributes:
        name: ``GPU``, ``bus`` (streamed through it), ``RAM`` or ``disk``.
        experts_run: Executions of an expert found there, each over one token or a chunk's tokens.
        nbytes_read: Weights that these executions read from there.
    """

    name: str
    experts_run: int
    nbytes_read: int


class ExpertStore(Protocol):
    """Runs routed experts; the model never learns where one lives."""

    @property
    def counts(self) -> Tensor:
        """How often each expert was chosen since the start, int64 ``[num_layers, num_experts]``."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        ...

    @property
    def hit_rate(self) -> float:
        """Share of the routings counted whose expert was in the memory of the model's device."""
        ...

    @property
    def uses(self) -> tuple[TierUse, ...]:
        """What each place of experts has done, fastest first; places without experts left out."""
        ...

    @property
    def kernels(self) -> str:
        """Name of the kernel backend that runs them."""
        ...

    @property
    def has_shared(self) -> bool:
        """Whether `forward` adds the layer's shared experts too."""
        ...

    def forward(
        self, layer_idx: int, hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Tensor:
        """The weighted sum of each token's chosen experts.

        Args:
            layer_idx: Index of the layer in the model.
            hidden_states: ``[num_tokens, hidden_size]``.
            topk_ids: int64 ``[num_tokens, num_experts_per_tok]``.
            topk_weights: float32 ``[num_tokens, num_experts_per_tok]``.

        Returns:
            ``[num_tokens, hidden_size]`` in the dtype of hidden_states.
        """
        ...


class ResidentExpertStore:
    """All experts in the memory of one device.

    Args:
        experts: By layer index the layer's experts, in the order of their ids.
        num_layers: Layers of the model, those without experts included.
        backend: Runs them; it has prepared their weights.

    Raises:
        QuantError: If layers differ in their number of experts.
    """

    def __init__(
        self,
        experts: Mapping[int, Sequence[ExpertWeights]],
        num_layers: int,
        backend: KernelBackend,
    ) -> None:
        sizes = {len(layer) for layer in experts.values()}
        if len(sizes) > 1:
            raise QuantError(f"layers have {sorted(sizes)} experts; all must have as many")
        self._experts = experts
        self._backend = backend
        num_experts = sizes.pop() if sizes else 0
        self._counts = torch.zeros(num_layers, num_experts, dtype=torch.int64)
        self._experts_run = 0

    @property
    def counts(self) -> Tensor:
        """See `ExpertStore.counts`."""
        return self._counts

    @property
    def nbytes(self) -> int:
        """See `ExpertStore.nbytes`."""
        return sum(expert.nbytes for layer in self._experts.values() for expert in layer)

    @property
    def hit_rate(self) -> float:
        """All of them: this store has no other place."""
        return 1.0

    @property
    def uses(self) -> tuple[TierUse, ...]:
        """See `ExpertStore.uses`."""
        expert = next((layer[0] for layer in self._experts.values() if layer), None)
        if expert is None:
            return ()
        name = "GPU" if expert.gate_up.device.type == "cuda" else "RAM"
        return (TierUse(name, self._experts_run, self._experts_run * expert.nbytes),)

    @property
    def kernels(self) -> str:
        """See `ExpertStore.kernels`."""
        return self._backend.name

    @property
    def has_shared(self) -> bool:
        """See `ExpertStore.has_shared`; the model keeps them."""
        return False

    def count(self, chosen: Tensor) -> None:
        """Add routings of single tokens that ran elsewhere, int64 ``[num_layers, num_experts]``."""
        self._counts += chosen
        self._experts_run += int(chosen.sum())

    def forward(
        self, layer_idx: int, hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Tensor:
        """See `ExpertStore.forward`."""
        experts = self._experts[layer_idx]
        chosen = topk_ids.flatten().cpu()
        counts = torch.bincount(chosen, minlength=len(experts))
        self._counts[layer_idx] += counts
        self._experts_run += int(counts.count_nonzero())
        return self._backend.routed_experts(hidden_states, topk_ids, topk_weights, experts)
