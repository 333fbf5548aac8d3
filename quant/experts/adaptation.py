"""Which experts should change places: pure decisions from decayed routing counts and costs.

A store calls `RecentCounts.update` now and then, `plan_swaps` with what it holds, and carries the
swaps out off the path of a token. Nothing here knows of devices, and nothing is random.
"""

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quant.errors import QuantError
from quant.experts.placement import ExpertKey

Counts = Mapping[int, Sequence[float]]


@dataclass(frozen=True, slots=True)
class MoveCosts:
    """What a move costs and what it saves, in seconds of a token's path.

    Attributes:
        expert_nbytes: Bytes that a promotion copies.
        bus_nbytes_per_second: Measured speed of that copy.
        miss_seconds: Time that a token loses when it chooses an expert outside the hot set.
        hit_seconds: The same for one inside.
        exposed_share: Part of a copy's time that tokens feel: 1 if they wait for it, less if it
            runs beside them on a bus that they do not fill.
    """

    expert_nbytes: int
    bus_nbytes_per_second: float
    miss_seconds: float
    hit_seconds: float
    exposed_share: float = 1.0

    def __post_init__(self) -> None:
        if self.expert_nbytes <= 0 or not self.bus_nbytes_per_second > 0:
            raise QuantError(
                f"a move of {self.expert_nbytes} bytes at {self.bus_nbytes_per_second} bytes/s "
                "makes no sense; both must be positive"
            )
        if not (math.isfinite(self.miss_seconds) and 0 <= self.hit_seconds < math.inf):
            raise QuantError(
                f"a miss of {self.miss_seconds} s or a hit of {self.hit_seconds} s makes no sense"
            )
        if not 0 <= self.exposed_share <= 1:
            raise QuantError(f"exposed_share must be from 0 to 1, got {self.exposed_share}")

    @property
    def move_seconds(self) -> float:
        """Time that tokens lose by one promotion."""
        return self.exposed_share * self.expert_nbytes / self.bus_nbytes_per_second


@dataclass(frozen=True, slots=True)
class AdaptationPolicy:
    """When a swap is worth it.

    Attributes:
        is_on: Whether the hot set follows the conversation at all.
        hysteresis: A newcomer needs so many times the hits of the one that it replaces.
        noise: And so many standard deviations more of them, taken as counts of independent events.
        horizon_tokens: A swap must have paid for itself after so many tokens.
        max_swaps: Most swaps at once, the best ones.
    """

    is_on: bool = True
    hysteresis: float = 1.1
    noise: float = 0.5
    horizon_tokens: int = 1024
    max_swaps: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.hysteresis < math.inf or not 0 <= self.noise < math.inf:
            raise QuantError(
                f"hysteresis must be at least 1 and noise at least 0, got {self.hysteresis} and "
                f"{self.noise}"
            )
        if self.horizon_tokens < 1 or self.max_swaps < 0:
            raise QuantError(
                f"horizon_tokens must be at least 1 and max_swaps at least 0, got "
                f"{self.horizon_tokens} and {self.max_swaps}"
            )


@dataclass(frozen=True, slots=True)
class Swap:
    """One change of the hot set: promote into a free slot, demote to make one, or both."""

    promote: ExpertKey | None
    demote: ExpertKey | None


def plan_swaps(
    counts: Counts,
    num_tokens: float,
    hot: Collection[ExpertKey],
    num_slots: int,
    costs: MoveCosts,
    policy: AdaptationPolicy,
) -> list[Swap]:
    """Which experts enter and leave a hot set of equally large slots, the best swap first.

    If the hot set is larger than its slots, the coldest leave first whatever the policy says:
    something else needs their memory. Free slots are filled next, then the hottest outside are
    paired with the coldest inside while a pair satisfies the policy.

    Args:
        counts: Recent hits by layer index and expert, from `RecentCounts`.
        num_tokens: Tokens that the counts come from, fading as they do.
        hot: The experts inside now.
        num_slots: How many may be inside.
        costs: Of a move and of a miss.
        policy: When a swap is worth it.

    Raises:
        QuantError: If a hot expert has no count or a number makes no sense.
    """
    inside = sorted(((_count(counts, key), key) for key in hot), key=lambda pair: pair)
    if num_slots < 0 or not 0 <= num_tokens < math.inf:
        raise QuantError(f"{num_slots} slots and {num_tokens} tokens make no sense")
    num_leaving = max(0, len(inside) - num_slots)
    evictions = [Swap(None, key) for _, key in inside[:num_leaving]]
    inside = inside[num_leaving:]
    if not policy.is_on or not num_tokens:
        return evictions
    chosen = set(hot)
    outside = heapq.nsmallest(
        policy.max_swaps,
        (
            (-float(count), ExpertKey(layer_idx, expert_idx))
            for layer_idx, layer_counts in counts.items()
            for expert_idx, count in enumerate(layer_counts)
            if ExpertKey(layer_idx, expert_idx) not in chosen
        ),
    )
    num_free = num_slots - len(inside)
    leaving: list[tuple[float, ExpertKey | None]] = [(0.0, None)] * num_free
    leaving += inside
    swaps = []
    for (negative, newcomer), (count, leaver) in zip(outside, leaving, strict=False):
        # Each pair has less to gain than the one before it, so the first refusal ends it.
        if not _pays(-negative, count, num_tokens, costs, policy):
            break
        swaps.append(Swap(newcomer, leaver))
    return evictions + swaps


