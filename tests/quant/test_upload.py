"""Uploading: every byte arrives, through however many threads and stages, or an error does."""

import os
import threading

import numpy as np
import pytest
import torch

from quant import upload
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.formats import FORMATS
from quant.upload import Uploader

CPU = torch.device("cpu")
HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda") if HAS_CUDA else CPU


@pytest.fixture(params=[1, 4], ids="{} threads".format)
def several_threads(request, monkeypatch) -> None:
    monkeypatch.setattr(upload.torch, "get_num_threads", lambda: request.param)
    monkeypatch.setattr(upload, "STAGE_NBYTES", 4096)


def tensors() -> list[torch.Tensor]:
    """From one byte to five stages, of all item sizes, one of them not contiguous."""
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 3, 4095, 4096, 4097, 20_000, 0, *range(100, 1500, 7)]
    found = [
        torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for size in sizes
    ]
    found += [torch.randn(size, generator=generator) for size in (1, 999, 1024, 5000)]
    found += [torch.randn(7, 130, generator=generator).bfloat16(), torch.randn(64, 33).T]
    return found


@pytest.mark.usefixtures("several_threads")
def test_every_tensor_arrives_whole():
    found = tensors()
    with Uploader(DEVICE, is_staged=True) as uploader:
        moved = [uploader.move(tensor) for tensor in found]
    for tensor, arrived in zip(found, moved, strict=True):
        assert arrived.device.type == DEVICE.type
        assert torch.equal(arrived.cpu(), tensor)


@pytest.mark.usefixtures("several_threads")
def test_all_that_was_given_can_be_waited_for():
    found = tensors()
    with Uploader(DEVICE, is_staged=True) as uploader:
        for _ in range(3):
            moved = [uploader.move(tensor) for tensor in found]
            uploader.wait()
            for tensor, arrived in zip(found, moved, strict=True):
                assert torch.equal(arrived.cpu(), tensor)


@pytest.mark.usefixtures("several_threads")
def test_parts_of_one_target_are_filled_from_many_threads():
    source = torch.randint(0, 256, (50, 3001), dtype=torch.uint8)
    target = torch.full((50, 3001), 7, dtype=torch.uint8, device=DEVICE)
    with Uploader(DEVICE, is_staged=True) as uploader:
        for i in torch.randperm(50).tolist():
            uploader(target[i], source[i])
    assert torch.equal(target.cpu(), source)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("num_tensors", [1, 200])  # the second is more than may wait
def test_an_error_of_a_thread_is_raised_and_nothing_hangs(monkeypatch, num_tensors):
    def fail(*_: object) -> None:
        raise RuntimeError("the bus is on fire")

    monkeypatch.setattr(np, "copyto", fail)
    source = torch.zeros(1000, dtype=torch.uint8)

    def run() -> None:
        with Uploader(DEVICE, is_staged=True) as uploader:
            for _ in range(num_tensors):
                uploader.move(source)

    with pytest.raises(RuntimeError, match="on fire"):
        run()
    assert not [t for t in threading.enumerate() if t.name == "upload"]


@pytest.mark.parametrize("num_tensors", [0, 1, 200])
def test_stages_that_cannot_be_had_are_an_error(monkeypatch, num_tensors):
    def refuse(lane: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    def run() -> None:
        with Uploader(DEVICE, is_staged=True) as uploader:
            for _ in range(num_tensors):
                uploader.move(torch.zeros(1000, dtype=torch.uint8))

    monkeypatch.setattr(upload._Lane, "_open", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        run()


@pytest.mark.usefixtures("several_threads")
def test_an_error_of_the_caller_ends_the_threads():
    def broken_off() -> None:
        with Uploader(DEVICE, is_staged=True) as uploader:
            uploader.move(torch.zeros(100_000, dtype=torch.uint8))
            raise torch.OutOfMemoryError("for a test")

    with pytest.raises(torch.OutOfMemoryError):
        broken_off()
    assert not [t for t in threading.enumerate() if t.name == "upload"]


def test_on_the_cpu_a_copy_is_just_a_copy():
    with Uploader(CPU) as uploader:
        assert uploader._lanes == []
        assert torch.equal(uploader.move(torch.arange(5)), torch.arange(5))


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")
def test_memory_that_a_kernel_still_reads_is_not_written_to_early():
    """The target is what another tensor was, whose reader is still at work on the main stream."""
    size = 64 << 20
    sums, targets = [], []
    with Uploader(DEVICE) as uploader:
        for _ in range(5):
            before = torch.ones(size, dtype=torch.float32, device=DEVICE)
            for _ in range(20):
                total = before.double().sum()
            sums.append(total)
            del before
            targets.append(torch.empty(size, dtype=torch.float32, device=DEVICE))
            uploader(targets[-1], torch.zeros(size, dtype=torch.float32))
    assert [float(value) for value in sums] == [float(size)] * 5


@pytest.fixture
def copy(tmp_path):
    """A copy of two weights, of which one is in 4 bits."""
    folder = tmp_path / "copy"
    generator = torch.Generator().manual_seed(0)
    with CopyWriter(folder, {}) as writer:
        writer["plain"] = torch.randint(0, 256, (9001,), dtype=torch.uint8, generator=generator)
        writer["matrix"] = FORMATS["nf4"].random((64, 128), generator)
        writer.finish()
    return QuantizedCopy(folder)


@pytest.mark.usefixtures("several_threads")
def test_what_is_mapped_is_read_from_its_file(copy, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("it was copied from the mapping")

    parts = [copy["plain"], *copy["matrix"].parts.values()]
    with monkeypatch.context() as patched:
        patched.setattr(np, "copyto", refuse)
        with Uploader(DEVICE, copy.read_into, is_staged=True) as uploader:
            moved = [uploader.move(part) for part in parts]
    for part, arrived in zip(parts, moved, strict=True):
        assert torch.equal(arrived.cpu(), part)


@pytest.mark.usefixtures("several_threads")
def test_what_is_not_mapped_is_copied(copy):
    odd = copy["plain"][:9000].view(90, 100).T
    other = torch.arange(100)
    with Uploader(DEVICE, copy.read_into, is_staged=True) as uploader:
        moved = [uploader.move(odd), uploader.move(other)]
    assert torch.equal(moved[0].cpu(), odd)
    assert torch.equal(moved[1].cpu(), other)


@pytest.mark.usefixtures("several_threads")
def test_a_file_cut_short_ends_the_upload(copy):
    os.truncate(copy.path, 4096)
    with (
        pytest.raises(QuantError, match="is shorter than it was; start again"),
        Uploader(DEVICE, copy.read_into, is_staged=True) as uploader,
    ):
        uploader.move(copy["plain"])
