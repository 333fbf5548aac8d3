"""Slots at the end of a GPU's pool, lent to a KV cache: the coldest experts leave, and return."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from quant.errors import QuantError
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT
from quant.experts.tiered import TieredExpertStore


@dataclass(frozen=True, slots=True)
class Departure:
    """What must happen before the slots of a pool from some number on are free.

    Attributes:
        leaving: Experts that leave the GPU's memory, the coldest first.
        moving: Then, in this order, experts and the slots that they go to within it.
    """

    leaving: tuple[ExpertKey, ...]
    moving: tuple[tuple[ExpertKey, int], ...]


def plan_departure(
    resident: Mapping[ExpertKey, int],
    fixed: Collection[int],
    num_spare: int,
    num_kept: int,
    hits: Callable[[ExpertKey], float],
) -> Departure:
    """Who leaves so that all slots from num_kept on are free: the fewest and the coldest.

    Args:
        resident: Slots of the routed experts that may leave.
        fixed: Slots that stay as they are.
        num_spare: Slots that are free for exchanges, and as many shall be then.
        num_kept: Slots that are kept.
        hits: How much an expert is used; of equals the last of each layer leaves first.

    Raises:
        QuantError: If what cannot leave is in the way.
    """
    in_the_way = sum(slot >= num_kept for slot in fixed)
    num_places = num_kept - len(fixed) - num_spare
    if in_the_way or num_places < 0:
        raise QuantError(f"{num_kept} slots do not hold what cannot leave the GPU's memory")
    # Of experts that are used alike not a whole layer leaves, but some of every one.
    order = sorted(resident, key=lambda key: (hits(key), -key.expert_idx, -key.layer_idx))
    num_leaving = max(0, len(order) - num_places)
    leaving, staying = order[:num_leaving], order[num_leaving:]
    used = {*fixed, *(resident[key] for key in staying)}
    holes = iter([slot for slot in range(num_kept) if slot not in used])
    movers = sorted((key for key in staying if resident[key] >= num_kept), key=resident.__getitem__)
    return Departure(tuple(leaving), tuple((key, next(holes)) for key in movers))


class SlotLender:
    """Lends the last slots of a store's pool, and takes them back.

    Args:
        store: Whose experts leave and return.
        ram_nbytes: Most bytes of RAM for experts that leave.
        ram_free: Bytes of RAM that can be taken at the moment.
        row_shares: By how many experts are in pinned memory, what `TieredExpertStore` calls
            row_shares; None leaves those.

    Attributes:
        hits: How much an expert is used; by default what the store has counted.
    """

    def __init__(
        self,
        store: TieredExpertStore,
        ram_nbytes: int,
        ram_free: Callable[[], int],
        row_shares: Callable[[int], Mapping[int, float]] | None = None,
    ) -> None:
        self._store = store
        self._ram_nbytes, self._ram_free = ram_nbytes, ram_free
        self._row_shares = row_shares
        self.hits: Callable[[ExpertKey], float] | None = None

    @property
    def num_usable(self) -> int:
        """Slots that are not lent."""
        return self._store.num_usable

    @property
    def least_slots(self) -> int:
        """Slots that cannot be lent, however little room the experts have elsewhere."""
        store = self._store
        fixed = self._store.where.fixed_slots
        num_kept = len(fixed) + store.where.num_spare
        least = max(num_kept, max(fixed, default=-1) + 1)
        if store.tail is not None:
            return least
        return max(least, len(store.resident) + num_kept - self._num_places)

    def lend(self, num_kept: int) -> int:
        """Let go of all slots from num_kept on; returns how many experts left.

        They go to RAM, and of those that do not fit there the coldest to the store's tail.

        Raises:
            QuantError: If that cannot be; then everything is as it was.
        """
        store = self._store
        if num_kept >= store.num_usable:
            return 0
        store.moves.finish()
        departure = plan_departure(
            {key: store.slot(key) for key in store.resident},
            store.where.fixed_slots,
            store.where.num_spare,
            num_kept,
            self._known_hits(),
        )
        leaving = departure.leaving
        num_far = max(0, len(leaving) - self._num_places)
        if num_far and store.tail is None:
            raise QuantError(
                f"{num_far} of {len(leaving)} experts of {store.pool.slot_nbytes:,} bytes more do "
                "not fit into RAM"
            )
        places = store.host.take(len(leaving) - num_far)
        moves = zip(leaving, [NO_SLOT] * num_far + places, strict=True)
        self._carry([*moves, *departure.moving], places)
        store.where.num_usable = num_kept
        self._share_rows()
        return len(departure.leaving)

    def take_back(self, num_usable: int) -> int:
        """Have slots up to num_usable for experts again; returns how many came back.

        Those used most do, pinned until then or not. What these leave of pinned memory that is
        held anyway goes to others who are in the tail: with nobody there the GPU reaches all.

        Raises:
            QuantError: If one of the tail's cannot be read.
        """
        store = self._store
        store.moves.finish()
        store.where.num_usable = max(store.num_usable, min(num_usable, store.num_slots))
        free = store.where.free_slots()[store.where.num_spare :]
        away = store.pinned if store.tail is None else store.pinned | store.tail.keys
        coming = self._most_used(away, len(free))
        left = self._slots(store.pinned.intersection(coming))
        self._carry(list(zip(coming, free, strict=False)), left)
        self._empty_tail()
        self._tidy()
        self._share_rows()
        return len(coming)

    def _tidy(self) -> None:
        """Experts that stay in RAM fill what was there first, so that the rest of it can go."""
        store = self._store
        moves = []
        for key in sorted(store.pinned):
            if (place := store.host.trade(store.slot(key))) is not None:
                moves.append((key, place))
        touched = {slot for key, place in moves for slot in (store.slot(key), place)}
        self._carry(moves, touched)
        for slot in store.where.free_hosted():
            if store.host.trade(slot) is not None:
                store.host.give_back([slot])

    def _empty_tail(self) -> None:
        """Those of the tail who are used most go to pinned memory that nobody is in."""
        store = self._store
        if store.tail is None or not store.host.num_free:
            return
        coming = self._most_used(store.tail.keys, store.host.num_free)
        places = store.host.take(len(coming))
        self._carry(list(zip(coming, places, strict=True)), places)

    def _carry(self, moves: Sequence[tuple[ExpertKey, int]], places: Collection[int]) -> None:
        """Carry experts, and give back those of these pinned places that nobody is in then.

        Also if it fails or by Ctrl-C: who has moved by then is where it went.
        """
        store = self._store
        try:
            store.carry_all(moves)
        finally:
            store.host.give_back(set(places) - self._slots(store.pinned))

    def _most_used(self, keys: Iterable[ExpertKey], count: int) -> list[ExpertKey]:
        hits = self._known_hits()
        return sorted(keys, key=lambda key: (-hits(key), key))[:count]

    @property
    def _num_places(self) -> int:
        """Experts that the RAM still takes; new memory is a slot larger than what it holds."""
        host, size = self._store.host, self._store.pool.slot_nbytes
        room = min(self._ram_nbytes - host.added_nbytes, self._ram_free())
        return host.num_free + max(0, room // size - 1)

    def _slots(self, keys: Iterable[ExpertKey]) -> set[int]:
        return {self._store.slot(key) for key in keys}

    def _known_hits(self) -> Callable[[ExpertKey], float]:
        counts = self._store.counts
        return self.hits or (lambda key: float(counts[key]))

    def _share_rows(self) -> None:
        """Let CPU and bus share what lies outside now."""
        store = self._store
        if self._row_shares is not None:
            store.where.share_rows(self._row_shares(len(store.pinned)))
