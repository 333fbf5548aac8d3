"""The one matrix test: every backend's products against a float64 definition.

A new backend is covered as soon as it is in BACKENDS. It must keep the strict bounds below, or
name a wider one in MATMUL_BOUNDS with its reason.
"""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quant.errors import QuantError
from quant.formats import FORMATS
from quant.kernels import BACKENDS, PREFERENCE, ExpertWeights, backend_for, unpacked_nbytes
from quant.tensor import QuantTensor

# Relative Frobenius errors.
FLOAT32 = 1e-6  # sums of up to 2560 terms, each rounded to 24 bits
BFLOAT16 = 2**-8  # weight and result each rounded to 8 bits: 2 × 2⁻⁹ at most, in norm
BFLOAT16_SCALES = 2**-8  # the scale itself is held in 8 bits, whatever the activations are
INT8_ACTIVATIONS = 0.015  # a step is absmax / 127, absmax about 4 σ: 4 / 127 / √12 = 0.9 %
INT8_BLOCKS = 0.0125  # int8 per block of 64: 0.6 to 0.8 %, over 16 outputs up to 1.06 %
BFLOAT16_ACTIVATIONS = 1.5 * 2**-8  # activations, codebook and result each rounded to 8 bits
STRICT = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
MATMUL_BOUNDS = {
    ("bnb", "int8", torch.float32): INT8_ACTIVATIONS,
    ("bnb", "int8", torch.bfloat16): INT8_ACTIVATIONS + BFLOAT16,
    ("bnb", "nf4", torch.float32): BFLOAT16_SCALES,
    ("bnb", "fp4", torch.float32): BFLOAT16_SCALES,
    ("bnb", "nf4", torch.bfloat16): BFLOAT16 + BFLOAT16_SCALES,
    ("bnb", "fp4", torch.bfloat16): BFLOAT16 + BFLOAT16_SCALES,
    **{("triton", name, torch.float32): BFLOAT16_ACTIVATIONS for name in FORMATS},
    **{("triton", name, torch.bfloat16): BFLOAT16_ACTIVATIONS for name in FORMATS},
    ("native", "nf4", torch.float32): INT8_BLOCKS,
    ("native", "int8", torch.float32): INT8_BLOCKS,
    ("native", "int8", torch.bfloat16): INT8_BLOCKS + BFLOAT16,
    ("native", "fp4", torch.float32): INT8_BLOCKS,
    ("native", "nf4", torch.bfloat16): INT8_BLOCKS + BFLOAT16,
    ("native", "fp4", torch.bfloat16): INT8_BLOCKS + BFLOAT16,
}
NUM_CHAINED_PRODUCTS = 3  # gate, up, down: their errors add up at worst

# (out_features, in_features). Formats refuse what they cannot hold; the rest is tested.
SHAPES = (
    (3, 100),  # nothing divides anything
    (16, 64),  # one block of the 4-bit layout
    (48, 64),  # not a multiple of 32 rows
    (80, 192),
    (512, 320),
    (512, 2560),  # keys and values of ERNIE-4.5-21B-A3B
    (2560, 1536),  # and the down of its experts
)
SMALL_SHAPE = (96, 192)  # 32 rows divide it, so that every packed kernel takes it
NUM_ROWS = (1, 3, 17, 100)
DTYPES = (torch.float32, torch.bfloat16)
DEVICES = (
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
        ],
    ),
)


def bound(backend_name: str, format_name: str, dtype: torch.dtype) -> float:
    return MATMUL_BOUNDS.get((backend_name, format_name, dtype), STRICT[dtype])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual = actual.cpu().double()
    return float((actual - expected).norm() / expected.norm())


