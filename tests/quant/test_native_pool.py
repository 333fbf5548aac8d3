"""The native kernels' threads beside processes that never sleep."""

import statistics
import subprocess
import sys
import time

import pytest
import torch

from quant.formats import FORMATS
from quant.kernels.native import (
    NativeBackend,
    default_num_threads,
    library,
    num_threads,
    set_num_threads,
)

FOUND = library.find_library()
pytestmark = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))
SECONDS, ROUNDS = 0.25, 3


def calls_per_second(backend: NativeBackend) -> float:
    weight = FORMATS["nf4"].random((512, 512), torch.Generator().manual_seed(0))
    x, num_calls = torch.ones(1, 512), 0
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        backend.matmul(x, weight)
        num_calls += 1
    return num_calls / SECONDS


def test_a_busy_process_a_core_costs_not_much_more_than_the_cores_that_it_takes():
    # Half of the machine is fair. Threads that each have a fixed part and wait for each other by
    # spinning get a tenth; the bound leaves room for other work on the machine.
    cores, before = default_num_threads(), num_threads()
    set_num_threads(cores)
    alone, beside = [], []
    try:
        backend = NativeBackend()
        for _ in range(ROUNDS):
            alone.append(calls_per_second(backend))
            busy = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)
            ]
            try:
                time.sleep(0.1)
                beside.append(calls_per_second(backend))
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
    finally:
        set_num_threads(before)
    assert statistics.median(beside) > 0.2 * statistics.median(alone)
