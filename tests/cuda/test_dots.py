"""A decoded token's products against float64: on a GPU, or in Triton's interpreter."""

import importlib.util
import os

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is no CUDA device; TRITON_INTERPRET=1 runs it", allow_module_level=True)

from quant.formats import FORMATS
from quant.kernels.triton.decode import project_kernel
from quant.kernels.triton.step_weights import parts_of
from quant.kernels.triton.tables import BITS, level_tables, level_values
from tests.bench.step_errors import coded

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
HAS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
INPUTS = 320  # five blocks of 64: no multiple of what a program's threads read at a time


def prepared(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int16 and their scales, as the kernels before a product leave them."""
    largest = x.view(-1, 16).abs().amax(1, keepdim=True)
    codes = (x.view(-1, 16) * (32767 / largest) + 0.5).floor().to(torch.int16)
    return codes.flatten(), largest[:, 0] / 32767


def project(weight, x: torch.Tensor, exact: bool) -> torch.Tensor:
    """The product as `project_kernel` gives it, after a norm that leaves all as it is."""
    codes, scales = (part.to(DEVICE) for part in parts_of(weight))
    xq, xs = (part.to(DEVICE) for part in prepared(x))
    table = level_tables(weight.format, exact).repeat_interleave(4).to(DEVICE)
    squares = torch.full((INPUTS // 16,), 16.0, device=DEVICE)
    out = torch.full((weight.shape[0],), float("nan"), device=DEVICE)
    project_kernel[(weight.shape[0] // 16,)](
        codes, scales, xq.view(torch.int64), xs, table, squares, out, 0.0,
        HIDDEN=INPUTS, PADDED_GROUPS=32, BITS=BITS[weight.format], EXACT=exact, WARPS=2,
        PTX=HAS_CUDA, PDL=False, num_warps=2,
    )  # fmt: skip
    return out.cpu()


@pytest.mark.parametrize(
    ("name", "exact"),
    [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)],
)
def test_a_product_is_that_of_the_values_that_step_errors_reckons_with(name, exact):
    generator = torch.Generator().manual_seed(5)
    stored = FORMATS[name]
    weight = stored.quantize(torch.randn(32, INPUTS, generator=generator))
    x = torch.randn(INPUTS, generator=generator) * torch.rand(INPUTS, generator=generator) * 3
    if name == "int8":
        values = stored.dequantize(weight, torch.float32).double()
    else:
        codes, absmax = stored.to_rows(weight)
        table = level_values(name, exact).double()
        blocks = table[codes.int()].view(*absmax.shape, -1) * absmax[..., None].double()
        values = blocks.view(weight.shape)
    expected = values @ coded(x, 32767).double()
    actual = project(weight, x, exact).double()
    assert float((actual - expected).norm() / expected.norm()) < 2e-6
