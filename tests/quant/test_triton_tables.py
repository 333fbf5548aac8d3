"""The int8 levels that stand for 4-bit codes in the captured step; no Triton is needed for it."""

import pytest
import torch

from quant.formats import FORMATS
from quant.kernels.triton.tables import BF16_FACTORS, LEVELS_PER_UNIT, bf16_tables, int8_table


def normal_values(name):
    """Weights that are distributed normally: codebook, each one's code, and its value."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 4096, generator=generator)
    stored = FORMATS[name].quantize(weight)
    values = FORMATS[name].dequantize(stored, torch.float32).view(64, -1, 64)
    absmax = values.abs().amax(-1, keepdim=True)
    values = (values / absmax).flatten().double()
    codebook = FORMATS[name].codebook.double()
    return codebook, (values[:, None] - codebook).abs().argmin(1), values


@pytest.mark.parametrize(("name", "most"), [("nf4", 8.5e-4), ("fp4", 1e-6)])
def test_bfloat16_values_are_the_codebook_and_not_too_small_on_the_whole(name, most):
    codebook, codes, values = normal_values(name)
    words = torch.tensor(bf16_tables(name), dtype=torch.int32).view(torch.uint8).view(2, 16)
    table = words.flip(0).T.contiguous().view(torch.bfloat16).flatten().double()
    error = (table / BF16_FACTORS[name] - codebook)[codes]
    assert float(error.norm() / values.norm()) < most  # 1.4e-3 and 1.3e-3 with a factor of 1
    assert abs(float(error @ values / (values @ values))) < 1e-4  # 4.4e-4, 8.8e-4


@pytest.mark.parametrize(("name", "most", "most_gain"), [("nf4", 5e-3, 4e-4), ("fp4", 7e-3, 8e-4)])
def test_levels_are_near_the_codebook_and_not_too_small_on_the_whole(name, most, most_gain):
    codebook, codes, values = normal_values(name)
    words = torch.tensor(int8_table(name), dtype=torch.int32)
    levels = words.view(torch.int8).double() / LEVELS_PER_UNIT
    error = levels[codes] - codebook[codes]
    assert float(error.norm() / values.norm()) < most  # 5.9e-3 with nf4 and 1/127
    assert abs(float(error @ values / (values @ values))) < most_gain  # 1.5e-3, 2.2e-3
