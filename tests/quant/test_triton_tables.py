"""The int8 levels that stand for 4-bit codes in the captured step; no Triton is needed for it."""

import pytest
import torch

from quant.formats import FORMATS
from quant.kernels.triton.tables import LEVELS_PER_UNIT, int8_table


@pytest.mark.parametrize(("name", "most", "most_gain"), [("nf4", 5e-3, 4e-4), ("fp4", 7e-3, 8e-4)])
def test_levels_are_near_the_codebook_and_not_too_small_on_the_whole(name, most, most_gain):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 4096, generator=generator)
    stored = FORMATS[name].quantize(weight)
    values = FORMATS[name].dequantize(stored, torch.float32).view(64, -1, 64)
    absmax = values.abs().amax(-1, keepdim=True)
    values = (values / absmax).flatten().double()
    codebook = FORMATS[name].codebook.double()
    codes = (values[:, None] - codebook).abs().argmin(1)
    words = torch.tensor(int8_table(name), dtype=torch.int32)
    levels = words.view(torch.int8).double() / LEVELS_PER_UNIT
    error = levels[codes] - codebook[codes]
    assert float(error.norm() / values.norm()) < most  # 5.9e-3 with nf4 and 1/127
    assert abs(float(error @ values / (values @ values))) < most_gain  # 1.5e-3, 2.2e-3
