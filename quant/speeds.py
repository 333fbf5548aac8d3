"""How fast this machine is: bytes a second from RAM, bus, GPU and disk; its CPU's experts."""

import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from quant.experts.cache import BLOCK, NUM_READERS, open_direct
from quant.kernels.base import ExpertWeights, KernelBackend
from quant.kernels.native import read_probe
from quant.kernels.native.library import find_library

PROBE_NBYTES = 256 << 20
BUS_PROBE_NBYTES = 128 << 20
GPU_PROBE_NBYTES = 1 << 30
READ_NBYTES = 6 << 20  # about an expert of the 21B model
NUM_PROBES = 5


def _median_speed(nbytes: int, read: Callable[[], object], num_probes: int = NUM_PROBES) -> float:
    return nbytes / _median_seconds(read, num_probes)


def _median_seconds(run: Callable[[], object], num_probes: int = NUM_PROBES) -> float:
    seconds = []
    for _ in range(num_probes):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[num_probes // 2]


def measure_ram(buffer: Tensor | None = None, num_probes: int = NUM_PROBES) -> float:
    """Bytes a second of a plain read on all threads, the most that kernels can reach.

    Args:
        buffer: Memory that was written to, too large for caches; by default some of its own.
        num_probes: The median of so many is taken.
    """
    if buffer is None:
        buffer = torch.ones(PROBE_NBYTES // 8, dtype=torch.int64)
    has_probe = not isinstance(find_library(), str)
    words = buffer.view(-1).view(torch.int64)
    read = (lambda: read_probe(words)) if has_probe else (lambda: words.sum())
    return _median_speed(words.nbytes, read, num_probes)


def measure_bus(
    device: torch.device,
    host: Tensor | None = None,
    there: Tensor | None = None,
    num_probes: int = NUM_PROBES,
) -> float:
    """Bytes a second from pinned memory to a GPU; on the CPU those of a copy.

    Args:
        device: The GPU.
        host: Pinned memory; by default some of its own.
        there: As large on the device, with nothing in it that is needed.
        num_probes: The median of so many is taken.
    """
    if host is None or there is None:
        host = torch.zeros(BUS_PROBE_NBYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
        there = torch.empty_like(host, device=device)

    def copy() -> None:
        there.copy_(host)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return _median_speed(host.nbytes, copy, num_probes)


def measure_expert_seconds(
    backend: KernelBackend, experts: Sequence[ExpertWeights], rows_each: int
) -> float:
    """What the CPU takes for an expert that so many rows of a prompt have chosen."""
    hidden_size = experts[0].down.shape[0]
    num_rows = rows_each * len(experts)
    rows = torch.ones(num_rows, hidden_size, dtype=torch.bfloat16)
    ids = (torch.arange(num_rows) % len(experts))[:, None]
    weights = torch.ones(num_rows, 1)
    seconds = _median_seconds(lambda: backend.routed_experts(rows, ids, weights, experts))
    return seconds / len(experts)


def measure_gpu(device: torch.device) -> float:
    """Bytes a second that a GPU reads of its own memory."""
    buffer = torch.ones(GPU_PROBE_NBYTES // 4, dtype=torch.float32, device=device)

    def read() -> None:
        buffer.sum()
        torch.cuda.synchronize(device)

    read()
    return _median_speed(GPU_PROBE_NBYTES, read)


def measure_disk(folder: Path, nbytes: int = PROBE_NBYTES) -> float:
    """Bytes a second in reads of an expert's size, several at once, past the page cache.

    Args:
        folder: On the disk that is meant; a file is made there for the time of the measurement.
        nbytes: Of the file.

    Raises:
        OSError: If the file cannot be written or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".speed-") as file:
        for _ in range(nbytes >> 20):
            file.write(os.urandom(1 << 20))  # zeros might never reach the disk
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        handle = open_direct(Path(file.name))
        try:
            return _read_speed(handle, nbytes)
        finally:
            os.close(handle)


def _read_speed(handle: int, nbytes: int) -> float:
    offsets = list(range(0, nbytes - READ_NBYTES + 1, READ_NBYTES))
    random.Random(0).shuffle(offsets)
    buffers = [mmap.mmap(-1, READ_NBYTES) for _ in range(NUM_READERS)]

    def read(reader: int) -> int:
        mine = offsets[reader::NUM_READERS]
        return sum(os.preadv(handle, [buffers[reader]], at // BLOCK * BLOCK) for at in mine)

    began = time.perf_counter()
    with ThreadPoolExecutor(NUM_READERS) as readers:
        total = sum(readers.map(read, range(NUM_READERS)))
    return total / (time.perf_counter() - began)
