"""Rows through staging buffers: whole, in order, and never stuck."""

import threading
import time

import pytest
import torch
from torch import Tensor

from quant import staging
from quant.formats import FORMATS
from quant.staging import RowSource, StagedQuantizer

CPU = torch.device("cpu")


def source_of(weight: Tensor, delay=None) -> RowSource:
    def fill(first: int, stop: int, memory: memoryview) -> None:
        if delay:
            time.sleep(delay())
        memory[:] = weight[first:stop].contiguous().view(torch.uint8).view(-1).numpy().data

    return RowSource((weight.shape[0], weight.shape[1]), weight.dtype, fill)


def matrices(count: int, rows: int = 256) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(rows, 64, generator=generator).bfloat16() for _ in range(count)]


@pytest.mark.parametrize("num_stages", [1, 2, 6])
@pytest.mark.parametrize("num_readers", [1, 3])
def test_weights_come_out_as_they_went_in_however_reads_overtake(
    monkeypatch, num_stages, num_readers
):
    monkeypatch.setattr(staging, "NUM_STAGES", num_stages)
    monkeypatch.setattr(staging, "STAGE_NBYTES", 64 * 64 * 2)  # four chunks a matrix
    monkeypatch.setattr(staging.torch, "get_num_threads", lambda: num_readers)
    generator = torch.Generator().manual_seed(0)
    found = matrices(12)
    with StagedQuantizer(CPU) as quantizer:
        under_way = [
            quantizer.start(
                FORMATS["nf4"],
                [source_of(w, lambda: 0.002 * float(torch.rand(1, generator=generator)))],
            )
            for w in found
        ]
        for weight, staged in zip(found, under_way, strict=True):
            staged.launch()
            tensor, largest = staged.result()
            expected = FORMATS["nf4"].quantize(weight)
            for name, part in expected.parts.items():
                assert torch.equal(tensor.parts[name], part)
            assert largest == [float(weight.abs().max())]


def test_each_source_of_a_weight_has_its_largest_value_and_nan_is_not_lost(monkeypatch):
    monkeypatch.setattr(staging, "STAGE_NBYTES", 64 * 64 * 2)
    first, second, third = matrices(3)
    first[3, 3], second[70, 1], third[250, 9] = 50.0, float("nan"), -60.0
    with StagedQuantizer(CPU) as quantizer:
        staged = quantizer.start(FORMATS["int8"], [source_of(w) for w in (first, second, third)])
        staged.launch()
        tensor, largest = staged.result()
    assert largest[0] == 50.0
    assert largest[1] != largest[1]
    assert largest[2] == 60.0
    assert tensor.shape == (768, 64)


def test_leaving_ends_the_readers_whatever_they_wait_for(monkeypatch):
    monkeypatch.setattr(staging, "NUM_STAGES", 2)
    monkeypatch.setattr(staging.torch, "get_num_threads", lambda: 3)
    with StagedQuantizer(CPU):
        pass  # no chunk ever came
    with StagedQuantizer(CPU) as quantizer:
        for weight in matrices(5):
            quantizer.start(FORMATS["nf4"], [source_of(weight)])  # more than there are stages
        time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name.startswith("read-")]
