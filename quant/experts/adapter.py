"""Keeps the experts that a conversation uses most on the GPU: policy joined to a tiered store."""

from collections.abc import Mapping, Sequence

from quant.experts.adaptation import AdaptationPolicy, MoveCosts, RecentCounts, plan_swaps
from quant.experts.placement import ExpertKey
from quant.experts.tiered import TieredExpertStore

GPU_NBYTES_PER_SECOND = 1e12  # that decoding reads of a GPU's memory, to an order of magnitude


class ExpertAdapter:
    """Exchanges experts between tokens.

    Args:
        store: Whose experts move.
        layers: Layers that have experts.
        prior: Counts of earlier conversations by layer; None if there are none.
        prior_tokens: Tokens that these come from.
        policy: When a swap is worth it; its switch turns all off.

    Attributes:
        num_swaps: Done so far.
    """

    def __init__(
        self,
        store: TieredExpertStore,
        layers: Sequence[int],
        prior: Mapping[int, Sequence[float]] | None,
        prior_tokens: float,
        policy: AdaptationPolicy,
    ) -> None:
        self._store = store
        self._layers = layers
        self._policy = policy
        size, costs = store.pool.slot_nbytes, store.costs
        self._costs = MoveCosts(
            expert_nbytes=2 * size,  # one comes, one goes
            bus_nbytes_per_second=costs.bus,
            miss_seconds=size / (costs.bus + costs.ram),
            hit_seconds=size / GPU_NBYTES_PER_SECOND,
        )
        zeros = {i: [0.0] * store.counts.shape[1] for i in layers}
        self._recent = RecentCounts(zeros if prior is None else prior, prior_tokens)
        self.num_swaps = 0

    def hits(self, key: ExpertKey) -> float:
        """How much an expert is used, the older the lighter."""
        return self._recent.counts[key.layer_idx][key.expert_idx]

    def adapt(self, num_tokens: int) -> int:
        """Move what should move; returns the number of experts that came to the GPU.

        Args:
            num_tokens: Tokens computed since the start.
        """
        if not self._policy.is_on:
            return 0
        counts = self._store.counts
        self._recent.update({i: counts[i].tolist() for i in self._layers}, num_tokens)
        resident = self._store.resident
        swaps = plan_swaps(
            self._recent.counts,
            self._recent.num_tokens,
            resident,
            len(resident),
            self._costs,
            self._policy,
        )
        pairs: list[tuple[ExpertKey, ExpertKey]] = [
            (swap.promote, swap.demote)
            for swap in swaps
            if swap.promote is not None
            and swap.demote is not None
            and self._store.is_in_ram(swap.promote)
        ]
        self._store.swap_all(pairs)
        self.num_swaps += len(pairs)
        return len(pairs)
