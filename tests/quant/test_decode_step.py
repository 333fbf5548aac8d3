"""What a decoding step refuses before C++ sees it; tests/model holds its results to torch."""

import dataclasses
from typing import Any

import pytest
import torch

from quant.errors import QuantError
from quant.formats import FORMATS
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend, library
from quant.kernels.native.step import BlockWeights, DecodeStep, StepSizes, StepWeights
from quant.tensor import QuantTensor

FOUND = library.find_library()
pytestmark = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))

HIDDEN, WIDTH, VOCAB = 64, 128, 96
SIZES = StepSizes(VOCAB, HIDDEN, 4, 2, 16, 4, 2, 64, 1e-5, 1e-12)
CACHE_SHAPE = (2, 2, 2, 8, 16)


def weight(rows: int, cols: int, name: str = "nf4") -> QuantTensor:
    return FORMATS[name].random((rows, cols), torch.Generator().manual_seed(rows + cols))


def gated(name: str = "nf4", width: int = WIDTH) -> ExpertWeights:
    return ExpertWeights(weight(2 * width, HIDDEN, name), weight(HIDDEN, width, name))


def weights() -> StepWeights:
    norm = torch.ones(HIDDEN, dtype=torch.bfloat16)
    dense = BlockWeights(norm, norm, weight(128, HIDDEN), weight(HIDDEN, 64), gated())
    routed = dataclasses.replace(
        dense,
        router=torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0)),
        correction_bias=torch.zeros(4),
        experts=[gated(width=64)] * 4,
    )
    table = weight(VOCAB, HIDDEN, "int8")
    return StepWeights([dense, routed], norm, table, table, torch.ones(8))


def step(sizes: StepSizes = SIZES, changed: StepWeights | None = None) -> DecodeStep:
    return DecodeStep(sizes, changed or weights(), torch.float32, NativeBackend())


def with_block(block_idx: int, **changes: Any) -> StepWeights:
    blocks = list(weights().blocks)
    blocks[block_idx] = dataclasses.replace(blocks[block_idx], **changes)
    return dataclasses.replace(weights(), blocks=blocks)


def test_a_step_counts_its_choices_and_writes_one_position_of_each_layer():
    decode, kv_cache = step(), torch.full(CACHE_SHAPE, float("nan"))
    for position in range(3):
        assert decode.forward(5, position, kv_cache).isfinite().all()
    assert decode.counts.sum(1).tolist() == [0, 6]
    assert kv_cache[:, :, :, :3].isfinite().all()
    assert kv_cache[:, :, :, 3:].isnan().all()


