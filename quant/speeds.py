"""How many bytes a second this machine reads: from RAM, from a GPU's memory, and from a disk."""

import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from quant.experts.cache import BLOCK, NUM_READERS, open_direct
from quant.kernels.native import read_probe
from quant.kernels.native.library import find_library

PROBE_NBYTES = 256 << 20
GPU_PROBE_NBYTES = 1 << 30
READ_NBYTES = 6 << 20  # about an expert of the 21B model
NUM_PROBES = 5


def _median_speed(nbytes: int, read: Callable[[], object]) -> float:
    seconds = []
    for _ in range(NUM_PROBES):
        began = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - began)
    return nbytes / sorted(seconds)[NUM_PROBES // 2]


def measure_ram() -> float:
    """Bytes a second of a plain read on all threads, the most that kernels can reach."""
    buffer = torch.ones(PROBE_NBYTES // 8, dtype=torch.int64)
    has_probe = not isinstance(find_library(), str)
    return _median_speed(PROBE_NBYTES, lambda: read_probe(buffer) if has_probe else buffer.sum())


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
