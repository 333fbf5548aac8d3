"""A GGUF file as a checkpoint: weights, config and text side are its folder's."""

import os
import sys
from pathlib import Path

import pytest
import torch

from erniechat.cli import main
from erniechat.errors import CheckpointError, ModelError, UnsupportedModelError, UsageError
from erniechat.export import export
from erniechat.loader import load_engine, load_prompt_tools
from erniechat.mini import checkpoint_folder
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.delivery import convert
from erniechat.model.families import family_of
from erniechat.model.gguf_checkpoint import GgufCheckpoint, loss_of
from erniechat.model.readings import plan_readings
from erniechat.options import LoadOptions
from quant.copy import MemoryWeights
from quant.tensor import QuantTensor
from tests.model import gguf_files as files
from tests.model.checkpoints import DENSE, MOE, formats_of, hub_tensors, reference_model
from tests.model.checkpoints import write_folder as write_hub_folder
from tests.model.gguf_files import write_gguf

SHAPES = {
    "dense": DENSE,
    "moe": MOE,
    "untied": {**MOE, "tie_word_embeddings": False},
    "no shared experts": {**MOE, "moe_num_shared_experts": 0},
    "two dense layers": {**MOE, "num_hidden_layers": 4, "moe_layer_start_index": 2},
    "every second layer": {**MOE, "num_hidden_layers": 4, "moe_layer_interval": 2},
    "other numbers": {**MOE, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "moe_k": 2},
}


def hub_folder(path, raw):
    return write_hub_folder(path, raw, hub_tensors(reference_model(raw)))


def finished(checkpoint, format_name):
    config = family_of(checkpoint.config).parse_config(checkpoint.config)
    weights = MemoryWeights()
    formats = formats_of(format_name)
    convert(plan_readings(checkpoint, family_of(checkpoint.config), config), formats, weights)
    return config, weights


def assert_same_weights(ours, theirs):
    assert set(ours) == set(theirs)
    for name in theirs:
        mine, other = ours[name], theirs[name]
        if isinstance(other, QuantTensor):
            assert isinstance(mine, QuantTensor)
            assert mine.shape == other.shape
            assert all(torch.equal(mine.parts[part], other.parts[part]) for part in other.parts)
        else:
            assert torch.equal(mine.float(), other.float()), name


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_gives_the_weights_and_the_config_of_its_folder(shape, tmp_path):
    folder = hub_folder(tmp_path / "hub", SHAPES[shape])
    config, weights = finished(Checkpoint(folder), "nf4")
    found = finished(GgufCheckpoint(write_gguf(tmp_path / "a.gguf", folder, "BF16")), "nf4")
    assert found[0].rms_norm_eps == pytest.approx(config.rms_norm_eps)  # float32 in the file
    for name in (set(config.__slots__)) - {"rms_norm_eps"}:
        assert getattr(found[0], name) == getattr(config, name), name
    assert_same_weights(found[1], weights)


def test_queries_keys_and_values_in_one_matrix_are_taken_apart(tmp_path):
    folder = hub_folder(tmp_path / "hub", MOE)
    path = write_gguf(tmp_path / "a.gguf", folder, "BF16", fused=True)
    assert_same_weights(
        finished(GgufCheckpoint(path), "bf16")[1], finished(Checkpoint(folder), "bf16")[1]
    )


def test_a_quantized_expert_is_what_its_blocks_mean(tmp_path):
    """Blocks of Q8_0: codes of 1/127 of the largest weight of 32."""
    folder = hub_folder(tmp_path / "hub", MOE)
    path = write_gguf(tmp_path / "a.gguf", folder, "Q8_0")
    name = "model.layers.2.mlp.experts.5.down_proj.weight"
    exact = next(t for t in Checkpoint(folder) if t.name == name).read().float()
    stored = next(t for t in GgufCheckpoint(path) if t.name == name)
    step = exact.reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    error = (stored.read() - exact).reshape(-1, 32).abs()
    assert stored.shape == exact.shape
    assert stored.nbytes == exact.numel() // 32 * 34
    assert bool((error <= step * 0.57).all())  # half a step, and the scale is a float16
    assert torch.equal(stored.read((slice(16, 48),)), stored.read()[16:48])


