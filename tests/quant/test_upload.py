"""Uploading: every byte arrives, through however many turns of the two stages."""

import pytest
import torch

from quant import upload
from quant.upload import Uploader

CPU = torch.device("cpu")
HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda") if HAS_CUDA else CPU


@pytest.fixture
def small_stages(monkeypatch) -> None:
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


@pytest.mark.usefixtures("small_stages")
def test_every_tensor_arrives_whole():
    found = tensors()
    with Uploader(DEVICE, is_staged=True) as uploader:
        moved = [uploader.move(tensor) for tensor in found]
    for tensor, arrived in zip(found, moved, strict=True):
        assert arrived.device.type == DEVICE.type
        assert torch.equal(arrived.cpu(), tensor)


@pytest.mark.usefixtures("small_stages")
def test_all_that_was_given_can_be_waited_for():
    found = tensors()
    with Uploader(DEVICE, is_staged=True) as uploader:
        for _ in range(3):
            moved = [uploader.move(tensor) for tensor in found]
            uploader.wait()
            for tensor, arrived in zip(found, moved, strict=True):
                assert torch.equal(arrived.cpu(), tensor)


@pytest.mark.usefixtures("small_stages")
def test_parts_of_one_target_are_filled_in_any_order():
    source = torch.randint(0, 256, (50, 3001), dtype=torch.uint8)
    target = torch.full((50, 3001), 7, dtype=torch.uint8, device=DEVICE)
    with Uploader(DEVICE, is_staged=True) as uploader:
        for i in torch.randperm(50).tolist():
            uploader(target[i], source[i])
    assert torch.equal(target.cpu(), source)


def test_on_the_cpu_a_copy_is_just_a_copy():
    with Uploader(CPU) as uploader:
        assert uploader._stages == []
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