def normal(seed: int, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


@cache
def weight_of(format_name: str, shape: tuple[int, int], seed: int = 0) -> QuantTensor:
    return FORMATS[format_name].quantize(normal(seed, *shape, std=0.02))


def dense(weight: QuantTensor) -> Tensor:
    return FORMATS[weight.format].dequantize(weight, torch.float64)


@cache
def dense_of(format_name: str, shape: tuple[int, int]) -> Tensor:
    return dense(weight_of(format_name, shape))


@cache
def product_of(
    format_name: str, shape: tuple[int, int], dtype: torch.dtype, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Activations and what they must become."""
    hidden_states = normal(1, num_rows, shape[1]).to(dtype)
    return hidden_states, hidden_states.double() @ dense_of(format_name, shape).T


@cache
def prepared(
    backend_name: str, format_name: str, device: str, shape: tuple[int, int]
) -> QuantTensor:
    # To the device first: a copy is made there, and a backend may lay out a weight by device.
    on_device = weight_of(format_name, shape).to(torch.device(device))
    return BACKENDS[backend_name]().prepare(on_device)


def holds(format_name: str, shape: tuple[int, int]) -> bool:
    try:
        FORMATS[format_name].check(shape)
    except QuantError:
        return False
    return True


def skip_unless_served(backend_name: str, format_name: str, device: str) -> None:
    reason = BACKENDS[backend_name]().why_not(format_name, torch.device(device))
    if reason:
        pytest.skip(reason)


def is_served(backend_name: str, format_name: str) -> bool:
    why_not = BACKENDS[backend_name]().why_not
    return not all(why_not(format_name, torch.device(device)) for device in ("cpu", "cuda"))


CELLS = [(b, f) for b in BACKENDS for f in FORMATS if is_served(b, f)]
SHAPED_CELLS = [(b, f, shape) for b, f in CELLS for shape in SHAPES if holds(f, shape)]


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backend_name", "format_name", "shape"), SHAPED_CELLS, ids=str)
def test_matmul_is_the_product_with_the_dequantized_weight(
    backend_name, format_name, shape, device, dtype, num_rows
):
    skip_unless_served(backend_name, format_name, device)
    hidden_states, expected = product_of(format_name, shape, dtype, num_rows)
    before = hidden_states.clone()
    weight = prepared(backend_name, format_name, device, shape)

    out = BACKENDS[backend_name]().matmul(hidden_states.to(device), weight)

    assert out.dtype == dtype
    assert out.shape == (num_rows, shape[0])
    assert torch.equal(hidden_states, before)
    assert relative_error(out, expected) < bound(backend_name, format_name, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backend_name", "format_name"), CELLS)
def test_matmul_reads_rows_that_lie_apart(backend_name, format_name, device, dtype):
    skip_unless_served(backend_name, format_name, device)
    wide = normal(2, 5, 3 * 192).to(dtype)
    weight = prepared(backend_name, format_name, device, SMALL_SHAPE)
    for view in (wide[:, 192:384], wide[:, 1::3], wide[::2, :192]):
        out = BACKENDS[backend_name]().matmul(view.to(device), weight)
        expected = view.double() @ dense_of(format_name, SMALL_SHAPE).T
        assert relative_error(out, expected) < bound(backend_name, format_name, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backend_name", "format_name"), CELLS)
def test_a_row_of_zeros_gives_zeros_and_leaves_its_neighbours_alone(
    backend_name, format_name, device
):
    skip_unless_served(backend_name, format_name, device)
    hidden_states = normal(3, 3, 192)
    hidden_states[1] = 0
    weight = prepared(backend_name, format_name, device, SMALL_SHAPE)
    out = BACKENDS[backend_name]().matmul(hidden_states.to(device), weight)
    assert out[1].count_nonzero() == 0
    expected = hidden_states.double() @ dense_of(format_name, SMALL_SHAPE).T
    assert relative_error(out, expected) < bound(backend_name, format_name, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backend_name", "format_name"), CELLS)
def test_activations_beyond_float16_do_not_overflow(backend_name, format_name, device):
    skip_unless_served(backend_name, format_name, device)
    hidden_states = (normal(4, 2, 192) * 1e6).bfloat16()
    weight = prepared(backend_name, format_name, device, SMALL_SHAPE)
    out = BACKENDS[backend_name]().matmul(hidden_states.to(device), weight)
    expected = hidden_states.double() @ dense_of(format_name, SMALL_SHAPE).T
    assert relative_error(out, expected) < bound(backend_name, format_name, torch.bfloat16)


# The experts chosen by each token, of four.
ROUTINGS = {
    "ragged": [[0, 1], [0, 2], [0, 1], [3, 0], [1, 0], [0, 1], [2, 0]],
    "one expert unused": [[0, 1], [1, 3], [3, 0]],
    "one expert has all tokens": [[2, 0], [1, 2], [2, 3], [0, 2], [2, 1]],
    "one token": [[3, 1]],
    "many tokens": [[i % 4, (i + 1 + i % 3) % 4] for i in range(90)],
}
HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_EXPERTS = 128, 64, 4


@cache
def experts_of(format_name: str) -> list[tuple[QuantTensor, QuantTensor]]:
    gate_up, down = (2 * INTERMEDIATE_SIZE, HIDDEN_SIZE), (HIDDEN_SIZE, INTERMEDIATE_SIZE)
    return [
        (weight_of(format_name, gate_up, seed), weight_of(format_name, down, seed + 100))
        for seed in range(NUM_EXPERTS)
    ]


def routed_by_hand(
    hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor, format_name: str
) -> Tensor:
    """One token, one expert at a time, in float64."""
    experts = [(dense(gate_up), dense(down)) for gate_up, down in experts_of(format_name)]
    out = torch.zeros(hidden_states.shape, dtype=torch.float64)
    for token_idx, x in enumerate(hidden_states.double()):
        for k, expert_idx in enumerate(topk_ids[token_idx].tolist()):
            gate_up, down = experts[expert_idx]
            gate = gate_up[:INTERMEDIATE_SIZE] @ x
            up = gate_up[INTERMEDIATE_SIZE:] @ x
            out[token_idx] += topk_weights[token_idx, k].double() * (down @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backend_name", "format_name"), CELLS)
def test_routed_experts_are_the_weighted_sum_of_the_chosen_ones(
    backend_name, format_name, device, dtype, routing
):
    skip_unless_served(backend_name, format_name, device)
    backend = BACKENDS[backend_name]()
    topk_ids = torch.tensor(ROUTINGS[routing])
    topk_weights = torch.rand(topk_ids.shape, generator=torch.Generator().manual_seed(5))
    hidden_states = normal(6, len(topk_ids), HIDDEN_SIZE, std=20.0).to(dtype)
    experts = [
        ExpertWeights(*(backend.prepare(weight.to(torch.device(device))) for weight in pair))
        for pair in experts_of(format_name)
    ]

    out = backend.routed_experts(
        hidden_states.to(device), topk_ids.to(device), topk_weights.to(device), experts
    )

    assert out.dtype == dtype
    assert out.shape == hidden_states.shape
    expected = routed_by_hand(hidden_states, topk_ids, topk_weights, format_name)
    limit = NUM_CHAINED_PRODUCTS * bound(backend_name, format_name, dtype)
    assert relative_error(out, expected) < limit
    # An expert's error must not hide behind a louder token's: each token on its own, too.
    for token_out, token_expected in zip(out, expected, strict=True):
        assert relative_error(token_out, token_expected) < 2 * limit


def test_expert_nbytes_counts_both_matrices():
    # nf4: half a byte a weight and two bytes a block of 64.
    gate_up, down = experts_of("nf4")[0]
    num_weights = 3 * HIDDEN_SIZE * INTERMEDIATE_SIZE
    assert ExpertWeights(gate_up, down).nbytes == num_weights // 2 + num_weights // 64 * 2


def test_every_backend_carries_its_key_as_its_name():
    assert {name: backend().name for name, backend in BACKENDS.items()} == {b: b for b in BACKENDS}
    assert set(PREFERENCE) <= set(BACKENDS)


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_reference_serves_every_format_and_auto_never_takes_it(format_name):
    cpu = torch.device("cpu")
    assert backend_for(format_name, cpu, "reference").name == "reference"
    assert backend_for(format_name, cpu).name != "reference"


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_what_a_product_unpacks_is_known_of_all_that_is_served(backend_name, format_name):
    if BACKENDS[backend_name]().why_not(format_name, torch.device("cpu")):
        pytest.skip("it does not serve that")
    assert unpacked_nbytes(backend_name, format_name, 1000) >= 0  # KeyError: it was not measured


def test_an_unknown_backend_is_refused_with_the_names_that_there_are():
    with pytest.raises(QuantError, match=r'no kernel backend "cutlass"; there are auto, .*torch'):
        backend_for("nf4", torch.device("cpu"), "cutlass")


def test_a_backend_that_does_not_serve_a_format_says_which_and_a_way_out():
    with pytest.raises(QuantError) as caught:
        backend_for("nf4", torch.device("cpu"), "torch")
    message = str(caught.value)
    assert "no kernel for nf4 on cpu" in message
    assert "torch has no operator for nf4 weights" in message
    assert "--kernels reference or another --quant" in message
    with pytest.raises(QuantError, match="bitsandbytes has no kernel for bf16 weights"):
        backend_for("bf16", torch.device("cpu"), "bnb")
