"""Experts in the host's memory, in places that a GPU's kernels address like slots of its own pool.

A GPU reads pinned host memory through the bus. If such memory begins a whole number of slots away
from the GPU's pool, an expert there is just a slot with a strange number: no kernel need know.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.pool import ExpertPool


class HostPool:
    """Slots of a pool's size in pinned host memory: some from the start, more when asked for.

    Args:
        pool: The GPU's.
        num_slots: Experts that it holds from the start.
        num_spare: Slots that stay free of these for exchanges.

    Attributes:
        data: uint8 ``[num_slots, slot_nbytes]``, those from the start.

    Raises:
        QuantError: If the memory cannot be had or pinned.
    """

    def __init__(self, pool: ExpertPool, num_slots: int, num_spare: int = 0) -> None:
        self._pool = pool
        self._blocks = [_Block(pool, num_slots + num_spare)]
        self._free: set[int] = set()
        self.data = self._blocks[0].data[:num_slots]

    def slot(self, row: int) -> int:
        """What kernels call a row of those from the start."""
        return self._blocks[0].slots[row]

    def holds(self, slot: int) -> bool:
        """Whether a slot is one of the host's."""
        return any(slot in block.slots for block in self._blocks)

    def at(self, slot: int) -> Tensor | None:
        """The memory of a slot, uint8 ``[slot_nbytes]``; None if it is not the host's."""
        for block in self._blocks:
            if slot in block.slots:
                return block.data[slot - block.slots.start]
        return None

    @property
    def taken(self) -> list[int]:
        """Slots that were not given back: experts are in them, or they are spare."""
        slots = [slot for block in self._blocks for slot in block.slots]
        return [slot for slot in slots if slot not in self._free]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(block.data.nbytes for block in self._blocks)

    @property
    def added_nbytes(self) -> int:
        """Bytes of what was taken later."""
        return sum(len(block.slots) + 1 for block in self._blocks[1:]) * self._pool.slot_nbytes

    @property
    def num_free(self) -> int:
        """Slots that were given back and are still held."""
        return len(self._free)

    def take(self, num_slots: int) -> list[int]:
        """Slots for so many experts more: those given back first, then new memory.

        Raises:
            QuantError: If the memory cannot be had or pinned; then nothing is taken.
        """
        missing = num_slots - len(self._free)
        if missing > 0:
            block = _Block(self._pool, missing)
            self._blocks.append(block)
            self._free.update(block.slots)
        first = self._blocks[0].slots  # what was asked for later may go again
        taken = sorted(self._free, key=lambda slot: (slot not in first, slot))[:num_slots]
        self._free.difference_update(taken)
        return taken

    def trade(self, slot: int) -> int | None:
        """Take a free slot of memory that was there before this slot's; None if there is none."""
        for block in self._blocks:
            if slot in block.slots:
                return None
            if found := self._free.intersection(block.slots):
                self._free.remove(taken := min(found))
                return taken
        return None

    def give_back(self, slots: Iterable[int]) -> None:
        """Slots whose experts have left; memory taken later goes when all of it is free."""
        self._free.update(slots)
        for block in self._blocks[1:]:
            if self._free.issuperset(block.slots):
                self._blocks.remove(block)
                self._free.difference_update(block.slots)
                block.unpin()


class _Block:
    """Pinned memory that is congruent to a pool.

    Attributes:
        data: uint8 ``[num_slots, slot_nbytes]``.
        slots: What kernels call its rows: their distances from the pool's begin, in slots.
        unpin: To be called before it is let go of where that should be at once.
    """

    def __init__(self, pool: ExpertPool, num_slots: int) -> None:
        size = pool.slot_nbytes
        with torch.inference_mode(False):  # or only such code could write to it later
            # One slot more than needed: the first begins where the distance is a whole number.
            memory = _memory((num_slots + 1) * size, num_slots)
            begin = (pool.data.data_ptr() - memory.data_ptr()) % size
            self.data = memory[begin : begin + num_slots * size].view(num_slots, size)
        first = (memory.data_ptr() + begin - pool.data.data_ptr()) // size
        self.slots = range(first, first + num_slots)
        self.unpin: Callable[[], object] = _pin(memory, pool.data.device)


def _memory(nbytes: int, num_experts: int) -> Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8)
    except RuntimeError as exc:
        raise QuantError(
            f"{num_experts} experts in {nbytes:,} bytes do not fit into RAM; lower --cpu-memory"
        ) from exc


def _pin(memory: Tensor, device: torch.device) -> Callable[[], object]:
    """Pin what torch has allocated: its own pinned allocator would round up to a power of two.

    Returns:
        What ends that, if the memory's end has not; without a GPU both do nothing.
    """
    if device.type != "cuda":
        return lambda: None
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address, nbytes = memory.data_ptr(), memory.nbytes
    status = runtime.cudaHostRegister(address, nbytes, 0)
    if int(status):
        _forget_error(device)
        raise QuantError(
            f"{nbytes:,} bytes of RAM cannot be pinned for the GPU (CUDA error {int(status)}); "
            "lower --cpu-memory or raise the limit of locked memory"
        )
    return weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, address)


def _forget_error(device: torch.device) -> None:
    """The runtime keeps an error until somebody asks: torch would blame the next kernel for it."""
    with suppress(RuntimeError):
        torch.ones(1, device=device)
