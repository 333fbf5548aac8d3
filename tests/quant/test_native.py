"""What is special to the native kernels; test_kernels.py holds them to the definition as well."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.errors import QuantError
from quant.formats import FORMATS
from quant.formats.codebook import Codebook4
from quant.formats.fp4 import FP4 as FP4_FORMAT
from quant.formats.nf4 import NF4 as NF4_FORMAT
from quant.kernels.base import ExpertWeights
from quant.kernels.native import (
    NativeBackend,
    build,
    default_num_threads,
    library,
    num_threads,
    quantize_codebook,
    read_probe,
    set_num_threads,
    threads,
)
from quant.kernels.native.buffers import codebook_levels
from quant.kernels.reference import ReferenceBackend
from quant.tensor import QuantTensor

FOUND = library.find_library()
needs_library = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))
PATHS = () if isinstance(FOUND, str) else FOUND.paths
CPU = torch.device("cpu")
SERVED = ("nf4", "fp4", "int8")

# Relative Frobenius error of a product of many values: activations rounded to 127 steps of a
# block's largest, about 2.5 σ, 2.5 / 127 / √12 = 0.6 %; nf4's levels 0.5 %. A few dozen values
# scatter around that.
MATMUL = 0.012
FEW_VALUES = 0.03
LAYER = 3 * MATMUL  # gate, up, down


def normal(seed: int, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def weight_of(format_name: str, shape: tuple[int, int], seed: int = 0) -> QuantTensor:
    return FORMATS[format_name].quantize(normal(seed, *shape, std=0.02))


def expert_of(format_name: str, hidden_size: int, width: int, seed: int) -> ExpertWeights:
    return ExpertWeights(
        weight_of(format_name, (2 * width, hidden_size), seed),
        weight_of(format_name, (hidden_size, width), seed + 1000),
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def block_largest(values: Tensor) -> Tensor:
    """By column the largest magnitude in its block of 64 columns, of the same shape."""
    padded = F.pad(values.abs(), (0, -values.shape[1] % 64))
    largest = padded.view(len(values), padded.shape[1] // 64, 64).amax(-1, keepdim=True)
    return largest.expand(-1, -1, 64).reshape(padded.shape)[:, : values.shape[1]]


def largest_error(x: Tensor, weight: QuantTensor) -> Tensor:
    """What rounding can cost at worst: half a step of 1/127 (activations) or 1/112 (levels)."""
    dense = FORMATS[weight.format].dequantize(weight, torch.float32)
    of_activations = block_largest(x) @ dense.abs().T * 0.5 / 127
    of_levels = x.abs() @ block_largest(dense).T * 0.5 / 112
    if weight.format == "int8":
        of_levels.zero_()
    second_order = 1.01
    return (of_activations + of_levels) * second_order + 1e-6 * (x.abs() @ dense.abs().T)


def poison_memory() -> None:
    """Leave NaN where the next outputs will be allocated, so that what is not written shows."""
    for size in (64, 1024, 16384, 262144):
        torch.full((size,), float("nan"))


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = num_threads()
    yield
    set_num_threads(before)


@needs_library
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 8, 9, 13, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format_name", SERVED)
def test_every_instruction_set_computes_the_product(path, format_name, dtype, num_tokens):
    weight = weight_of(format_name, (112, 320))
    x = normal(1, num_tokens, 320).to(dtype)
    poison_memory()
    out = NativeBackend(path).matmul(x, weight)
    expected = ReferenceBackend().matmul(x.float(), weight)
    assert out.dtype == dtype
    assert relative_error(out, expected) < MATMUL


@needs_library
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
@pytest.mark.parametrize("format_name", SERVED)
def test_every_instruction_set_computes_a_layer(path, format_name, num_tokens):
    experts = [expert_of(format_name, 192, 128, seed) for seed in range(6)]
    ids = torch.tensor([[i % 6, (i + 1 + i % 4) % 6] for i in range(num_tokens)])
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(7))
    x = normal(2, num_tokens, 192, std=20.0)
    poison_memory()
    out = NativeBackend(path).routed_experts(x, ids, weights, experts)
    expected = ReferenceBackend().routed_experts(x, ids, weights, experts)
    assert relative_error(out, expected) < LAYER


@needs_library
@pytest.mark.parametrize("path", PATHS[1:])
@pytest.mark.parametrize("format_name", SERVED)
def test_instruction_sets_agree_far_better_than_with_the_exact_product(path, format_name):
    # Their integer sums are equal; only the order of float32 additions differs.
    weight, x = weight_of(format_name, (48, 640)), normal(3, 20, 640)
    fastest = NativeBackend(PATHS[0]).matmul(x, weight)
    assert relative_error(NativeBackend(path).matmul(x, weight), fastest) < 1e-6


@needs_library
@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("amx")])
@pytest.mark.parametrize("num_tokens", [9, 16, 17, 64, 65, 150])
@pytest.mark.parametrize("format_name", SERVED)
def test_tiles_give_the_bits_of_avx512(path, format_name, num_tokens):
    weight, x = weight_of(format_name, (112, 320)), normal(3, num_tokens, 320)
    vectors = NativeBackend("avx512")
    poison_memory()
    assert torch.equal(NativeBackend(path).matmul(x, weight), vectors.matmul(x, weight))
    # Low experts get most tokens, so that some experts go through tiles and some do not.
    experts = [expert_of(format_name, 320, 192, seed) for seed in range(8)]
    shared = [expert_of(format_name, 320, 128, 20)]
    ids = torch.tensor([sorted((-(i % (j + 1)), j) for j in range(8)) for i in range(num_tokens)])
    ids = ids[:, -3:, 1].contiguous()
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(5))
    layers = [
        backend.routed_experts(x, ids, weights, experts, shared)
        for backend in (NativeBackend(path), vectors)
    ]
    assert torch.equal(*layers)


@needs_library
@pytest.mark.parametrize("path", PATHS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 90),
    cols=st.integers(1, 300),
    num_tokens=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_int8_of_any_shape(path, rows, cols, num_tokens, seed):
    weight, x = weight_of("int8", (rows, cols), seed), normal(seed + 1, num_tokens, cols)
    poison_memory()
    out = NativeBackend(path).matmul(x, weight)
    expected = ReferenceBackend().matmul(x, weight)
    assert out.shape == (num_tokens, rows)
    assert bool(((out - expected).abs() <= largest_error(x, weight)).all())


@needs_library
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 7),
    blocks=st.integers(1, 6),
    num_tokens=st.integers(0, 30),
    format_name=st.sampled_from(["nf4", "fp4"]),
    seed=st.integers(0, 1000),
)
def test_codebooks_of_any_shape(path, groups, blocks, num_tokens, format_name, seed):
    shape = (16 * groups, 64 * blocks)
    weight, x = weight_of(format_name, shape, seed), normal(seed + 1, num_tokens, shape[1])
    poison_memory()
    out = NativeBackend(path).matmul(x, weight)
    assert out.shape == (num_tokens, shape[0])
    error = (out - ReferenceBackend().matmul(x, weight)).abs()
    assert bool((error <= largest_error(x, weight)).all())


@needs_library
@settings(max_examples=40, deadline=None)
@given(
    hidden_blocks=st.integers(1, 4),
    width_blocks=st.integers(1, 3),
    num_tokens=st.integers(1, 40),
    num_experts=st.integers(1, 9),
    format_name=st.sampled_from(SERVED),
    data=st.data(),
)
def test_layers_of_any_shape(
    hidden_blocks, width_blocks, num_tokens, num_experts, format_name, data
):
    hidden_size, width = 64 * hidden_blocks, 64 * width_blocks
    k = data.draw(st.integers(1, num_experts))
    seed = data.draw(st.integers(0, 1000))
    experts = [expert_of(format_name, hidden_size, width, seed + e) for e in range(num_experts)]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack(
        [torch.randperm(num_experts, generator=generator)[:k] for _ in range(num_tokens)]
    )
    weights = torch.rand(ids.shape, generator=generator)
    x = normal(seed, num_tokens, hidden_size, std=20.0)
    poison_memory()
    out = NativeBackend().routed_experts(x, ids, weights, experts)
    expected = ReferenceBackend().routed_experts(x, ids, weights, experts)
    assert relative_error(out, expected) < 3 * FEW_VALUES


@needs_library
@pytest.mark.parametrize("format_name", SERVED)
def test_results_do_not_depend_on_the_number_of_threads(restore_threads, format_name):
    weight = weight_of(format_name, (240, 192))
    experts = [expert_of(format_name, 192, 128, seed) for seed in range(6)]
    backend = NativeBackend()
    for num_tokens in (1, 6, 40):
        x = normal(4, num_tokens, 192).bfloat16()
        ids = torch.arange(num_tokens)[:, None].add(torch.tensor([0, 2, 3])) % 6
        weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(5))
        outs = []
        for count in (1, 2, 3, 7):
            set_num_threads(count)
            assert num_threads() == count
            for _ in range(5):
                poison_memory()
                product = backend.matmul(x, weight)
                outs.append((product, backend.routed_experts(x, ids, weights, experts)))
        for product, layer in outs[1:]:
            assert torch.equal(product, outs[0][0])
            assert torch.equal(layer, outs[0][1])


@needs_library
@pytest.mark.parametrize("format_name", SERVED)
def test_a_token_gives_the_same_alone_and_among_others(format_name):
    weight, x = weight_of(format_name, (64, 256)), normal(6, 33, 256)
    together = NativeBackend().matmul(x, weight)
    alone = torch.cat([NativeBackend().matmul(row[None], weight) for row in x])
    assert relative_error(together, alone) < 1e-6


@needs_library
def test_shared_experts_serve_every_token_with_weight_one():
    experts = [expert_of("nf4", 128, 64, seed) for seed in range(4)]
    shared = [expert_of("nf4", 128, 192, 50)]  # wider than the routed ones
    x = normal(7, 5, 128, std=20.0)
    ids, weights = torch.tensor([[0, 1]] * 5), torch.full((5, 2), 0.5)
    out = NativeBackend().routed_experts(x, ids, weights, experts, shared)
    reference = ReferenceBackend()
    routed = reference.routed_experts(x, ids, weights, experts)
    every = torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1)
    assert relative_error(out, routed + reference.routed_experts(x, *every, shared)) < LAYER


@needs_library
def test_calls_from_many_python_threads_take_turns():
    weight = weight_of("nf4", (160, 256))
    inputs = [normal(seed, 1 + seed, 256) for seed in range(8)]
    expected = [NativeBackend().matmul(x, weight) for x in inputs]
    wrong: list[int] = []

    def work(seed: int) -> None:
        backend = NativeBackend()
        for _ in range(50):
            if not torch.equal(backend.matmul(inputs[seed], weight), expected[seed]):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@needs_library
def test_the_probe_reads_what_is_there():
    # The checksum is the xor of all 8-byte words.
    assert read_probe(torch.tensor([1, 2, 4, 8] * 40)) == 0
    assert read_probe(torch.tensor([5] + [0] * 15)) == 5


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_levels_are_the_codebook_in_bytes(name):
    levels, unit = codebook_levels(name)
    found = FORMATS[name]
    assert isinstance(found, Codebook4)
    assert max(map(abs, levels)) <= 127
    error = (torch.tensor(levels) * unit - found.codebook).abs().max()
    assert float(error) <= unit / 2 + 1e-6


def replaced(weight: QuantTensor, name: str, part: Tensor) -> QuantTensor:
    return QuantTensor(weight.format, weight.layout, weight.shape, {**weight.parts, name: part})


def misaligned(tensor: Tensor) -> Tensor:
    raw = torch.zeros(tensor.nbytes + 1, dtype=torch.uint8).numpy()
    return torch.frombuffer(raw, dtype=tensor.dtype, offset=1, count=tensor.numel()).view(
        tensor.shape
    )


def cut_short(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(tensor.nbytes - 16)
    return tensor


NF4, INT8 = weight_of("nf4", (32, 128)), weight_of("int8", (32, 128))
BAD_WEIGHTS = {
    "codes of another shape": (replaced(NF4, "codes", NF4.parts["codes"][:1]), "codes must be"),
    "codes of another dtype": (
        replaced(NF4, "codes", NF4.parts["codes"].view(torch.float32)),
        "codes must be",
    ),
    "scales in float32": (
        replaced(NF4, "absmax", NF4.parts["absmax"].float()),
        "absmax must be torch.float16",
    ),
    "codes that lie apart": (
        replaced(INT8, "codes", torch.zeros(32, 256, dtype=torch.int8)[:, ::2]),
        "must be contiguous",
    ),
    "misaligned codes": (replaced(NF4, "codes", misaligned(NF4.parts["codes"])), "multiple of 4"),
    "misaligned scales": (
        replaced(NF4, "absmax", misaligned(NF4.parts["absmax"])),
        "multiple of 2",
    ),
    "a short buffer": (replaced(INT8, "codes", cut_short(INT8.parts["codes"])), "needs 4096 bytes"),
    "a missing part": (
        QuantTensor("nf4", "x16", (32, 128), {"codes": NF4.parts["codes"]}),
        "no part absmax",
    ),
    "another layout": (
        QuantTensor("nf4", "bnb-rows", (32, 128), NF4.parts),
        "in layout x16, got bnb-rows",
    ),
    "another format": (weight_of("bf16", (32, 128)), "do not serve bf16"),
    "a shape that the format cannot hold": (
        QuantTensor("nf4", "x16", (32, 100), NF4.parts),
        "not a multiple of block_size",
    ),
}


@needs_library
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case):
    weight, message = BAD_WEIGHTS[case]
    with pytest.raises(QuantError, match=message):
        NativeBackend().matmul(normal(8, 1, weight.shape[1]), weight)
    rows, cols = weight.shape
    expert = ExpertWeights(weight_of("int8", (2 * cols, rows)), weight)
    with pytest.raises(QuantError, match=message):
        NativeBackend().routed_experts(
            normal(8, 1, rows), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), [expert]
        )


@needs_library
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (normal(9, 2, 127), r"must be \[num_tokens, 128\], got \[2, 127\]"),
        (normal(9, 128), "must be"),
        (normal(9, 2, 128).double(), "float32 or bfloat16"),
        (torch.full((2, 128), float("nan")), "NaN or infinite"),
        (torch.full((2, 128), float("inf")).bfloat16(), "NaN or infinite"),
    ],
)
def test_bad_activations_are_refused(x, message):
    with pytest.raises(QuantError, match=message):
        NativeBackend().matmul(x, NF4)


@needs_library
@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        (torch.tensor([[0, 4]]), torch.ones(1, 2), "has 4, and there are 4 experts"),
        (torch.tensor([[0, -1]]), torch.ones(1, 2), "has -1"),
        (torch.tensor([[0, 1]]), torch.ones(1, 3), "must both be"),
        (torch.tensor([[0], [1]]), torch.ones(2, 1), "must both be"),
        (torch.tensor([[0]], dtype=torch.int32), torch.ones(1, 1), "int64"),
        (torch.tensor([[0]]), torch.ones(1, 1).double(), "float32"),
    ],
)
def test_bad_routing_is_refused(ids, weights, message):
    experts = [expert_of("nf4", 128, 64, seed) for seed in range(4)]
    with pytest.raises(QuantError, match=message):
        NativeBackend().routed_experts(normal(10, 1, 128), ids, weights, experts)


@needs_library
def test_experts_that_do_not_fit_together_are_refused():
    expert = expert_of("nf4", 128, 64, 0)
    wide = ExpertWeights(weight_of("nf4", (256, 128)), expert.down)
    one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    with pytest.raises(QuantError, match="needs gate_up"):
        NativeBackend().routed_experts(normal(11, 1, 128), *one, [wide])
    with pytest.raises(QuantError, match="layer of no experts"):
        NativeBackend().routed_experts(normal(11, 1, 128), *one, [])
    mixed = [expert, expert_of("int8", 128, 64, 1)]
    both = torch.tensor([[0, 1]]), torch.ones(1, 2)
    with pytest.raises(QuantError, match="mixes int8 and 4-bit"):
        NativeBackend().routed_experts(normal(11, 1, 128), *both, mixed)


@needs_library
def test_a_code_that_the_format_does_not_have_is_refused_when_a_copy_is_made():
    codes = INT8.parts["codes"].clone()
    codes[3, 5] = -128
    with pytest.raises(QuantError, match="-128"):
        NativeBackend().prepare(replaced(INT8, "codes", codes))
    assert NativeBackend().prepare(INT8) is INT8


@needs_library
def test_a_weight_that_is_gone_leaves_nothing_behind():
    backend = NativeBackend()
    for seed in range(3):
        backend.matmul(normal(12, 1, 128), weight_of("nf4", (32, 128), seed))
    assert not backend._views._matrices


@needs_library
def test_unknown_instruction_sets_and_thread_counts_are_refused():
    with pytest.raises(QuantError, match='no instruction set "avx10" here; there are auto'):
        NativeBackend("avx10").matmul(normal(13, 1, 128), NF4)
    with pytest.raises(QuantError, match="at least 1, got 0"):
        set_num_threads(0)


def test_why_not_names_the_device_the_format_or_the_missing_compiler(monkeypatch, tmp_path):
    assert "run on the CPU" in NativeBackend().why_not("nf4", torch.device("cuda"))
    assert "do not serve bf16 weights" in NativeBackend().why_not("bf16", CPU)
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "none.so")
    library.find_library.cache_clear()
    assert "install a C++17 compiler" in NativeBackend().why_not("nf4", CPU)
    with pytest.raises(QuantError, match=r"install a C\+\+17 compiler"):
        NativeBackend().matmul(normal(14, 1, 128), NF4)
    (tmp_path / "none.so").write_text("not a library")
    library.find_library.cache_clear()
    assert "cannot be loaded" in NativeBackend().why_not("nf4", CPU)
    monkeypatch.undo()
    library.find_library.cache_clear()


def test_a_build_without_a_compiler_says_which_it_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"looked for \$CXX, c\+\+, g\+\+, clang\+\+"):
        build.compile_library(tmp_path / "library.so")
    monkeypatch.setenv("CXX", "/does/not/exist")
    with pytest.raises(build.BuildError, match="cannot run /does/not/exist"):
        build.compile_library(tmp_path / "library.so")


def test_cores_are_counted_once_each_and_within_the_quota(tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert threads.physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert threads.physical_cores({0, 2}, tmp_path) == 1
    assert threads.physical_cores({8, 9}, tmp_path) == 2  # the system does not tell
    assert default_num_threads() >= 1


def quota(folder: Path) -> float:
    return threads.quota_cores(folder, folder)


def test_the_least_quota_of_all_groups_around_a_process_counts(tmp_path):
    (tmp_path / "cgroup").write_text("0::/work.slice/chat.service\n")
    service = tmp_path / "work.slice" / "chat.service"
    service.mkdir(parents=True)
    assert quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("150000 100000\n")  # all that a container sees
    assert quota(tmp_path) == 1.5
    (service / "cpu.max").write_text("max 100000\n")
    (service.parent / "cpu.max").write_text("50000 100000\n")
    assert quota(tmp_path) == 0.5
    (service.parent / "cpu.max").write_text("600000 100000\n")
    assert quota(tmp_path) == 1.5


def test_quota_of_the_older_cgroups(tmp_path):
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert quota(tmp_path) == 4.0
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert quota(tmp_path) == float("inf")


def assert_same(actual: QuantTensor, expected: QuantTensor) -> None:
    assert (actual.format, actual.layout, actual.shape) == (
        expected.format,
        expected.layout,
        expected.shape,
    )
    for name, part in expected.parts.items():
        assert torch.equal(actual.parts[name], part)


@needs_library
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", [NF4_FORMAT, FP4_FORMAT], ids=lambda f: f.name)
@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 5),
    blocks=st.integers(1, 4),
    exponent=st.integers(-40, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_native_codes_and_scales_are_those_of_the_format(
    path, weight_format, groups, blocks, exponent, dtype, seed
):
    weight = normal(seed, 16 * groups, 64 * blocks) * 10.0**exponent
    weight[3] = 0
    weight[5, :16] = weight[5].abs().max() * weight_format.codebook  # exactly on the values
    weight = weight.to(dtype)
    poison_memory()
    assert_same(quantize_codebook(weight, weight_format, path=path), weight_format.quantize(weight))


@needs_library
@pytest.mark.parametrize("weight_format", [NF4_FORMAT, FP4_FORMAT], ids=lambda f: f.name)
def test_a_weight_halfway_between_two_values_takes_the_lower(weight_format):
    values = weight_format.codebook.sort().values
    weight = torch.zeros(16, 64)
    weight[:, :15] = (values[:-1] + values[1:]) / 2
    weight[:, 63] = 1.0
    assert_same(quantize_codebook(weight, weight_format), weight_format.quantize(weight))


@needs_library
def test_weights_that_cannot_be_quantized_are_refused():
    for value in (float("nan"), float("inf")):
        damaged = normal(15, 16, 64)
        damaged[2, 7] = value
        with pytest.raises(QuantError, match="NaN or infinite"):
            quantize_codebook(damaged, NF4_FORMAT)
    with pytest.raises(QuantError, match="does not fit float16"):
        quantize_codebook(torch.full((16, 64), 1e5), NF4_FORMAT)
    with pytest.raises(QuantError, match="not a multiple of block_size"):
        quantize_codebook(normal(15, 16, 60), NF4_FORMAT)
    with pytest.raises(QuantError, match="takes bfloat16 or float32"):
        quantize_codebook(normal(15, 16, 64).double(), NF4_FORMAT)
    with pytest.raises(QuantError, match='no instruction set "sse"'):
        quantize_codebook(normal(15, 16, 64), NF4_FORMAT, path="sse")