def test_a_part_is_looked_for_beside_the_first(tmp_path):
    path = split(tmp_path, hub_folder(tmp_path / "hub", DENSE))
    whole = write_gguf(tmp_path / "whole.gguf", tmp_path / "hub", "BF16")
    checkpoint = GgufCheckpoint(path)
    assert [shard.name for shard in checkpoint.shards] == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    assert_same_weights(finished(checkpoint, "bf16")[1], finished(GgufCheckpoint(whole), "bf16")[1])
    with pytest.raises(CheckpointError, match=r"not the first.*name m-00001-of-00002\.gguf"):
        GgufCheckpoint(checkpoint.shards[1])
    checkpoint.shards[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 parts are missing: m-00002-of-00002\.gguf"):
        GgufCheckpoint(path)


def test_a_tensor_in_two_parts_is_refused(tmp_path):
    path = split(tmp_path, hub_folder(tmp_path / "hub", DENSE), step=1)
    with pytest.raises(CheckpointError, match="a tensor is in two parts"):
        GgufCheckpoint(path)


def split(tmp_path: Path, folder: Path, step: int = 2) -> Path:
    """A checkpoint as two files, the tensors taken in turns; with a step of one, most in both."""
    checkpoint = Checkpoint(folder)
    tensors = list(files.gguf_tensors(checkpoint).items())
    for part in range(2):
        path = tmp_path / f"m-{part + 1:05}-of-00002.gguf"
        writer = files.gguf.GGUFWriter(str(path), "ernie4_5")
        if part == 0:
            files.add_hyperparameters(writer, checkpoint.config)
            files.add_plain_tokenizer(writer, checkpoint.config["vocab_size"])
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        for name, data in tensors[part::step]:
            files.add_tensor(writer, name, data, "BF16")
        files.finish(writer)
    return tmp_path / "m-00001-of-00002.gguf"


REFUSED = [
    ({"general__architecture": "qwen3"}, UnsupportedModelError, 'architecture "qwen3" is not supp'),
    ({"rope__freq_base": None}, CheckpointError, "ernie4_5-moe.rope.freq_base is missing"),
    (
        {"rope__freq_base": float("nan")},
        CheckpointError,
        "a.gguf: rope_theta must be a number abov",
    ),
    (
        {"block_count": 0},
        CheckpointError,
        "a.gguf: num_hidden_layers must be a whole number from 1",
    ),
    ({"block_count": 4}, CheckpointError, "tensors are missing"),
    ({"expert_count": 4}, CheckpointError, "holds 8 experts, the metadata says 4"),
    ({"expert_used_count": 9}, CheckpointError, "moe_k 9 is more than the 8 experts"),
    ({"embedding_length": 32}, CheckpointError, "has shape"),
    ({"attention__value_length": 32}, UnsupportedModelError, "value_length 32 is not supported"),
    (
        {"rope__dimension_count": 8},
        UnsupportedModelError,
        "rope.dimension_count 8 is not supported",
    ),
    (
        {"rope__scaling__type": "yarn"},
        UnsupportedModelError,
        'scaling.type "yarn" is not supported',
    ),
    ({"expert_gating_func": 2}, UnsupportedModelError, "expert_gating_func 2 is not supported"),
    ({"split__count": 3}, CheckpointError, "a.gguf is one of 3 parts and is not named so"),
    ({"tokenizer__ggml__model": "bert"}, UnsupportedModelError, 'model "bert" is not supported'),
    ({"tokenizer__ggml__eos_token_id": 9999}, CheckpointError, "eos_token_id is 9999 of 208"),
    ({"tokenizer__ggml__scores": [0.0]}, CheckpointError, "208 tokens have 1 scores"),
    ({"tokenizer__ggml__tokens": ["a"] * 208}, CheckpointError, "two tokens have one text"),
    ({"tokenizer__chat_template": 7}, CheckpointError, "a chat template is not text"),
]


@pytest.fixture(scope="module")
def moe_folder(tmp_path_factory):
    return hub_folder(tmp_path_factory.mktemp("moe"), MOE)


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_metadata_that_does_not_fit_is_one_line(changes, kind, message, moe_folder, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", moe_folder, **changes)
    with pytest.raises(ModelError) as caught:
        load_engine(LoadOptions(model=str(path), copy=False))
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_experts_of_a_layer_that_is_not_there_are_one_unexpected_tensor(moe_folder, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", moe_folder, block_count=2)
    with pytest.raises(CheckpointError, match=r"tensors are not part of this model: .*blk\.2\."):
        load_engine(LoadOptions(model=str(path), copy=False))
    names = [tensor.name for tensor in GgufCheckpoint(path)]
    assert names.count("blk.2.ffn_gate_exps.weight") == 1


def test_a_missing_correction_bias_is_not_made_up(tmp_path):
    tensors = hub_tensors(reference_model(MOE))
    del tensors["model.layers.1.mlp.moe_statics.e_score_correction_bias"]
    path = write_gguf(tmp_path / "a.gguf", write_hub_folder(tmp_path / "hub", MOE, tensors))
    with pytest.raises(CheckpointError, match=r"1 tensor is missing: model\.layers\.1.*correction"):
        load_engine(LoadOptions(model=str(path), copy=False))


@pytest.fixture(scope="module")
def mini_q4(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("q4") / "mini-Q4_0.gguf", checkpoint_folder(), "Q4_0")


def test_the_loss_of_packing_twice_is_told_once(mini_q4, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    for _ in range(2):
        load_engine(LoadOptions(model=str(mini_q4)), warn=told.append).close()
    assert len(told) == 1
    assert told[0].startswith("mini-Q4_0.gguf is quantized already (Q4_0); packing it again as nf4")


def test_nothing_is_lost_by_bf16_or_from_floats(mini_q4, moe_folder, tmp_path):
    floats = GgufCheckpoint(write_gguf(tmp_path / "a.gguf", moe_folder, "F16"))
    assert loss_of(GgufCheckpoint(mini_q4), "bf16") == ""
    assert loss_of(floats, "nf4") == ""


def test_text_and_sampling_come_out_of_the_file(tmp_path):
    path = write_gguf(
        tmp_path / "a.gguf", checkpoint_folder(), "Q4_0", general__sampling__temp=0.25
    )
    engine = load_engine(LoadOptions(model=str(path), copy=False))
    original = load_prompt_tools(LoadOptions())
    text = "What is 17 + 25? 世界 <think>"
    assert engine.info.thinking == original.template.thinking
    assert engine.info.defaults.temperature == 0.25
    assert engine.count_tokens(text) == original.count_tokens(text)
    tools = load_prompt_tools(LoadOptions(model=str(path)))
    assert tools.tokenizer.encode(text) == original.tokenizer.encode(text)
    assert tools.template.supports_tools


def test_sampling_values_that_break_a_rule_name_the_file(tmp_path):
    path = write_gguf(
        tmp_path / "a.gguf", checkpoint_folder(), "Q4_0", general__sampling__temp=-1.0
    )
    with pytest.raises(CheckpointError, match=r"a\.gguf: .*temperature.*fetch the file again"):
        load_engine(LoadOptions(model=str(path), copy=False))


def test_the_command_answers_from_a_file(mini_q4, tmp_path, monkeypatch, capfd):
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    short = tmp_path / "short.gguf"
    short.write_bytes(mini_q4.read_bytes()[:100_000])
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["--model", str(mini_q4), "-p", "What is 17 + 25?"]) == 0
        answer, notes = capfd.readouterr()
        assert main(["--model", str(short), "-p", "hi"]) == 3
        _, error = capfd.readouterr()
    assert answer == "17 + 25 = 42\n"
    assert "packing it again as nf4 loses a little more" in notes
    assert error.count("\n") == 1
    assert "short.gguf is not a sound GGUF file" in error
    assert "ends after the file; fetch the file again" in error.replace(")", "")


def test_a_file_is_not_exported(mini_q4, tmp_path):
    with pytest.raises(UsageError, match="export takes a folder or a model on the hub, got the fi"):
        export(LoadOptions(model=str(mini_q4)), str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(mini_q4, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"needs the gguf package.*'erniechat\[gguf\]'"):
        load_engine(LoadOptions(model=str(mini_q4)))


def test_another_file_is_not_taken_for_one(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"must be a folder, a \.gguf file or owner/name"):
        load_engine(LoadOptions(model=str(path)))
