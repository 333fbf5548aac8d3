"""Experts of a copy on disk in a fixed number of slots in RAM, read past the page cache.

The page cache keeps what was touched last. Layers come in turn, so with too little RAM it throws
out exactly what is needed next, and a page fault may read megabytes around what it needs. Here
reads are of one expert, several at once, and the expert that is used least leaves.
"""

import mmap
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.copy import Place
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
        self._memory = mmap.mmap(-1, num_slots * self.slot_nbytes)
        self._free = list(range(num_slots))[::-1]
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

    def fetch(self, key: ExpertKey, leaving: Callable[[], ExpertKey]) -> None:
        """Begin to read an expert unless it is here or on its way.

        Args:
            key: Which.
            leaving: Says who gives up its slot, asked only if none is free.
        """
        if key in self._residents:
            return
        if not self._free:
            self.drop(leaving())
        slot = self._free.pop()
        stored = self._experts[key]
        begin, end = _aligned(stored.span)
        base = slot * self.slot_nbytes
        memory = memoryview(self._memory)[base : base + end - begin]
        reads = [
            self._readers.submit(self._read, memory, begin, at, stored.span[1] - begin)
            for at in range(0, end - begin, PIECE_NBYTES)
        ]
        weights = ExpertWeights(stored.gate_up.view(memory, begin), stored.down.view(memory, begin))
        self._residents[key] = _Resident(slot, weights, reads)
        self.num_reads += 1
        self.nbytes_read += end - begin

    def drop(self, key: ExpertKey) -> None:
        """Free the slot of an expert that is here or on its way."""
        resident = self._residents.pop(key)
        wait(resident.reads)  # its slot must not change under a reader
        self._free.append(resident.slot)

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
        self._free += [self._residents.pop(key).slot for key in failed]
        return failed

    def _read(self, memory: memoryview, begin: int, at: int, end: int) -> None:
        """Read one piece: from at on, at least to end, counted from the file's byte begin."""
        stop = min(at + PIECE_NBYTES, len(memory))
        while at < min(stop, end):
            count = os.preadv(self._file, [memory[at:stop]], begin + at)
            if count == 0:
                raise OSError(0, "it is shorter than it was")
            at += count


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


def _aligned(span: tuple[int, int]) -> tuple[int, int]:
    """The blocks that hold a span."""
    return span[0] // BLOCK * BLOCK, -(-span[1] // BLOCK) * BLOCK


class Heat:
    """How much each expert is used, for choosing who leaves a cache.

    Args:
        counts: Of a stored profile by layer index; zeros if there is none.
        half_life_tokens: After so many tokens a use weighs half.
        by_use: Else the least recently used leaves.
    """

    def __init__(
        self, counts: Mapping[int, Sequence[float]], half_life_tokens: float, by_use: bool = True
    ) -> None:
        self._rows = {layer_idx: row for row, layer_idx in enumerate(sorted(counts))}
        self._layers = sorted(counts)
        self._heat = np.array([counts[layer_idx] for layer_idx in self._layers], dtype=np.float64)
        total = self._heat[0].sum() if len(self._heat) else 0.0
        # The profile weighs as much as one half-life of new tokens at most.
        self._heat *= min(1.0, half_life_tokens / total) if total else 0.0
        self._held = np.zeros(self._heat.shape, dtype=bool)
        self._growth = 0.5 ** (-1.0 / half_life_tokens)
        self._unit = 1.0
        self._by_use = by_use
        self._clock = 0

    def hold(self, key: ExpertKey, held: bool) -> None:
        """Say that an expert entered or left."""
        self._held[self._rows[key.layer_idx], key.expert_idx] = held

    def use(self, layer_idx: int, expert_ids: Sequence[int]) -> None:
        """Count a token's choice."""
        row = self._heat[self._rows[layer_idx]]
        if self._by_use:
            row[list(expert_ids)] += self._unit
        else:
            self._clock += 1
            row[list(expert_ids)] = self._clock

    def add(self, uses: Mapping[int, np.ndarray]) -> None:
        """Count what tokens chose elsewhere: by layer index how often each expert."""
        self._clock += 1
        for layer_idx, counts in uses.items():
            row = self._heat[self._rows[layer_idx]]
            if self._by_use:
                row += self._unit * counts
            else:
                row[counts > 0] = self._clock

    def pass_token(self, num_tokens: float = 1.0) -> None:
        """Let older uses fade: newer ones weigh more, and now and then all are scaled back."""
        if not self._by_use:
            return
        self._unit *= self._growth**num_tokens
        if self._unit > 1e100:
            self._heat /= self._unit
            self._unit = 1.0

    def coldest(self, layer_idx: int, kept: Collection[ExpertKey]) -> ExpertKey:
        """Who leaves: the coldest that is held, but none of those kept.

        Of equals it is one of the layer that comes again last after layer_idx.

        Raises:
            QuantError: If all that is held must be kept.
        """
        allowed = self._held.copy()
        for key in kept:
            allowed[self._rows[key.layer_idx], key.expert_idx] = False
        row = self._rows[layer_idx]
        # Counted from the layer just done backwards: that one is needed again after all others.
        order = [(row - step) % len(self._layers) for step in range(len(self._layers))]
        heat = np.where(allowed, self._heat, np.inf)[order]
        at = int(heat.argmin())
        place, expert_idx = divmod(at, heat.shape[1])
        if not np.isfinite(heat[place, expert_idx]):
            raise QuantError("the cache of experts is too small for one layer's choice")
        return ExpertKey(self._layers[order[place]], expert_idx)
