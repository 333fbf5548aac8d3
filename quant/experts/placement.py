"""Where each routed expert lives: a pure function of routing counts, bytes and budgets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from quant.errors import QuantError


class ExpertKey(NamedTuple):
    """One routed expert of the model."""

    layer_idx: int
    expert_idx: int


@dataclass(frozen=True, slots=True)
class Tier:
    """A place for experts.

    Attributes:
        name: For messages, for instance ``GPU``.
        budget_nbytes: Bytes that experts may take there; None for no limit.
    """

    name: str
    budget_nbytes: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Every expert in exactly one tier. The sequences go by tier, fastest first.

    Attributes:
        tiers: The tiers that were planned for.
        experts: Their experts, most hits per byte first.
        nbytes: Bytes of their experts.
        hit_rates: Share of all routings that they serve if the counts go on as they were; they
            add up to 1. Without a single count every expert is taken to be used equally often.
    """

    tiers: tuple[Tier, ...]
    experts: tuple[tuple[ExpertKey, ...], ...]
    nbytes: tuple[int, ...]
    hit_rates: tuple[float, ...]


def plan_placement(
    counts: Mapping[int, Sequence[float]],
    expert_nbytes: int | Mapping[int, int],
    tiers: Sequence[Tier],
) -> Placement:
    """Put the experts with the most hits per byte into the fastest tiers.

    All layers compete for one budget. In the order of hits per byte, ties by (layer, expert),
    each expert takes the first tier that has room for it. For one tier this never loses by a
    larger budget: an expert that fits only with one more byte fills what is left to the last
    byte, and nothing later has more hits per byte.

    Args:
        counts: By layer index how often each expert was chosen. Layers without routed experts
            are left out.
        expert_nbytes: Bytes of one expert, of every layer or by layer index.
        tiers: Fastest first.

    Raises:
        QuantError: If a count, a size or a budget makes no sense, or if the tiers together are
            too small; then with the least number of bytes that would do.
    """
    _check_tiers(tiers)
    sizes = _sizes_of_layers(counts, expert_nbytes)
    ranked = _by_hits_per_byte(counts, sizes)
    room = [math.inf if tier.budget_nbytes is None else tier.budget_nbytes for tier in tiers]
    experts: list[list[ExpertKey]] = [[] for _ in tiers]
    homeless: list[ExpertKey] = []
    for key in ranked:
        size = sizes[key.layer_idx]
        tier_idx = next((i for i, left in enumerate(room) if size <= left), None)
        if tier_idx is None:
            homeless.append(key)
            continue
        room[tier_idx] -= size
        experts[tier_idx].append(key)
    nbytes = [sum(sizes[key.layer_idx] for key in keys) for keys in experts]
    if homeless:
        missing_nbytes = sum(sizes[key.layer_idx] for key in homeless)
        raise _too_small(tiers, sum(nbytes) + missing_nbytes, nbytes[-1] + missing_nbytes)
    return Placement(
        tiers=tuple(tiers),
        experts=tuple(tuple(keys) for keys in experts),
        nbytes=tuple(nbytes),
        hit_rates=_hit_rates(counts, experts),
    )


def _check_tiers(tiers: Sequence[Tier]) -> None:
    if not tiers:
        raise QuantError("there is no tier to put experts into; give at least one")
    for tier in tiers:
        if tier.budget_nbytes is not None and tier.budget_nbytes < 0:
            raise QuantError(
                f"the budget of {tier.name} is {tier.budget_nbytes} bytes; use 0 to keep experts "
                "out of it"
            )


def _sizes_of_layers(
    counts: Mapping[int, Sequence[float]], expert_nbytes: int | Mapping[int, int]
) -> dict[int, int]:
    if isinstance(expert_nbytes, int):
        sizes = dict.fromkeys(counts, expert_nbytes)
    else:
        unknown = sorted(set(counts) - set(expert_nbytes))
        if unknown:
            raise QuantError(f"no size is given for the experts of layers {unknown}; add it")
        sizes = {layer_idx: expert_nbytes[layer_idx] for layer_idx in counts}
    for layer_idx, size in sizes.items():
        if size <= 0:
            raise QuantError(
                f"an expert of layer {layer_idx} has {size} bytes; the size must be positive"
            )
    return sizes


def _by_hits_per_byte(
    counts: Mapping[int, Sequence[float]], sizes: Mapping[int, int]
) -> list[ExpertKey]:
    ranked = []
    for layer_idx, layer_counts in counts.items():
        for expert_idx, count in enumerate(layer_counts):
            if not 0 <= count < math.inf:  # NaN fails too
                raise QuantError(
                    f"the routing count of layer {layer_idx}, expert {expert_idx} is {count}; "
                    "counts are finite and not negative; delete the routing profile if it has this"
                )
            # A fraction is exact: equal hits per byte stay a tie on every machine.
            hits_per_byte = Fraction(count) / sizes[layer_idx]
            ranked.append((-hits_per_byte, ExpertKey(layer_idx, expert_idx)))
    return [key for _, key in sorted(ranked)]


def _hit_rates(
    counts: Mapping[int, Sequence[float]], experts: Sequence[Sequence[ExpertKey]]
) -> tuple[float, ...]:
    hits = [math.fsum(counts[key.layer_idx][key.expert_idx] for key in keys) for keys in experts]
    if not any(hits):
        hits = [float(len(keys)) for keys in experts]
    total = math.fsum(hits) or 1.0
    return tuple(hit / total for hit in hits)


def _too_small(tiers: Sequence[Tier], total_nbytes: int, last_nbytes: int) -> QuantError:
    budgets = " + ".join(f"{tier.name} {tier.budget_nbytes:,}" for tier in tiers)
    return QuantError(
        f"the experts take {total_nbytes:,} bytes and the budgets ({budgets}) cannot hold them; "
        f"give {tiers[-1].name} at least {last_nbytes:,} bytes, or add a tier without a limit"
    )
