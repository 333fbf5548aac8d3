"""Experts of a GPU and of RAM change places while tokens run: copied aside, then told at once.

A batch of exchanges goes through three steps, each begun between two tokens and none waited for:

1. Copy, beside the tokens: who comes, into a free slot of the GPU's; who leaves, into a free one of
   pinned memory. Nobody reads these slots yet, and both experts stay where they were as well.
2. Tell, once the copies have ended: the CPU learns where those are who leave, and one copy in the
   order of the tokens changes the device's tables. Tokens launched before still find everybody in
   the old places, on the GPU and on the CPU.
3. Settle, once that copy has ended, and with it every token launched before it: the old places
   are free for the next batch, and the CPU forgets who came.

Who comes from the tail has its bytes copied to pinned memory first, by the host; who leaves then
joins the tail, from whose copy on disk it is read, so nothing is copied back.

All that is free follows from where the experts are and from the batch under way, and each step may
be done again from its beginning: an interrupt between any two lines loses no slot and no expert.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from quant.errors import QuantError
from quant.experts.device_tables import Peek
from quant.experts.lanes import Lanes, Mark
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT
from quant.experts.tail import ExpertTail
from quant.experts.whereabouts import Whereabouts
from quant.kernels.native.serve import ExpertServer

NUM_AT_ONCE = 4  # exchanges under way together: each keeps a slot of the GPU's and of RAM free

Pair = tuple[ExpertKey, ExpertKey]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One expert that comes to the GPU for one that leaves it.

    Attributes:
        promoted: Who comes.
        demoted: Who leaves.
        source: Where promoted was: a slot of the host's, or NO_SLOT for the tail.
        target: The GPU's slot that it comes to.
        left: The GPU's slot where demoted was.
        refuge: A slot of the host's: where demoted goes, or through which promoted comes from the
            tail.
    """

    promoted: ExpertKey
    demoted: ExpertKey
    source: int
    target: int
    left: int
    refuge: int

    @property
    def from_tail(self) -> bool:
        """Whether promoted was in the tail; demoted goes there then."""
        return self.source == NO_SLOT

    @property
    def places(self) -> tuple[tuple[ExpertKey, int], tuple[ExpertKey, int]]:
        """Where both are afterwards."""
        return (
            (self.promoted, self.target),
            (self.demoted, NO_SLOT if self.from_tail else self.refuge),
        )


@dataclass(slots=True)
class _Batch:
    """Exchanges that are under way together.

    Attributes:
        exchanges: As many as there are free slots, at most.
        resident: Who was on the GPU before.
        copied: Behind the copies; None before they were begun.
        told: Behind the change of the device's tables; None before it was begun.
    """

    exchanges: Sequence[Exchange]
    resident: set[ExpertKey]
    copied: Mark | None = None
    told: Mark | None = None


