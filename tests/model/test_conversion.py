"""Conversion: what it delivers, in which order, and how much memory it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from erniechat.model.checkpoint import Checkpoint
from erniechat.model.delivery import convert
from erniechat.model.families import family_of
from erniechat.model.readings import plan_readings
from quant.copy import MemoryWeights, QuantizedCopy
from quant.formats import FORMATS
from quant.tensor import QuantTensor
from tests.model.checkpoints import (
    DENSE,
    MOE,
    SPELLINGS,
    formats_of,
    hub_tensors,
    load,
    prefill_logits,
    reference_model,
    write_folder,
)

QUANTIZED = ("nf4", "fp4", "int8")


def dense_of(weight: QuantTensor | Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    return FORMATS[weight.format].dequantize(weight, torch.float32)


@pytest.mark.parametrize("format_name", QUANTIZED)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_spellings_give_the_same_quantized_weights(tmp_path, spelling, format_name):
    model = reference_model(MOE)
    expected = load(SPELLINGS["hub"](tmp_path / "hub", MOE, model), format_name=format_name)
    got = load(SPELLINGS[spelling](tmp_path / "other", MOE, model), format_name=format_name)
    assert set(got.weights) == set(expected.weights)
    for name, weight in expected.weights.items():
        assert torch.equal(dense_of(got.weights[name]), dense_of(weight)), name


@pytest.mark.parametrize("format_name", QUANTIZED)
def test_every_matrix_is_quantized_from_its_own_rows(tmp_path, format_name):
    model = reference_model(MOE)
    weights = load(SPELLINGS["hub"](tmp_path, MOE, model), format_name=format_name).weights
    saved = hub_tensors(model)
    quantize = FORMATS[format_name].quantize

    def joined(*names: str) -> Tensor:
        return torch.cat([dense_of(quantize(saved[name])) for name in names])

    at = "model.layers.1.self_attn."
    expected = joined(*(f"{at}{letter}_proj.weight" for letter in "qkv"))
    assert torch.equal(dense_of(weights["layers.1.qkv"]), expected)
    at = "model.layers.2.mlp.experts.5."
    expected = joined(at + "gate_proj.weight", at + "up_proj.weight")
    assert torch.equal(dense_of(weights["layers.2.experts.5.gate_up"]), expected)
    expected = joined(at + "down_proj.weight")
    assert torch.equal(dense_of(weights["layers.2.experts.5.down"]), expected)
    embedding = weights["embed_tokens"]
    assert isinstance(embedding, QuantTensor)
    assert embedding.format == "int8"
    assert weights["layers.1.router"].dtype == torch.float32


def test_the_router_is_float32_however_it_is_stored(tmp_path):
    saved = {name: t.bfloat16() for name, t in hub_tensors(reference_model(MOE)).items()}
    loaded = load(write_folder(tmp_path, MOE, saved), torch.bfloat16, format_name="nf4")
    for weights in (loaded.weights, loaded.decoder.weights.tensors):
        for name in ("layers.1.router", "layers.1.correction_bias"):
            assert weights[name].dtype == torch.float32, name
    stored = saved["model.layers.1.mlp.gate.weight"].float()
    assert torch.equal(loaded.decoder.weights.tensors["layers.1.router"], stored)
    prefill_logits(loaded.decoder, [1, 2, 3])


def test_rows_quantized_in_several_ranges_are_those_of_one(tmp_path, monkeypatch):
    folder = SPELLINGS["fused"](tmp_path, MOE, reference_model(MOE))
    whole = load(folder, format_name="nf4").weights
    monkeypatch.setattr("erniechat.model.conversion.MAX_CHUNK_NUMEL", 1)  # 64 rows at a time
    in_ranges = load(folder, format_name="nf4").weights
    for name, weight in whole.items():
        assert torch.equal(dense_of(in_ranges[name]), dense_of(weight)), name


class Log(dict[str, object]):
    """A sink that keeps the order."""


def test_the_matrices_of_an_expert_come_one_after_the_other(tmp_path):
    folder = SPELLINGS["scattered"](tmp_path, MOE, reference_model(MOE))
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.config)
    readings = plan_readings(checkpoint, family, family.parse_config(checkpoint.config))
    sink, seen = Log(), []
    convert(readings, formats_of("nf4"), sink, lambda done, total: seen.append((done, total)))
    routed = [name for name in sink if ".experts." in name]
    assert len(routed) == 2 * 8 * 2
    for first, second in zip(routed[::2], routed[1::2], strict=True):
        assert first.endswith(".gate_up")
        assert second == first.removesuffix("gate_up") + "down"
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert {total for _, total in seen} == {seen[-1][1]}
    stored = sum(t.nbytes for t in checkpoint if "mtp" not in t.name)
    assert seen[-1][1] == stored


def test_tensors_of_multi_token_prediction_are_left_in_the_file(tmp_path):
    folder = SPELLINGS["hub"](tmp_path, MOE, reference_model(MOE))
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.config)
    assert any("mtp" in tensor.name for tensor in checkpoint)
    readings = plan_readings(checkpoint, family, family.parse_config(checkpoint.config))
    assert not any("mtp" in reading.stored.name for reading in readings)


@pytest.mark.parametrize("format_name", QUANTIZED)
def test_a_quantized_model_is_near_the_exact_one(tmp_path, format_name):
    """A mix-up of rows or halves would leave no likeness at all."""
    folder = SPELLINGS["hub"](tmp_path, DENSE, reference_model(DENSE))
    ids = list(range(40))
    exact = prefill_logits(load(folder).decoder, ids).flatten()
    quantized = prefill_logits(load(folder, format_name=format_name).decoder, ids).flatten()
    likeness = float(torch.nn.functional.cosine_similarity(exact, quantized, dim=0))
    assert likeness > {"int8": 0.999, "nf4": 0.9, "fp4": 0.8}[format_name]


# Memory: a model of 240 MB in bf16, of which the embedding is the largest tensor with 67 MB.
LARGE = {
    **MOE,
    "vocab_size": 65536,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "moe_intermediate_size": 512,
    "moe_num_experts": 32,
}
ALLOWANCE = 500 << 20  # of the issue, beside the finished weights and the largest tensor
CONVERT = """
import re, sys, torch
from pathlib import Path
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.conversion import Formats
from erniechat.model.readings import plan_readings
from erniechat.model.delivery import convert
from erniechat.model.families import family_of
from quant.copy import MemoryWeights
from quant.copy_writer import CopyWriter
from quant.formats import FORMATS
from quant.kernels import BACKENDS