WRONG_WEIGHTS = {
    "qkv": (0, {"qkv": weight(112, HIDDEN)}, r"qkv must be \[128, 64\], got \[112, 64\]"),
    "o": (1, {"o": weight(HIDDEN, 128)}, r"\[64, 64\], got \[64, 128\]"),
    "gate_up": (
        0,
        {"gated": ExpertWeights(weight(128, HIDDEN), weight(HIDDEN, 128))},
        r"gate and up must be \[256, 64\]",
    ),
    "norm": (0, {"input_norm": torch.ones(32)}, r"input_norm must be .*\[64\]"),
    "no_mlp": (0, {"gated": None}, "has no MLP"),
    "formats": (1, {"gated": gated("int8")}, "all linear maps must be in one of"),
    "router": (1, {"router": torch.ones(5, HIDDEN)}, r"a router must be .*\[4, 64\]"),
    "rounded_bias": (
        1,
        {"correction_bias": torch.zeros(4, dtype=torch.bfloat16)},
        "a correction bias must be torch.float32",
    ),
    "no_bias": (1, {"correction_bias": None}, "or none of them"),
    "few_experts": (1, {"experts": [gated()] * 3}, "3 of 4 experts"),
    "widths": (
        1,
        {"experts": [gated()] * 3 + [gated(width=64)]},
        "a width of 128; all must have 64",
    ),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(case):
    block_idx, changes, message = WRONG_WEIGHTS[case]
    with pytest.raises(QuantError, match=message):
        step(changed=with_block(block_idx, **changes))


WRONG_SIZES = {
    "odd_heads": ({"head_dim": 15}, "even width"),
    "shared_unevenly": ({"num_kv_heads": 3}, "share keys evenly"),
    "top_k": ({"num_experts_per_tok": 5}, "cannot use 5 of 4"),
    "vocab": ({"vocab_size": 97}, r"the head must be \[97, 64\]"),
    "eps": ({"norm_eps": float("nan")}, "norm_eps"),
}


@pytest.mark.parametrize("case", WRONG_SIZES)
def test_sizes_that_do_not_fit_are_refused(case):
    changes, message = WRONG_SIZES[case]
    with pytest.raises(QuantError, match=message):
        step(dataclasses.replace(SIZES, **changes))


@pytest.mark.parametrize(
    ("token_id", "position", "kv_cache", "message"),
    [
        (VOCAB, 0, torch.zeros(CACHE_SHAPE), "token 96 is not one of 96"),
        (-1, 0, torch.zeros(CACHE_SHAPE), "token -1"),
        (0, 8, torch.zeros(CACHE_SHAPE), "position 8 is not in a cache of 8"),
        (0, -1, torch.zeros(CACHE_SHAPE), "position -1"),
        (0, 0, torch.zeros(CACHE_SHAPE, dtype=torch.bfloat16), "kv_cache must be torch.float32"),
        (0, 0, torch.zeros(2, 3, 2, 8, 16), "kv_cache must be"),
        (0, 0, torch.zeros(8), "kv_cache must be"),
        (0, 0, torch.zeros(2, 2, 2, 16, 16)[:, :, :, ::2], "contiguous"),
    ],
)
def test_a_token_or_a_cache_that_does_not_fit_is_refused(token_id, position, kv_cache, message):
    with pytest.raises(QuantError, match=message):
        step().forward(token_id, position, kv_cache)


def test_an_embedding_in_bf16_is_looked_up():
    table = weight(VOCAB, HIDDEN, "int8")
    rows = FORMATS["int8"].dequantize(table, torch.bfloat16)
    as_bf16 = QuantTensor("bf16", "rows", table.shape, {"weight": rows})
    as_int8 = FORMATS["int8"].quantize(rows)  # rounded once more, which is the difference allowed
    results = [
        step(changed=dataclasses.replace(weights(), embedding=embedding)).forward(
            3, 0, torch.zeros(CACHE_SHAPE)
        )
        for embedding in (as_bf16, as_int8)
    ]
    error = (results[0] - results[1]).norm() / results[0].norm()
    assert 0 < float(error) < 0.05


def with_missing() -> StepWeights:
    experts = [gated(width=64)] * 4
    return with_block(1, experts=[experts[0], None, None, experts[3]])


def test_an_expert_that_is_not_placed_is_asked_for_and_the_token_goes_on():
    decode, asked, caches = step(changed=with_missing()), [], torch.zeros(2, *CACHE_SHAPE)

    def bring(layer_idx: int, expert_ids: list[int]) -> None:
        asked.append((layer_idx, expert_ids))
        for expert_idx in expert_ids:
            decode.place(layer_idx, expert_idx, gated(width=64))

    whole = step()
    for position, token_id in enumerate((5, 6, 7, 8)):
        found = decode.forward(token_id, position, caches[0], bring)
        assert torch.equal(found, whole.forward(token_id, position, caches[1]))
        decode.forget(1, position % 4)
    assert torch.equal(caches[0], caches[1])
    assert torch.equal(decode.counts, whole.counts)
    assert asked
    assert all(layer_idx == 1 and ids == sorted(set(ids)) for layer_idx, ids in asked)


def test_an_expert_that_nobody_brings_is_told():
    decode = step(changed=with_missing())
    for expert_idx in (0, 3):
        decode.forget(1, expert_idx)
    for bring in (None, lambda layer_idx, expert_ids: None):
        with pytest.raises(QuantError, match="chose an expert that is not in memory"):
            decode.forward(5, 0, torch.zeros(CACHE_SHAPE), bring)


def test_an_expert_of_another_format_or_width_is_not_placed():
    decode = step(changed=with_missing())
    with pytest.raises(QuantError, match="a width of 128; all must have 64"):
        decode.place(1, 1, gated())
    with pytest.raises(QuantError, match=r"must be in one format, got \['int8', 'nf4'\]"):
        decode.place(1, 1, gated("int8", 64))
    assert not decode.knows(1, 1)


def test_what_is_not_finite_is_told_before_what_is_missing():
    damaged = with_missing()
    norm = damaged.blocks[0].input_norm.clone()
    norm[0] = float("nan")
    blocks = [dataclasses.replace(damaged.blocks[0], input_norm=norm), damaged.blocks[1]]
    decode = step(changed=dataclasses.replace(damaged, blocks=blocks))
    decode.forget(1, 0)  # what NaN chooses
    with pytest.raises(QuantError, match="NaN or infinite"):
        decode.forward(5, 0, torch.zeros(CACHE_SHAPE), lambda layer_idx, ids: None)