def _count(counts: Counts, key: ExpertKey) -> float:
    try:
        return float(counts[key.layer_idx][key.expert_idx])
    except (KeyError, IndexError):
        raise QuantError(f"the hot set has {key}, of which there is no count") from None


def _pays(
    newcomer: float, leaver: float, num_tokens: float, costs: MoveCosts, policy: AdaptationPolicy
) -> bool:
    difference = newcomer - leaver
    if newcomer < policy.hysteresis * leaver:
        return False
    if difference < policy.noise * math.sqrt(newcomer + leaver):
        return False
    saved = costs.miss_seconds - costs.hit_seconds
    return difference / num_tokens * saved * policy.horizon_tokens > costs.move_seconds


class RecentCounts:
    """Routing counts that fade, begun from what earlier conversations used.

    Args:
        prior: Counts of a stored profile by layer index and expert; of zeros if there is none.
        prior_tokens: Tokens that the prior's counts come from.
        half_life_tokens: After so many new tokens a count weighs half.
        prior_weight_tokens: The prior weighs as much as so many tokens of this conversation, or
            as many as it comes from if these are fewer.

    Raises:
        QuantError: If a number makes no sense.
    """

    def __init__(
        self,
        prior: Counts,
        prior_tokens: float = 0.0,
        *,
        half_life_tokens: float = 256.0,
        prior_weight_tokens: float = 128.0,
    ) -> None:
        if not half_life_tokens > 0 or not (prior_tokens >= 0 and prior_weight_tokens >= 0):
            raise QuantError(
                f"a half-life of {half_life_tokens}, a prior of {prior_tokens} tokens and a weight "
                f"of {prior_weight_tokens} make no sense; use positive numbers"
            )
        self._half_life_tokens = half_life_tokens
        self.num_tokens = min(prior_tokens, prior_weight_tokens)
        scale = self.num_tokens / prior_tokens if prior_tokens else 0.0
        self._counts = {
            layer_idx: [scale * count for count in layer_counts]
            for layer_idx, layer_counts in prior.items()
        }
        self._seen: dict[int, list[float]] = {
            layer_idx: [0.0] * len(layer_counts) for layer_idx, layer_counts in prior.items()
        }
        self._tokens_seen = 0.0

    @property
    def counts(self) -> Mapping[int, Sequence[float]]:
        """Hits by layer index and expert, the older the lighter."""
        return self._counts

    def update(self, totals: Counts, total_tokens: float) -> None:
        """Take in what was routed since the last call.

        Args:
            totals: Counts since the start, as a store keeps them, for the prior's layers.
            total_tokens: Tokens since the start.

        Raises:
            QuantError: If a count or the tokens became fewer, or layers or experts differ.
        """
        new_tokens = total_tokens - self._tokens_seen
        if new_tokens < 0 or set(totals) != set(self._counts):
            raise QuantError("routing counts of another model, or of less than was there before")
        keep = 0.5 ** (new_tokens / self._half_life_tokens)
        counts = {}
        for layer_idx, layer_totals in totals.items():
            news = [
                now - before
                for now, before in zip(layer_totals, self._seen[layer_idx], strict=True)
            ]
            if min(news, default=0.0) < 0:
                raise QuantError(f"a routing count of layer {layer_idx} became smaller")
            old = self._counts[layer_idx]
            counts[layer_idx] = [keep * b + n for b, n in zip(old, news, strict=True)]
        self._counts = counts
        self._seen = {layer_idx: [float(c) for c in row] for layer_idx, row in totals.items()}
        self.num_tokens = keep * self.num_tokens + new_tokens
        self._tokens_seen = float(total_tokens)
