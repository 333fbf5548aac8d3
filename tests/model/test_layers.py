"""The pieces of a decoder block by hand, and attention against a float64 loop."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from erniechat.model.layers import causal_attention, gated_mlp, rms_norm, rotary_angles, rotate
from quant.formats import FORMATS
from quant.kernels import BACKENDS
from quant.linear import QuantLinear


def test_rms_norm_by_hand():
    # mean square of 3 and 4 is 12.5; with eps 3.5 its root is 4
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 10.0]), eps=3.5)
    assert out.tolist() == [[3 / 4 * 2, 4 / 4 * 10]]


def test_rms_norm_multiplies_by_the_weight_and_not_by_one_plus_it():
    out = rms_norm(torch.tensor([[1.0, 1.0]]), torch.zeros(2), eps=1e-5)
    assert out.tolist() == [[0.0, 0.0]]


def test_rms_norm_rounds_before_it_multiplies_by_the_weight():
    # 1 / sqrt(mean square 2.5) = 0.63246, in bfloat16 0.6328125; times 3 = 1.8984375
    out = rms_norm(torch.tensor([[1.0, 2.0]]).bfloat16(), torch.tensor([3.0, 1.0]), eps=0.0)
    assert out.dtype == torch.bfloat16
    assert out[0, 0].item() == 1.8984375


def test_rms_norm_of_bfloat16_does_not_overflow_where_its_squares_would():
    out = rms_norm(torch.tensor([[1e18, 1e18]]).bfloat16(), torch.ones(2), eps=1e-5)
    assert out.tolist() == [[1.0, 1.0]]


def test_a_unit_vector_is_turned_by_its_position():
    cos, sin = rotary_angles(torch.tensor([0, 1, 5]), head_dim=2, theta=10000.0)
    out = rotate(torch.tensor([[[1.0, 0.0]] * 3]), cos, sin)
    turned = [[math.cos(angle), math.sin(angle)] for angle in (0, 1, 5)]
    assert out[0].flatten().tolist() == pytest.approx([x for pair in turned for x in pair])


def test_pairs_are_neighbours_and_later_ones_turn_slower():
    # theta 100 and head_dim 4: the second pair turns at 100 ** -(2/4) = 1/10 of the speed
    cos, sin = rotary_angles(torch.tensor([2]), head_dim=4, theta=100.0)
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    out = rotate(x, cos, sin).flatten().tolist()
    expected = [math.cos(2), math.sin(2), -math.sin(0.2), math.cos(0.2)]
    assert out == pytest.approx(expected, abs=1e-6)


def test_angles_are_exact_to_float32_at_the_end_of_the_context():
    position, theta, head_dim = 131071, 500000.0, 128
    cos, _ = rotary_angles(torch.tensor([position]), head_dim, theta)
    # transformers computes the product of position and frequency in float32 as well, whose step
    # at 131071 is 1/128: the first, fastest pairs are as coarse there.
    for pair in range(head_dim // 2):
        angle = position * theta ** (-2 * pair / head_dim)
        assert cos[0, pair].item() == pytest.approx(math.cos(angle), abs=2e-7 * angle + 1e-6)


def test_rotation_is_in_float32_and_keeps_the_dtype():
    cos, sin = rotary_angles(torch.arange(7), head_dim=8, theta=10000.0)
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = rotate(x, cos, sin)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rotate(x.float(), cos, sin).bfloat16())


def attention_by_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention in float64, one head and token at a time."""
    q, k, v = q.double(), k.double(), v.double()
    num_heads, num_tokens, head_dim = q.shape
    num_held, group = k.shape[1], num_heads // k.shape[0]
    out = torch.zeros(num_tokens, num_heads, head_dim, dtype=torch.float64)
    for head in range(num_heads):
        for token in range(num_tokens):
            visible = num_held - num_tokens + token + 1
            keys, values = k[head // group, :visible], v[head // group, :visible]
            scores = keys @ q[head, token] / math.sqrt(head_dim)
            out[token, head] = scores.softmax(0) @ values
    return out.flatten(1)


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
@pytest.mark.parametrize("num_before", [0, 1, 7, 70])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_attention_sees_all_tokens_up_to_its_own(num_tokens, num_before, num_kv_heads):
    generator = torch.Generator().manual_seed(num_tokens)
    q = torch.randn(6, num_tokens, 16, generator=generator)
    k, v = torch.randn(2, num_kv_heads, num_before + num_tokens, 16, generator=generator)
    out = causal_attention(q, k, v)
    assert out.shape == (num_tokens, 6 * 16)
    assert torch.allclose(out.double(), attention_by_loop(q, k, v), rtol=0, atol=1e-6)


def test_attention_to_one_token_is_its_value():
    value = torch.arange(8.0).view(2, 1, 4)
    out = causal_attention(torch.randn(4, 1, 4), torch.randn(2, 1, 4), value)
    assert out.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]]


def test_attention_reads_views_of_a_larger_cache():
    q = torch.randn(4, 3, 16)
    whole = torch.full((2, 2, 100, 16), float("nan"))  # what was never written must not be read
    whole[:, :, :9] = torch.randn(2, 2, 9, 16)
    k, v = whole[0, :, :9], whole[1, :, :9]
    expected = attention_by_loop(q, k, v)
    assert torch.allclose(causal_attention(q, k, v).double(), expected, rtol=0, atol=1e-6)


def test_gated_mlp_by_hand():
    torch_backend, bf16 = BACKENDS["torch"](), FORMATS["bf16"]
    gate_up = QuantLinear(bf16.quantize(torch.tensor([[2.0], [3.0]])), torch_backend)  # gate, up
    down = QuantLinear(bf16.quantize(torch.tensor([[0.5]])), torch_backend, torch.tensor([1.0]))
    out = gated_mlp(torch.tensor([[1.0]]), gate_up, down)
    silu_of_2 = 2 / (1 + math.exp(-2))
    assert out.tolist() == [[pytest.approx(silu_of_2 * 3 * 0.5 + 1.0)]]
    assert F.silu(torch.tensor(2.0)).item() == pytest.approx(silu_of_2)