class ExpertMover:
    """Carries out exchanges, a few at a time.

    Args:
        where: Who is where, with a free slot on the GPU and one in pinned memory at least.
        server: The CPU's side.
        tail: Has experts without a slot; None if there never are any.
        counts: int64 ``[num_layers, …]`` on the device, how often experts were chosen.
        lanes: Of the device.

    Attributes:
        num_done: Experts that have come to the GPU so far.
    """

    def __init__(
        self,
        where: Whereabouts,
        server: ExpertServer,
        tail: ExpertTail | None,
        counts: Tensor,
        lanes: Lanes,
    ) -> None:
        self._where, self._server, self._tail, self._lanes = where, server, tail, lanes
        self._counts = Peek(counts, lanes.main)
        self._waiting: deque[Pair] = deque()
        self._batch: _Batch | None = None
        self.num_done = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing moves and nobody waits for it."""
        return self._batch is None and not self._waiting

    def ask(self, pairs: Iterable[Pair]) -> None:
        """Let `advance` exchange these pairs of who comes and who leaves, and no others waiting.

        A pair of which one is elsewhere by then, or would have to be waited for, is left out.
        """
        self._waiting = deque(pairs)

    def advance(self) -> None:
        """Between two tokens: go on as far as that is possible without waiting for the device.

        Raises:
            QuantError: If the disk could not be read; the experts concerned stay where they are.
        """
        batch = self._batch
        if batch is not None and batch.told is not None and batch.told.query():
            self._settle(batch)
        if self._batch is None and self._waiting:
            self._begin(waits=False)
        batch = self._batch
        if batch is None:
            return
        if batch.copied is None:
            self._copy(batch)
        elif batch.told is None and batch.copied.query() and self._where.tables.is_free:
            self._tell(batch)

    def finish(self) -> None:
        """Carry out what is under way and leave the rest; waits for the device."""
        self._waiting.clear()
        self._end_batch()

    def exchange(self, pairs: Iterable[Pair]) -> None:
        """Carry out all of these, in order; waits for the device.

        Raises:
            QuantError: If a pair is not where that is possible, or the disk cannot be read; what
                came before is done then.
        """
        self.finish()
        self._waiting = deque(pairs)
        try:
            while self._waiting:
                self._begin(waits=True)
                if self._batch is None:
                    raise QuantError("no slot is free for an exchange of experts")
                self._end_batch()
        finally:
            self.finish()

    def _begin(self, waits: bool) -> None:
        """Give those who wait longest the slots that are free."""
        where, waiting = self._where, self._waiting
        exchanges: list[Exchange] = []
        moving: set[ExpertKey] = set()
        try:
            for slots in zip(where.free_slots(), where.free_hosted(), strict=False):
                while waiting and moving.isdisjoint(waiting[0]):
                    if found := self._prepared(*waiting.popleft(), *slots, waits):
                        exchanges.append(found)
                        moving.update((found.promoted, found.demoted))
                        break
                else:  # nobody is left, or who comes next is moving: that is for the next batch
                    break
        finally:  # what was prepared before a failure goes its way
            if exchanges:
                self._batch = _Batch(exchanges, where.resident)

    def _prepared(
        self, promoted: ExpertKey, demoted: ExpertKey, target: int, refuge: int, waits: bool
    ) -> Exchange | None:
        """An exchange whose copies can begin; None if it cannot be and nobody insists.

        Raises:
            QuantError: If somebody does, or the disk cannot be read.
        """
        where, tail = self._where, self._tail
        source, left = where.slot(promoted), where.slot(demoted)
        is_possible = where.is_on_gpu(left)
        if is_possible and source == NO_SLOT:
            through = partial(where.write, refuge)
            is_possible = tail is not None and tail.copy(promoted, through, waits=waits)
        elif is_possible:
            is_possible = where.is_pinned(source)
        if is_possible:
            return Exchange(promoted, demoted, source, target, left, refuge)
        if waits:
            raise QuantError(f"{promoted} is not in RAM or {demoted} not on the GPU")
        return None

    def _copy(self, batch: _Batch) -> None:
        where, side = self._where, self._lanes.side
        side.wait_for(self._lanes.main.mark())  # which may still read what these slots held
        for one in batch.exchanges:
            came_through = one.refuge if one.from_tail else one.source
            side.copy(where.memory(one.target), where.memory(came_through))
            if not one.from_tail:
                side.copy(where.memory(one.refuge), where.memory(one.left))
        batch.copied = side.mark()

    def _tell(self, batch: _Batch) -> None:
        where = self._where
        for one in batch.exchanges:
            if one.from_tail and self._tail is not None:
                self._tail.join(one.demoted)
            elif not self._server.knows(*one.demoted):  # by an earlier try, and may ask already
                self._server.place(*one.demoted, where.expert_in(one.refuge))
        self._counts.ask()  # up to here experts are used where they were
        for one in batch.exchanges:
            for key, slot in one.places:
                where.put(key, slot)
        where.publish({key.layer_idx for one in batch.exchanges for key, _ in one.places})
        batch.told = self._lanes.main.mark()

    def _settle(self, batch: _Batch) -> None:
        if self._counts.is_asked:
            self._where.count_hits(self._counts.take(), batch.resident)
        for one in batch.exchanges:
            if one.from_tail and self._tail is not None:
                self._tail.part(one.promoted)
            else:
                self._server.forget(*one.promoted)
        self._batch = None
        self.num_done += len(batch.exchanges)
        if self._tail is not None:  # should their reads not begin, they are read when asked for
            self._tail.warm([one.demoted for one in batch.exchanges if one.from_tail])

    def _end_batch(self) -> None:
        batch = self._batch
        if batch is None:
            return
        if batch.copied is None:
            self._copy(batch)
        if batch.told is None:
            if batch.copied is not None:
                batch.copied.synchronize()
            self._tell(batch)
        if batch.told is not None:
            batch.told.synchronize()
        self._settle(batch)
