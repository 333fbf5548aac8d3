"""Experts of a copy on disk in a fixed number of slots in RAM, read past the page cache.

The page cache keeps what was touched last. Layers come in turn, so with too little RAM it throws
out exactly what is needed next, and a page fault may read megabytes around what it needs. Here
reads are of one expert, several at once, and the expert that is used least leaves.
"""

import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quant.copy_index import Place
from quant.errors import QuantError
from quant.experts.placement import ExpertKey
from quant.kernels.base import ExpertWeights

BLOCK = 4096  # of the disk: direct reads begin and end at multiples
NUM_READERS = 8
PIECE_NBYTES = 2 << 20  # of a read; several pieces of one expert are read at once


@dataclass(frozen=True, slots=True)
class StoredExpert:
    """Where an expert lies in the copy's data file."""

    gate_up: Place
    down: Place

    @property
    def span(self) -> tuple[int, int]:
        """First byte of the expert and the one after its last."""
        spans = [self.gate_up.span(), self.down.span()]
        return min(span[0] for span in spans), max(span[1] for span in spans)

    @property
    def nbytes(self) -> int:
        """Bytes of both matrices."""
        return sum(end - begin for begin, end in (self.gate_up.span(), self.down.span()))


@dataclass(slots=True)
class _Resident:
    """An expert in a slot, perhaps still on its way."""

    slot: int
    weights: ExpertWeights
    reads: Sequence["Future[None]"]


class ExpertCache:
    """Slots for experts, filled from a file.

    Args:
        path: The data file of a `QuantizedCopy`.
        experts: Where each expert lies in it.
        num_slots: Experts held at once.
        num_readers: Reads in flight.

    Raises:
        QuantError: If there are no experts, no slots, or one is not in one piece.
        OSError: If the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        experts: Mapping[ExpertKey, StoredExpert],
        num_slots: int,
        num_readers: int = NUM_READERS,
    ) -> None:
        if num_slots < 1 or not experts:
            raise QuantError(
                f"a cache of {num_slots} slots for {len(experts)} experts is of no use"
            )
        for key, expert in experts.items():
            begin, end = expert.span
            if end - begin > expert.nbytes + BLOCK:
                raise QuantError(f"the parts of {key} lie apart; delete the folder of {path}")
        self._experts = experts
        self._path = path
        self._file = open_direct(path)
        weakref.finalize(self, os.close, self._file)
        num_slots = min(num_slots, len(experts))
        sizes = [_aligned(expert.span) for expert in experts.values()]
        self.slot_nbytes = max(end - begin for begin, end in sizes)
        self._memory = _memory_for_slots(num_slots * self.slot_nbytes)
        self._residents: dict[ExpertKey, _Resident] = {}
        self.num_slots = num_slots
        self._readers = ThreadPoolExecutor(num_readers, "expert-reader")
        self.num_reads = 0
        self.nbytes_read = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.num_slots * self.slot_nbytes

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether an expert is here or on its way."""
        return key in self._residents

    def __len__(self) -> int:
        """Experts that are here or on their way."""
        return len(self._residents)

    def is_here(self, key: ExpertKey) -> bool:
        """Whether an expert can be taken without waiting, or has failed to come."""
        resident = self._residents.get(key)
        return resident is not None and all(read.done() for read in resident.reads)

    def fetch(self, key: ExpertKey) -> None:
        """Begin to read an expert unless it is here or on its way.

        Raises:
            QuantError: If no slot is free, or no thread can be had to read it.
        """
        if key in self._residents:
            return
        taken = {resident.slot for resident in self._residents.values()}
        slot = next((i for i in range(self.num_slots) if i not in taken), None)
        if slot is None:
            raise QuantError(f"all {self.num_slots} slots of the cache are taken; drop an expert")
        stored = self._experts[key]
        begin, end = _aligned(stored.span)
        base = slot * self.slot_nbytes
        memory = memoryview(self._memory)[base : base + end - begin]
        weights = ExpertWeights(stored.gate_up.view(memory, begin), stored.down.view(memory, begin))
        reads: list[Future[None]] = []
        try:
            for at in range(0, end - begin, PIECE_NBYTES):
                reads.append(Future())
                length = stored.span[1] - begin
                self._readers.submit(self._read, reads[-1], memory, begin, at, length)
            self._residents[key] = _Resident(slot, weights, reads)
        except BaseException as exc:  # Ctrl-C too; what was submitted is queued all the same
            self._residents.pop(key, None)
            # The slot is free again: nobody may be writing to it, now or when its turn comes.
            wait([read for read in reads if not read.cancel()])
            if isinstance(exc, RuntimeError):
                raise QuantError("no thread can be started to read experts; end some") from exc
            raise
        self.num_reads += 1
        self.nbytes_read += end - begin

    def drop(self, key: ExpertKey) -> None:
        """Free the slot of an expert that is here or on its way."""
        resident = self._residents[key]
        wait(resident.reads)  # its slot must not change under a reader
        del self._residents[key]

    def take(self, key: ExpertKey) -> ExpertWeights:
        """An expert that was fetched, once it is here; valid until it has to leave.

        Raises:
            QuantError: If the file cannot be read; `forget_failed` makes it be tried again.
        """
        resident = self._residents[key]
        if resident.reads:
            try:
                for read in resident.reads:
                    read.result()
            except OSError as exc:
                raise QuantError(
                    f"cannot read {self._path}: {exc.strerror}; check the disk, and if the file "
                    "is damaged delete its folder: it will be made again"
                ) from exc
            resident.reads = ()
        return resident.weights

    def forget_failed(self) -> list[ExpertKey]:
        """Free the slots of experts that could not be read; waits for those on their way."""
        wait([read for resident in self._residents.values() for read in resident.reads])
        failed = [
            key
            for key, resident in self._residents.items()
            if any(read.exception() for read in resident.reads)
        ]
        for key in failed:
            del self._residents[key]
        return failed

    def _read(
        self, read: "Future[None]", memory: memoryview, begin: int, at: int, end: int
    ) -> None:
        """Read one piece: from at on, at least to end, counted from the file's byte begin."""
        if not read.set_running_or_notify_cancel():
            return
        try:
            stop = min(at + PIECE_NBYTES, len(memory))
            while at < min(stop, end):
                count = os.preadv(self._file, [memory[at:stop]], begin + at)
                if count == 0:
                    raise OSError(0, "it is shorter than it was")
                at += count
            read.set_result(None)
        except BaseException as exc:
            read.set_exception(exc)


def open_direct(path: Path) -> int:
    """The file, past the page cache where the file system can."""
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with suppress(OSError):  # tmpfs, for one, refuses it when opening or when reading
            handle = os.open(path, os.O_RDONLY | direct | os.O_CLOEXEC)
            try:
                os.preadv(handle, [mmap.mmap(-1, BLOCK)], 0)
                return handle
            except OSError:
                os.close(handle)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _memory_for_slots(nbytes: int) -> mmap.mmap:
    """Memory of which only what is written to takes place, in large pages if there are any.

    A direct read hands the disk one address a page: with large ones it got twice the speed.
    """
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, nbytes)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not on this system, or turned off
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _aligned(span: tuple[int, int]) -> tuple[int, int]:
    """The blocks that hold a span."""
    return span[0] // BLOCK * BLOCK, -(-span[1] // BLOCK) * BLOCK