def peak(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

torch.set_num_threads(1)
checkpoint = Checkpoint(Path(sys.argv[1]))
family = family_of(checkpoint.config)
readings = plan_readings(checkpoint, family, family.parse_config(checkpoint.config))
backends = BACKENDS["reference"](), BACKENDS["torch"]()
formats = Formats(FORMATS["nf4"], FORMATS["int8"], *backends)
before = peak("VmRSS")
if sys.argv[2] == "memory":
    weights = MemoryWeights()
    convert(readings, formats, weights)
    finished = weights.nbytes
else:
    with CopyWriter(Path(sys.argv[2]), {}) as writer:
        convert(readings, formats, writer)
        writer.finish()
    finished = 0
print(before, peak("VmHWM"), finished)
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory) -> Path:
    family = family_of(LARGE)
    shapes = {name: s.shape for name, s in family.tensors(family.parse_config(LARGE)).items()}
    del shapes["lm_head.weight"]
    row = torch.randn(65536 * 512).bfloat16()
    tensors = {name: row[: torch.Size(s).numel()].view(s).clone() for name, s in shapes.items()}
    return write_folder(tmp_path_factory.mktemp("large"), LARGE, tensors, num_shards=2)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
@pytest.mark.parametrize("sink", ["memory", "copy"])
def test_conversion_holds_the_finished_weights_and_one_tensor(large_folder, tmp_path, sink):
    target = "memory" if sink == "memory" else str(tmp_path / "copy")
    command = [sys.executable, "-c", CONVERT, str(large_folder), target]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    before, peak, finished = map(int, done.stdout.split())
    largest = max(tensor.nbytes for tensor in Checkpoint(large_folder))
    checkpoint_nbytes = sum(tensor.nbytes for tensor in Checkpoint(large_folder))
    assert largest == 65536 * 512 * 2
    assert peak - before <= finished + largest + ALLOWANCE
    # What is below the size of the checkpoint cannot have held it whole.
    assert peak - before - finished < checkpoint_nbytes
    if sink == "copy":
        assert QuantizedCopy(tmp_path / "copy").nbytes < 0.4 * checkpoint_nbytes
    else:
        assert finished < 0.4 * checkpoint_nbytes


def test_memory_weights_count_their_bytes():
    weights = MemoryWeights(a=torch.zeros(3), b=torch.zeros(2, dtype=torch.bfloat16))
    assert weights.nbytes == 16
