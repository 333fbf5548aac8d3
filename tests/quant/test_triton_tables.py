"""The int8 levels that stand for 4-bit codes in the captured step; no Triton is needed for it."""

import pytest
import torch

from quant.formats import FORMATS
from quant.kernels.triton.tables import BF16_FACTORS, bf16_tables, level_tables, level_values


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


@pytest.mark.parametrize(
    ("name", "exact", "most", "most_gain"),
    [("nf4", False, 3e-3, 1e-5), ("fp4", False, 3.4e-3, 1e-5), ("nf4", True, 6e-5, 1e-5)],
)
def test_levels_are_near_the_codebook_and_not_too_small_on_the_whole(name, exact, most, most_gain):
    codebook, codes, values = normal_values(name)
    error = (level_values(name, exact) - codebook)[codes]
    assert float(error.norm() / values.norm()) < most  # 5.9e-3 with nf4 and 1/127
    assert abs(float(error @ values / (values @ values))) < most_gain  # 1.5e-3, 2.2e-3


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("exact", [False, True])
def test_no_integer_of_a_table_has_a_sign(name, exact):
    """Codes of one half ask the other half's integers for their signs, and take them for zeros."""
    integers = level_tables(name, exact)[2:].view(torch.int8)
    assert int(integers.min()) >= 0
    assert int(integers.max()) > 100
    steps = level_tables(name, exact)[:2].view(torch.float32)
    assert (steps[0] < 0) == (name == "nf4")  # whose first eight values are negative
    assert (steps[1] < 0) == (name == "fp4")
