"""A prompt's attention in C++, held to softmax(q · k / √d) · v in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.native import (
    NativeBackend,
    causal_attention,
    library,
    num_threads,
    set_num_threads,
)

FOUND = library.find_library()
pytestmark = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))
PATHS = () if isinstance(FOUND, str) else FOUND.paths
# Relative Frobenius errors: float32 sums of up to 300 terms; a result rounded to 8 bits.
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 2**-8}


def normal(seed: int, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    group, num_tokens, num_held = len(q) // len(k), q.shape[1], k.shape[1]
    scores = q @ k.repeat_interleave(group, 0).mT / math.sqrt(q.shape[2])
    later = torch.ones(num_tokens, num_held, dtype=torch.bool).triu(num_held - num_tokens + 1)
    weights = scores.masked_fill(later, float("-inf")).softmax(-1)
    return (weights @ v.repeat_interleave(group, 0)).transpose(0, 1).flatten(1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def inputs(
    seed: int, heads: int, kv_heads: int, tokens: int, held: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values are parts of larger caches, with NaN where no token is yet."""
    q = normal(seed, heads, tokens, head_dim, std=3.0)
    caches = torch.full((2, kv_heads, held + 3, head_dim), float("nan"))
    caches[:, :, :held] = normal(seed + 1, 2, kv_heads, held, head_dim)
    return q, caches[0, :, :held], caches[1, :, :held]


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=12, deadline=None)
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 6),
    tokens=st.integers(1, 90),
    before=st.integers(0, 100),
    head_dim=st.sampled_from([1, 8, 20, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_each_instruction_set_computes_attention(
    path, kv_heads, group, tokens, before, head_dim, dtype, seed
):
    made = inputs(seed, kv_heads * group, kv_heads, tokens, before + tokens, head_dim)
    q, k, v = (x.to(dtype) for x in made)
    k, v = k.contiguous(), v.contiguous()
    out = causal_attention(q, k, v, NativeBackend(path))
    assert out.dtype == dtype
    assert relative_error(out, exact(q, k, v)) < BOUNDS[dtype]


def test_keys_are_read_where_the_cache_has_them():
    q, k, v = inputs(1, 4, 2, 70, 200, 16)
    assert not k.is_contiguous()
    assert relative_error(causal_attention(q, k, v, NativeBackend()), exact(q, k, v)) < 3e-6


def test_two_tokens_by_hand():
    q = torch.tensor([[[0.0, 0.0], [2.0**0.5, 0.0]]])
    k, v = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[3.0, 1.0], [5.0, 2.0]]])
    out = causal_attention(q, k, v, NativeBackend())
    first = math.e / (math.e + 1)  # scores of the second token: 1 and 0
    assert out[0].tolist() == [3.0, 1.0]  # the first token sees only itself
    assert out[1].tolist() == pytest.approx([3 * first + 5 * (1 - first), 2 - first], rel=1e-6)


def test_results_depend_neither_on_threads_nor_on_how_a_prompt_is_cut():
    q, k, v = inputs(2, 10, 2, 150, 150, 32)
    whole = causal_attention(q, k, v, NativeBackend())
    before = num_threads()
    try:
        for count in (1, 3, 7):
            set_num_threads(count)
            assert torch.equal(causal_attention(q, k, v, NativeBackend()), whole)
    finally:
        set_num_threads(before)
    for cut in (1, 63, 64, 100):
        parts = [
            causal_attention(q[:, begin:end], k[:, :end], v[:, :end], NativeBackend())
            for begin, end in ((0, cut), (cut, 150))
        ]
        assert relative_error(torch.cat(parts), whole.double()) < 1e-6


def cut_short(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(x.nbytes - 4)
    return x


Q, K, V = inputs(3, 4, 2, 5, 9, 16)
SHARED = K.contiguous(), V.contiguous()


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    [
        (Q[0], K, V, "of .heads, tokens, head_dim."),
        (Q, K, V[:, :8], "of .heads, tokens, head_dim."),
        (Q[:, :, :8].contiguous(), K, V, "of .heads, tokens, head_dim."),
        (Q[:3], K, V, "share key heads evenly"),
        (Q[:, :0], K, V, "share key heads evenly"),
        (Q, K[:, :4], V[:, :4], "no query lack its key"),
        (Q.double(), K, V, "q must be float32 or bfloat16"),
        (Q.bfloat16(), K, V, "k must be"),
        (Q, K, V.contiguous(), "lie alike"),
        (Q, K.mT.contiguous().mT, V.mT.contiguous().mT, "lie alike, each head dense"),
        (Q, *(cut_short(x) for x in SHARED), "bytes of storage"),
        (Q * float("nan"), K, V, "NaN or infinite"),
        (Q * 1e30, *(x * 1e30 for x in SHARED), "NaN or infinite"),
    ],
)
def test_bad_input_is_refused(q, k, v, message):
    with pytest.raises(QuantError, match=message):
        causal_attention(q, k, v, NativeBackend())
