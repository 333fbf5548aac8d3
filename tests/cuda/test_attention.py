"""Attention of one token against float64: on a device, or in Triton's interpreter."""

import importlib

import pytest
import torch

from tests.cuda.test_tiles import (
    DEVICE,
    INTERPRETS,
    pytestmark,  # noqa: F401  # the same conditions
)

attention = importlib.import_module("quant.kernels.triton.attention")
NUM_KV, REP, D, CAPACITY, TILE, SPLITS = 2, 3, 64, 200, 16, 5


def expected(q, keys, values, length):
    """float64 ``[NUM_KV · REP, D]`` over the first tokens of a cache."""
    keys = keys[:, :length].double().repeat_interleave(REP, 0)
    values = values[:, :length].double().repeat_interleave(REP, 0)
    scores = (q.double()[:, None] @ keys.transpose(1, 2)) * D**-0.5
    return (scores.softmax(-1) @ values)[:, 0]


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("length", [1, 16, 17, 60, 200])
def test_parts_of_the_context_add_up_to_attention(length, bits):
    torch.manual_seed(length)
    cache = torch.randn(2, 1, NUM_KV, CAPACITY, D).bfloat16()
    qkv = torch.randn((REP + 2) * NUM_KV, D).bfloat16().float()
    wanted = cache.clone()
    wanted[0, 0, :, length - 1] = qkv[REP * NUM_KV : REP * NUM_KV + NUM_KV].bfloat16()
    wanted[1, 0, :, length - 1] = qkv[-NUM_KV:].bfloat16()
    right = expected(qkv[: REP * NUM_KV], wanted[0, 0], wanted[1, 0], length)
    cache, qkv = cache.to(DEVICE), qkv.to(DEVICE)

    def new(*shape, dtype=torch.float32):
        poisoned = torch.full(shape, 77, dtype=dtype, device=DEVICE)
        return poisoned if dtype == torch.int16 else poisoned * float("nan")

    angles = torch.cat((torch.ones(D // 2), torch.zeros(D // 2))).to(DEVICE)  # no rotation
    state = torch.tensor([length - 1, cache.data_ptr(), CAPACITY], device=DEVICE)
    parts = (new(NUM_KV, SPLITS, 16, D), new(NUM_KV, SPLITS, 16), new(NUM_KV, SPLITS, 16))
    heads = new(NUM_KV * REP, D, dtype=torch.bfloat16 if bits == 16 else torch.int16)
    scales = new(NUM_KV * REP, D // 16)
    shape = {"REP": REP, "RP": 16, "D": D, "BT": TILE, "SPLITS": SPLITS, "BITS": bits, "PDL": False}
    attention.attention_kernel[(NUM_KV, SPLITS)](
        qkv, angles, state, 0, D**-0.5, *parts, heads, scales, NUM_LAYERS=1, NUM_KV=NUM_KV,
        PTX=not INTERPRETS, num_warps=4, num_stages=2, **shape,
    )  # fmt: skip
    attention.combine_kernel[(NUM_KV * REP,)](
        state, *parts, heads, scales, PADDED_SPLITS=8, num_warps=4, **shape
    )
    out = heads.double().cpu()
    if bits == 4:
        out = (out.view(-1, D // 16, 16) * scales.double().cpu()[:, :, None]).view(-1, D)
    assert float((out - right).norm() / right.norm()) < 1e-2
    assert torch.equal(cache.cpu(), wanted)
