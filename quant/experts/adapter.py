"""Keeps the experts that a conversation uses most on the GPU: policy joined to a tiered store."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from quant.experts.adaptation import AdaptationPolicy, MoveCosts, RecentCounts, plan_swaps
from quant.experts.device_tables import Peek
from quant.experts.moves import Pair
from quant.experts.placement import ExpertKey
from quant.experts.tiered import TieredExpertStore

ADAPT_EVERY = 256  # tokens of a reply
GPU_NBYTES_PER_SECOND = 1e12  # that decoding reads of a GPU's memory, to an order of magnitude


class ExpertAdapter:
    """Exchanges experts between turns, and beside the tokens of a long one.

    Args:
        store: Whose experts move.
        layers: Layers that have experts.
        prior: Counts of earlier conversations by layer; None if there are none.
        prior_tokens: Tokens that these come from.
        policy: When a swap is worth it; its switch turns all off.
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
        self._peek = Peek(store.routing_counts, store.lanes.main)
        self._asked_at = 0

    @property
    def num_swaps(self) -> int:
        """Exchanges done so far."""
        return self._store.moves.num_done

    def hits(self, key: ExpertKey) -> float:
        """How much an expert is used, the older the lighter."""
        return self._recent.counts[key.layer_idx][key.expert_idx]

    def follow(self, num_tokens: int) -> None:
        """Between two tokens of a reply: every so many of them, let move what should.

        Nothing is waited for: counts are asked for at one token and read at a later one, and
        experts move beside the next ones.

        Args:
            num_tokens: Tokens computed since the start, one more than at the last call.

        Raises:
            QuantError: If the disk could not be read.
        """
        if not self._policy.is_on:
            return
        if num_tokens % ADAPT_EVERY == 0:
            self._peek.ask()
            self._asked_at = num_tokens
        elif self._peek.is_here:
            self._store.moves.ask(self._pairs(self._peek.take(), self._asked_at))
        self._store.moves.advance()

    def adapt(self, num_tokens: int) -> int:
        """Between two turns: move at once what should; returns how many experts came to the GPU.

        Args:
            num_tokens: Tokens computed since the start.

        Raises:
            QuantError: If the disk could not be read.
        """
        if not self._policy.is_on:
            return 0
        self._peek.drop()
        self._store.moves.finish()
        pairs = self._pairs(self._store.counts, num_tokens)
        self._store.swap_all(pairs)
        return len(pairs)

    def _pairs(self, counts: Tensor, num_tokens: int) -> list[Pair]:
        """Who should come to the GPU for whom, by counts of that many tokens."""
        store = self._store
        num_experts = len(next(iter(self._recent.counts.values())))
        totals = {i: counts[i, :num_experts].tolist() for i in self._layers}
        self._recent.update(totals, num_tokens)
        resident = store.resident
        swaps = plan_swaps(
            self._recent.counts,
            self._recent.num_tokens,
            resident,
            len(resident),
            self._costs,
            self._policy,
        )
        return [
            (swap.promote, swap.demote)
            for swap in swaps
            if swap.promote is not None
            and swap.demote is not None
            and store.is_in_ram(swap.promote)
        ]
