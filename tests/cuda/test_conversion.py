"""Quantizing on a GPU: byte for byte what the CPU makes, in little memory, and never the end."""

import pytest
import torch

from erniechat.model.delivery import convert
from quant.copy import QuantizedCopy
from quant.copy_names import DATA_FILE
from quant.copy_writer import CopyWriter
from quant.formats import FORMATS
from quant.kernels.quantize import quantize
from quant.staging import StagedQuantizer
from tests.model.random_checkpoint import (
    SMALL,
    formats_named,
    hard_matrix,
    readings_of,
    write_random,
)
from tests.quant.test_staging import source_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
LARGER = {
    **SMALL,
    "vocab_size": 20_000,
    "hidden_size": 512,
    "intermediate_size": 4096,
    "moe_intermediate_size": 320,
}
PEAK_NBYTES = 200 << 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("format_name", ["nf4", "fp4", "int8"])
def test_codes_and_scales_are_those_of_the_cpu(format_name, dtype):
    found = [hard_matrix(3072, 2560, 1), torch.randn(2560, 2560)]
    with StagedQuantizer(GPU) as quantizer:
        for weight in (w.to(dtype) for w in found):
            weight = weight.nan_to_num(posinf=0.0, neginf=0.0)  # float16 holds less
            staged = quantizer.start(FORMATS[format_name], [source_of(weight)])
            staged.launch()
            tensor, largest = staged.result()
            expected = quantize(FORMATS[format_name], weight)
            for name, part in expected.parts.items():
                assert torch.equal(tensor.parts[name], part), name
                assert tensor.parts[name].is_pinned()
            assert largest == [float(weight.abs().max())]


@pytest.mark.parametrize("format_name", ["nf4", "fp4", "int8"])
def test_a_gpu_makes_the_copy_that_the_cpu_makes(tmp_path, format_name):
    readings = readings_of(write_random(tmp_path / "checkpoint", LARGER))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    for name, how in {
        "cpu": {},
        "gpu": {"quantizer": StagedQuantizer(GPU), "warn": pytest.fail},
    }.items():
        with CopyWriter(tmp_path / name, {}) as writer:
            convert(readings, formats_named(format_name), writer, **how)
            writer.finish()
    assert torch.cuda.max_memory_reserved() - before < PEAK_NBYTES
    assert torch.cuda.memory_reserved() <= before + (2 << 20)  # all is given back but the rule
    QuantizedCopy(tmp_path / "gpu").verify()
    same = [(tmp_path / name / DATA_FILE).read_bytes() for name in ("cpu", "gpu")]
    assert same[0] == same[1]


def test_a_gpu_without_memory_leaves_the_work_to_the_cpu(tmp_path):
    readings = readings_of(write_random(tmp_path / "checkpoint", LARGER))
    warnings: list[str] = []
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with CopyWriter(tmp_path / "copy", {}) as writer:
            convert(
                readings, formats_named("nf4"), writer,
                quantizer=StagedQuantizer(GPU), warn=warnings.append,
            )  # fmt: skip
            writer.finish()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert warnings == ["the GPU cannot quantize (CUDA out of memory); the CPU does the rest"]
    QuantizedCopy(tmp_path / "copy").verify()
