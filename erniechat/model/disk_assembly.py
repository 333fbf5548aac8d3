"""Routed experts of a copy on disk into a store that keeps some of them in RAM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.family import routed_name
from quant.copy import QuantizedCopy, WeightSource
from quant.errors import QuantError
from quant.experts.cache import ExpertCache, StoredExpert
from quant.experts.disk import DiskExpertStore, Predict
from quant.experts.placement import ExpertKey
from quant.kernels.base import KernelBackend
from quant.tensor import QuantTensor


@dataclass(frozen=True, slots=True)
class Residency:
    """Which experts of a copy on disk are kept in RAM.

    Attributes:
        num_slots: Experts at once.
        first: Those to begin with.
        counts: Routing counts of earlier chats by layer index.
        by_use: Keep the most used; else the last used.
        read_ahead: Read what the next layer's router makes of a layer's inputs.
        stage: Read the next layer's while a long prompt is still in this one.
    """

    num_slots: int
    first: Sequence[ExpertKey] = ()
    counts: Mapping[int, Sequence[float]] | None = None
    by_use: bool = True
    read_ahead: bool = False
    stage: bool = True


def router_guess(config: ModelConfig, weights: WeightSource) -> Predict:
    """A layer's router over the inputs of the layer before it.

    On the built-in model 73 % of what it takes for a layer's choice is chosen.
    """
    routers = {}
    for layer_idx in config.moe_layers:
        router, bias = (weights[f"layers.{layer_idx}.{n}"] for n in ("router", "correction_bias"))
        if isinstance(router, QuantTensor) or isinstance(bias, QuantTensor):
            raise QuantError("a router is quantized; delete the quantized copy")
        routers[layer_idx] = router, bias

    def predict(layer_idx: int, hidden_states: Tensor) -> Tensor:
        router, bias = routers[layer_idx]
        return (hidden_states[0].float() @ router.T).softmax(-1) + bias

    return predict


def cached_experts(
    config: ModelConfig, weights: WeightSource, backend: KernelBackend, residency: Residency | None
) -> DiskExpertStore | None:
    """A store that reads experts from the copy; None if all may be mapped.

    Args:
        config: The model's shape.
        weights: Every weight by its name.
        backend: Runs the experts, on the CPU.
        residency: Who is in RAM.
    """
    if residency is None or not config.moe_layers or not isinstance(weights, QuantizedCopy):
        return None
    stored = {
        ExpertKey(layer_idx, expert_idx): StoredExpert(
            weights.place(routed_name(layer_idx, expert_idx, "gate_up")),
            weights.place(routed_name(layer_idx, expert_idx, "down")),
        )
        for layer_idx in config.moe_layers
        for expert_idx in range(config.num_experts)
    }
    store = DiskExpertStore(
        ExpertCache(weights.path, stored, residency.num_slots),
        config.moe_layers,
        config.num_experts,
        config.num_hidden_layers,
        backend,
        counts=residency.counts,
        by_use=residency.by_use,
        predict=router_guess(config, weights) if residency.read_ahead else None,
        stage=residency.stage,
    )
    store.warm(residency.first)
    return store
