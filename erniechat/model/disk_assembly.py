"""Routed experts of a copy on disk into a store that keeps some of them in RAM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.family import routed_name
from quant.copy import QuantizedCopy, WeightSource
from quant.experts.cache import ExpertCache, StoredExpert
from quant.experts.disk import DiskExpertStore
from quant.experts.placement import ExpertKey


@dataclass(frozen=True, slots=True)
class Residency:
    """Which experts of a copy on disk are kept in RAM.

    Attributes:
        num_slots: Experts at once.
        first: Those to begin with.
        counts: Routing counts of earlier chats by layer index.
        by_use: Keep the most used; else the last used.
    """

    num_slots: int
    first: Sequence[ExpertKey] = ()
    counts: Mapping[int, Sequence[float]] | None = None
    by_use: bool = True


def cached_experts(
    config: ModelConfig, weights: WeightSource, formats: Formats, residency: Residency | None
) -> DiskExpertStore | None:
    """A store that reads experts from the copy; None if all may be mapped."""
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
        formats.linear_backend,
        counts=residency.counts,
        by_use=residency.by_use,
    )
    store.warm(residency.first)
    return store
