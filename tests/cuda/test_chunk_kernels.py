"""Kernels of a prompt's chunk between its products: on a GPU, or in Triton's interpreter."""

import importlib.util
import os

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is no CUDA device; TRITON_INTERPRET=1 runs it", allow_module_level=True)

from quant.kernels.triton.chunk_kernels import add_norm_kernel

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS, HIDDEN, EPS = 3, 80, 1e-5


@pytest.mark.parametrize("num_deltas", [0, 1, 4])
def test_rows_are_added_and_normed_and_the_router_gets_them_in_float32(num_deltas):
    generator = torch.Generator().manual_seed(num_deltas)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    delta = torch.randn(TOKENS, max(num_deltas, 1), HIDDEN, generator=generator)
    norm = torch.randn(HIDDEN, generator=generator).bfloat16()
    total = x.double() + delta.double()[:, :num_deltas].sum(1)
    scale = (total.square().mean(1, keepdim=True) + EPS).rsqrt()
    expected = total * scale * norm.double()
    here = [t.to(DEVICE) for t in (x, delta, norm)]
    normed = torch.full((TOKENS, HIDDEN), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    routed = torch.full((TOKENS, HIDDEN), float("nan"), device=DEVICE)
    add_norm_kernel[(TOKENS,)](
        *here, normed, routed, EPS, HIDDEN=HIDDEN, PADDED=128, NUM_DELTAS=num_deltas, ROUTED=True
    )
    assert torch.allclose(here[0].double().cpu(), total, atol=1e-6)
    assert float((routed.double().cpu() - expected).abs().max()) < 3e-6
    assert float((normed.double().cpu() - expected).norm() / expected.norm()) < 4e-3
