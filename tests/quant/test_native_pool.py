"""The native kernels' threads: idle ones sleep, and none has to be waited for."""

import os
import resource
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

# A helper of its own: it must know its pool's threads, and gives one of them no time to run.
STARVED = """
import os, subprocess, sys, time, torch
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend, set_num_threads

mine, others = sorted(os.sched_getaffinity(0))[:2]
weight = FORMATS["nf4"].random((2048, 512), torch.Generator().manual_seed(0))
backend, x = NativeBackend(), torch.ones(1, 512)
os.sched_setaffinity(0, {mine})
set_num_threads(1)
backend.matmul(x, weight)
known = set(os.listdir("/proc/self/task"))
set_num_threads(2)
(worker,) = set(os.listdir("/proc/self/task")) - known
os.sched_setaffinity(int(worker), {others})
os.sched_setscheduler(int(worker), os.SCHED_IDLE, os.sched_param(0))
spin = f"import os; os.sched_setaffinity(0, {{{others}}})\\nwhile True: pass"
busy = subprocess.Popen([sys.executable, "-c", spin])

def calls_per_second(threads):
    set_num_threads(threads)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < 0.15:
        backend.matmul(x, weight)
        calls += 1
    return calls / (time.perf_counter() - began)

try:
    time.sleep(0.1)
    ratios = sorted(calls_per_second(2) / calls_per_second(1) for _ in range(5))
    print(ratios[2])
finally:
    busy.kill()
    busy.wait()
"""

# A limit of the address space: the stack of another thread does not fit into it.
NO_MORE = """
import resource, torch
from pathlib import Path
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend, num_threads, set_num_threads

set_num_threads(1)
weight = FORMATS["nf4"].random((256, 128), torch.Generator().manual_seed(0))
backend, x = NativeBackend(), torch.ones(1, 128)
expected = backend.matmul(x, weight)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * stack, used + 3 * stack))
set_num_threads(64)
assert torch.equal(backend.matmul(x, weight), expected)
print(num_threads())
"""


def test_where_no_more_threads_can_be_had_fewer_do_the_work():
    if resource.getrlimit(resource.RLIMIT_STACK)[0] == resource.RLIM_INFINITY:
        pytest.skip("stacks have no size here that a limit could be chosen by")
    done = subprocess.run(
        [sys.executable, "-c", NO_MORE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) < 64


# Children of a process whose other threads are in native calls at that moment.
FORKS = """
import os, threading, time, warnings
from quant.kernels.native import num_threads, set_num_threads

warnings.simplefilter("ignore")  # forking beside threads is what is tested
set_num_threads(2)
is_over = threading.Event()

def call():
    while not is_over.is_set():
        num_threads()

threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for _ in range(20):
    child = os.fork()
    if not child:
        os._exit(0 if num_threads() == 2 else 1)
    children.append(child)
is_over.set()
deadline = time.monotonic() + 30
while children and time.monotonic() < deadline:
    done, status = os.waitpid(-1, os.WNOHANG)
    if done:
        assert status == 0
        children.remove(done)
    else:
        time.sleep(0.01)
for child in children:
    os.kill(child, 9)
print(len(children))
"""


def test_a_forked_child_waits_for_no_lock_of_a_thread_that_it_does_not_have():
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.timed
def test_a_thread_that_gets_no_time_to_run_holds_nobody_up():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has no place for another thread")
    done = subprocess.run(
        [sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=120, check=True
    )
    # Alone the calling thread makes as many calls with it as without it: it takes all the work.
    # Where each thread has a part of its own, a call waits for a time slice: below 0.01.
    assert float(done.stdout) > 0.3


@pytest.mark.timed
def test_threads_that_wait_sleep():
    weight = FORMATS["nf4"].random((512, 512), torch.Generator().manual_seed(0))
    backend, x, before = NativeBackend(), torch.ones(1, 512), num_threads()
    set_num_threads(max(2, default_num_threads()))
    try:
        backend.matmul(x, weight)
        time.sleep(0.02)
        rounds, began = 30, time.process_time()  # of all threads, whatever else is running
        for _ in range(rounds):
            backend.matmul(x, weight)
            time.sleep(0.01)
        seconds = (time.process_time() - began) / rounds
    finally:
        set_num_threads(before)
    # The product and 50 µs of spinning a thread; for 4 ms of it a machine that is shared pays half.
    assert seconds < 0.002
