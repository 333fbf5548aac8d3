"""Weights brought to a device by a thread: waited for, failing, stopped, and let go of."""

import gc
import signal
import threading
import weakref

import pytest
import torch

from quant import upload
from quant.errors import QuantError
from quant.upload import BackgroundUpload

HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
PATIENCE = 60.0  # seconds; nothing here takes as long, however busy the machine


class Gate:
    """Ten tensors to be brought; the thread stands still before each until it may pass."""

    def __init__(self) -> None:
        self.sources = [torch.full((1000,), float(i)) for i in range(10)]
        self.targets = [torch.full((1000,), -1.0, device=DEVICE) for _ in range(10)]
        self.may_pass = threading.Semaphore(0)
        self.waits = threading.Semaphore(0)

    def fill(self, put) -> None:
        for target, source in zip(self.targets, self.sources, strict=True):
            self.waits.release()
            assert self.may_pass.acquire(timeout=PATIENCE)
            put(target, source)

    def pass_some(self, count: int) -> None:
        """Let some pass, and return when the thread stands before the next."""
        for _ in range(count):
            assert self.waits.acquire(timeout=PATIENCE)
            self.may_pass.release()
        assert self.waits.acquire(timeout=PATIENCE)
        self.waits.release()

    @property
    def num_there(self) -> int:
        if HAS_CUDA:
            torch.cuda.synchronize()
        return sum(bool((target != -1).all()) for target in self.targets)


@pytest.fixture(autouse=True)
def _small_stages(monkeypatch) -> None:
    monkeypatch.setattr(upload, "STAGE_NBYTES", 4096)


def begin(gate: Gate, **more) -> BackgroundUpload:
    return BackgroundUpload(DEVICE, gate.fill, 40_000, is_staged=True, **more)


def test_nothing_is_promised_before_all_of_it_is_there():
    gate = Gate()
    running = begin(gate)
    gate.pass_some(3)
    assert not running.wait(0.01)
    assert (running.done_nbytes, running.nbytes) == (12_000, 40_000)
    for _ in range(7):
        gate.may_pass.release()
    assert running.wait()
    assert running.done_nbytes == 40_000
    assert all(
        torch.equal(target.cpu(), source)
        for target, source in zip(gate.targets, gate.sources, strict=True)
    )


def test_what_was_read_is_checked_before_it_is_used():
    gate, checked = Gate(), []

    def check() -> None:
        checked.append(gate.num_there)
        raise QuantError("the disk is gone")

    running = begin(gate, check=check)
    for _ in range(10):
        gate.may_pass.release()
    with pytest.raises(QuantError, match="the disk is gone"):
        running.wait(PATIENCE)
    assert checked == [10]


def test_a_failure_half_way_is_told_whenever_somebody_asks():
    gate = Gate()
    gate.sources[4] = torch.zeros(7)  # does not fill its target
    gate.targets[4] = torch.full((3,), -1.0, device=DEVICE)
    running = begin(gate)
    for _ in range(10):
        gate.may_pass.release()
    depths = []
    for _ in range(3):
        with pytest.raises(RuntimeError, match="must match the size") as caught:
            running.wait(PATIENCE)
        depths.append(len(caught.traceback))
        assert "in fill" in "".join(caught.value.__notes__)
    assert depths[0] == depths[2]
    assert gate.num_there == 4


def test_stopped_it_writes_no_more_and_what_is_there_is_not_used():
    gate = Gate()
    running = begin(gate)
    gate.pass_some(3)
    threading.Timer(0.05, gate.may_pass.release).start()  # it stops at the next one
    running.stop()
    assert not running._thread.is_alive()
    assert gate.num_there == 3
    for _ in range(2):
        with pytest.raises(QuantError, match="let go of before they were on the device"):
            running.wait(0)


def test_stopped_after_its_end_it_stays_usable():
    gate = Gate()
    running = begin(gate)
    for _ in range(10):
        gate.may_pass.release()
    assert running.wait(PATIENCE)
    running.stop()
    assert running.wait(0)


@pytest.mark.parametrize("how", ["to the end", "stopped", "failing"])
def test_nothing_of_the_weights_is_held_afterwards(how: str):
    gate = Gate()
    if how == "failing":
        gate.targets[9] = torch.zeros(3, device=DEVICE)
    running = begin(gate)
    gate.pass_some(1)
    if how == "stopped":
        threading.Timer(0.05, gate.may_pass.release).start()
        running.stop()
    for _ in range(9):
        gate.may_pass.release()
    running._thread.join(PATIENCE)
    held = [weakref.ref(source) for source in gate.sources]
    gc.disable()  # memory is wanted back at once
    try:
        del gate
        assert [ref() for ref in held] == [None] * 10
    finally:
        gc.enable()


def test_an_interrupted_wait_ends_and_the_upload_goes_on():
    gate = Gate()
    running = begin(gate)
    gate.pass_some(2)
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        running.wait()
    for _ in range(8):
        gate.may_pass.release()
    assert running.wait(PATIENCE)
    assert gate.num_there == 10


def test_a_lack_of_memory_for_the_stages_is_told_at_once(monkeypatch):
    def refuse(*shape, **how):
        raise torch.OutOfMemoryError("no pinned memory is left")

    gate = Gate()
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        begin(gate)
