"""The tile kernel against float64: on a device, or in Triton's interpreter."""

import importlib
import importlib.util
import os

import pytest
import torch

from quant.formats import FORMATS
from quant.kernels.base import ExpertWeights
from quant.kernels.triton.backend import TritonBackend
from quant.tensor import QuantTensor

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not (torch.cuda.is_available() or INTERPRETS):
    pytest.skip(
        "there is no CUDA device; TRITON_INTERPRET=1 runs this file alone", allow_module_level=True
    )
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
products = importlib.import_module("quant.kernels.triton.products")
HIDDEN, WIDTH, NUM_EXPERTS = 192, 80, 3  # the last tile of 64 rows is not full


def made(format_name: str, *shape: int) -> tuple[QuantTensor, torch.Tensor]:
    """A weight as the kernels read it, and its values in float64."""
    weight = FORMATS[format_name].quantize(torch.randn(shape) * 0.05)
    values = FORMATS[format_name].dequantize(weight, torch.float64)
    return TritonBackend().prepare(weight.to(DEVICE)), values


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_rows", [1, 40, 150])
@pytest.mark.parametrize("format_name", ["nf4", "fp4", "int8", "bf16"])
def test_a_product_is_that_of_float64(format_name, num_rows):
    torch.manual_seed(num_rows)
    weight, values = made(format_name, WIDTH, HIDDEN)
    x = torch.randn(num_rows, HIDDEN).bfloat16()
    out = products.matmul(x.to(DEVICE), weight, products.address_table([weight]))
    assert relative_error(out, x.double() @ values.T) < 5e-3


@pytest.mark.parametrize(
    ("format_name", "most"), [("nf4", 1.2e-3), ("fp4", 1e-5), ("int8", 1e-5), ("bf16", 1e-5)]
)
def test_weights_lose_next_to_nothing_in_the_kernel(format_name, most):
    """Activations that are bfloat16, results that are not."""
    torch.manual_seed(0)
    weight, values = made(format_name, WIDTH, HIDDEN)
    x = torch.randn(40, HIDDEN).bfloat16()
    out = products.matmul(x.float().to(DEVICE), weight, products.address_table([weight]))
    assert relative_error(out, x.double() @ values.T) < most


@pytest.mark.parametrize("format_name", ["nf4", "int8", "bf16"])
def test_experts_are_those_of_float64(format_name):
    torch.manual_seed(0)
    width = 64 if format_name == "nf4" else WIDTH
    pairs = [
        (made(format_name, 2 * width, HIDDEN), made(format_name, HIDDEN, width))
        for _ in range(NUM_EXPERTS)
    ]
    x = torch.randn(5, HIDDEN).bfloat16()
    ids = torch.tensor([[0, 2], [2, 1], [0, 1], [2, 0], [2, 1]])
    shares = torch.rand(5, 2)
    expected = torch.zeros(5, HIDDEN, dtype=torch.float64)
    for token in range(5):
        for k in range(2):
            (_, gate_up), (_, down) = pairs[ids[token, k]]
            gate, up = (gate_up @ x[token].double()).chunk(2)
            act = torch.nn.functional.silu(gate) * up
            expected[token] += shares[token, k] * (down @ act)
    experts = [ExpertWeights(gate_up[0], down[0]) for gate_up, down in pairs]
    out = products.routed_experts(
        x.to(DEVICE), ids.to(DEVICE), shares.to(DEVICE), experts[0],
        products.address_table([expert.gate_up for expert in experts]),
        products.address_table([expert.down for expert in experts]),
    )  # fmt: skip
    assert relative_error(out, expected) < 1e-2


def test_weights_that_begin_anywhere_are_refused():
    weight, _ = made("bf16", WIDTH, HIDDEN)
    (name, part), *_ = weight.parts.items()
    moved = torch.empty(part.numel() + 1, dtype=part.dtype, device=DEVICE)[1:].view(part.shape)
    odd = QuantTensor(weight.format, weight.layout, weight.shape, {**weight.parts, name: moved})
    with pytest.raises(products.QuantError, match="multiple of 16 bytes"):
        products.address_table([odd])
