"""Experts in the host's memory, in places that a GPU's kernels address like slots of its own pool.

A GPU reads pinned host memory through the bus. If such memory begins a whole number of slots away
from the GPU's pool, an expert there is just a slot with a strange number: no kernel need know.
"""

import weakref

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.pool import ExpertPool


class HostPool:
    """Slots of a pool's size in pinned host memory.

    Args:
        pool: The GPU's.
        num_slots: Experts that it holds.

    Attributes:
        data: uint8 ``[num_slots, slot_nbytes]``.
        first_slot: What kernels call the first one: its distance from the pool's, in slots.

    Raises:
        QuantError: If the memory cannot be had or pinned.
    """

    def __init__(self, pool: ExpertPool, num_slots: int) -> None:
        size = pool.slot_nbytes
        try:
            # One slot more than needed: the first begins where the distance is a whole number.
            memory = torch.empty((num_slots + 1) * size, dtype=torch.uint8)
        except RuntimeError as exc:
            raise QuantError(
                f"{num_slots} experts of {size:,} bytes do not fit into RAM; lower --cpu-memory"
            ) from exc
        begin = (pool.data.data_ptr() - memory.data_ptr()) % size
        self.data = memory[begin : begin + num_slots * size].view(num_slots, size)
        self.first_slot = (self.data.data_ptr() - pool.data.data_ptr()) // size
        if pool.data.device.type == "cuda":
            _pin(memory)

    def slot(self, row: int) -> int:
        """What kernels call a row."""
        return self.first_slot + row

    def row(self, slot: int) -> int | None:
        """The row that kernels call so; None if it is another memory's."""
        row = slot - self.first_slot
        return row if 0 <= row < len(self.data) else None


def _pin(memory: Tensor) -> None:
    """Pin what torch has allocated: its own pinned allocator would round up to a power of two."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address, nbytes = memory.data_ptr(), memory.nbytes
    status = runtime.cudaHostRegister(address, nbytes, 0)
    if int(status):
        raise QuantError(
            f"{nbytes:,} bytes of RAM cannot be pinned for the GPU (CUDA error {int(status)}); "
            "lower --cpu-memory or raise the limit of locked memory"
        )
    weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, address)
