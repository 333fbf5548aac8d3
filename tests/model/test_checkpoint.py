"""Checkpoints on disk: what is read from them, and what is refused with which words."""

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erniechat.errors import CheckpointError, ModelError, UnsupportedModelError, UsageError
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.folder import read_json
from erniechat.model.stored import StoredTensor
from tests.model.checkpoints import (
    DENSE,
    MOE,
    hub_tensors,
    load,
    plain_tensors,
    prefill_logits,
    reference_model,
    write_folder,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.0.down_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.moe_statics.e_score_correction_bias"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return hub_tensors(reference_model(MOE))


@pytest.fixture(scope="module")
def fused() -> dict[str, Tensor]:
    return plain_tensors(reference_model(MOE))


def refusal(
    folder: Path, error: type[ModelError] = CheckpointError, format_name: str = "bf16"
) -> str:
    """The text with which a folder is refused: exactly this class, one line, with a way out."""
    with pytest.raises(ModelError) as caught:
        load(folder, format_name=format_name)
    assert type(caught.value) is error
    assert caught.value.hint
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return str(caught.value)


# What tensors there are.


def test_a_missing_tensor_is_listed(tmp_path, tensors):
    del (tensors := dict(tensors))[EXPERT]
    assert f"1 tensor is missing: {EXPERT};" in refusal(write_folder(tmp_path, MOE, tensors))


def test_many_missing_tensors_are_counted_and_the_first_listed(tmp_path, tensors):
    kept = {name: t for name, t in tensors.items() if ".experts." not in name}
    text = refusal(write_folder(tmp_path, MOE, kept))
    assert "48 tensors are missing: model.layers.1.mlp.experts.0.gate_proj.weight, " in text
    assert " and 43 more;" in text


def test_an_unexpected_tensor_is_listed(tmp_path, tensors):
    extra = {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}
    text = refusal(write_folder(tmp_path, MOE, {**tensors, **extra}))
    assert "1 tensor is not part of this model: model.layers.0.self_attn.q_norm.weight;" in text


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.9.mlp.experts.gate_up_proj",  # a layer that is not there
        "model.layers.0.mlp.experts.down_proj",  # a dense layer
        "model.layers.0.mlp.gate.moe_statics.e_score_correction_bias",
        "model.layers.01.mlp.experts.down_proj",
        "model.layers.1.mlp.experts.8.gate_proj.weight",
    ],
)
def test_known_names_in_places_where_they_do_not_belong_are_unexpected(tmp_path, tensors, name):
    text = refusal(write_folder(tmp_path, MOE, {**tensors, name: torch.ones(8, 64, 64)}))
    assert f"is not part of this model: {name};" in text


def test_escapes_in_a_name_do_not_reach_the_terminal(tmp_path, tensors):
    text = refusal(write_folder(tmp_path, MOE, {**tensors, "a\x1b[2Jb\nc": torch.ones(1)}))
    assert r"a\x1b[2Jb\nc" in text


def test_biases_are_unexpected_where_the_config_has_none_and_missing_where_it_has(tmp_path):
    with_bias = hub_tensors(reference_model({**DENSE, "use_bias": True}))
    text = refusal(write_folder(tmp_path / "a", DENSE, with_bias))
    assert re.search(
        r"14 tensors are not part of this model: model\.layers\.0\.[a-z_.]+\.bias,", text
    )
    without = hub_tensors(reference_model(DENSE))
    text = refusal(write_folder(tmp_path / "b", {**DENSE, "use_bias": True}, without))
    assert "14 tensors are missing: model.layers.0.self_attn.q_proj.bias" in text


def test_a_tensor_in_two_spellings_is_refused(tmp_path, tensors, fused):
    name = "model.layers.1.mlp.experts.down_proj"
    text = refusal(write_folder(tmp_path, MOE, {**tensors, name: fused[name]}))
    assert f"8 tensors are stored twice: {EXPERT}" in text


def test_a_tensor_in_two_files_is_refused(tmp_path, tensors):
    write_folder(tmp_path, MOE, tensors, num_shards=2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    first_name = next(iter(tensors))
    save_file({**load_file(second), first_name: tensors[first_name]}, second)
    text = refusal(tmp_path)
    files = "model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors"
    assert f'"{first_name}" is in {files};' in text


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.norm.weight", (63,), "has shape 63, config.json says 64"),
        ("model.norm.weight", (1, 64), "has shape 1 × 64, config.json says 64"),
        ("model.norm.weight", (), "has shape none, config.json says 64"),
        ("model.embed_tokens.weight", (64, 208), "has shape 64 × 208, config.json says 208 × 64"),
        (EXPERT, (64, 32), "has shape 64 × 32, config.json says 64 × 64"),
        (ROUTER, (7, 64), "has shape 7 × 64, config.json says 8 × 64"),
        (BIAS, (3, 8), "has shape 3 × 8, config.json says 8"),
        (BIAS, (1, 1, 8), "has shape 1 × 1 × 8, config.json says 8"),
        (BIAS, (1, 7), "has shape 1 × 7, config.json says 8"),
    ],
)
def test_a_wrong_shape_is_said_with_both_shapes(tmp_path, tensors, name, shape, said):
    text = refusal(write_folder(tmp_path, MOE, {**tensors, name: torch.ones(shape)}))
    assert f"{name} {said};" in text


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [
        ("gate_up_proj", (9, 128, 64)),  # an expert too many
        ("gate_up_proj", (8, 192, 64)),  # rows behind gate and up
        ("gate_up_proj", (8, 64, 64)),
        ("gate_up_proj", (128, 64)),
        ("down_proj", (7, 64, 64)),
        ("down_proj", (8, 64, 65)),
    ],
)
def test_fused_experts_of_a_wrong_shape_are_refused(tmp_path, fused, matrix, shape):
    name = f"model.layers.1.mlp.experts.{matrix}"
    text = refusal(write_folder(tmp_path, MOE, {**fused, name: torch.ones(shape)}))
    wanted = {"gate_up_proj": "8 × 128 × 64", "down_proj": "8 × 64 × 64"}[matrix]
    assert f"{name} has shape {' × '.join(map(str, shape))}, config.json says {wanted};" in text


# What is in them.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format_name", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.input_layernorm.weight",
        EXPERT,
        ROUTER,
        BIAS,
    ],
)
def test_a_value_that_is_not_finite_is_refused(tmp_path, tensors, name, format_name, value):
    damaged = tensors[name].clone()
    damaged.view(-1)[-1] = value
    text = refusal(write_folder(tmp_path, MOE, {**tensors, name: damaged}), format_name=format_name)
    assert text.startswith(f"{name}")
    assert "NaN or infinite" in text


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_without_scales_are_not_taken_for_weights(tmp_path, tensors, dtype):
    wrong = {**tensors, EXPERT: torch.ones(64, 64, dtype=dtype)}
    text = refusal(write_folder(tmp_path, MOE, wrong), UnsupportedModelError)
    assert f"{EXPERT} is stored as {str(dtype).removeprefix('torch.')} without the scales" in text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_every_float_dtype_of_a_weight_gives_the_same_model(tmp_path, tensors, dtype):
    kept = (ROUTER, ROUTER.replace(".1.", ".2."), BIAS, BIAS.replace(".1.", ".2."))
    other = {name: t if name in kept else t.to(dtype) for name, t in tensors.items()}
    decoders = [
        load(write_folder(tmp_path / str(i), MOE, saved)).decoder
        for i, saved in enumerate((tensors, other))
    ]
    first, second = (prefill_logits(decoder, list(range(30))) for decoder in decoders)
    step = 2e-3 if dtype == torch.float16 else 0.0  # it is coarse below 6e-5
    assert torch.allclose(first, second, rtol=0, atol=step)


def test_router_and_bias_are_float32_even_where_they_were_saved_in_bf16(tmp_path, tensors):
    cast = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    weights = load(write_folder(tmp_path, MOE, cast), torch.bfloat16).weights
    for name in ("layers.1.router", "layers.1.correction_bias"):
        assert weights[name].dtype == torch.float32
    assert torch.equal(weights["layers.1.router"], tensors[ROUTER].bfloat16().float())


def test_float32_of_the_router_is_kept_to_the_last_bit(tmp_path, tensors):
    weights = load(write_folder(tmp_path, MOE, tensors), torch.bfloat16).weights
    assert torch.equal(weights["layers.1.router"], tensors[ROUTER])
    assert torch.equal(weights["layers.1.correction_bias"], tensors[BIAS].flatten())


def test_a_width_that_a_format_cannot_hold_names_tensor_value_and_way_out(tmp_path):
    raw = {**DENSE, "hidden_size": 80, "intermediate_size": 128}
    folder = write_folder(tmp_path, raw, hub_tensors(reference_model(raw)))
    load(folder)  # bf16 can
    message = (
        r"model\.layers\.0\.[a-z_.]+\.weight: in_features 80 is not a multiple of "
        r"block_size 64; use int8 or bf16 for this model"
    )
    with pytest.raises(UsageError, match=message):
        load(folder, format_name="nf4")


# Slices.


def stored(folder: Path, name: str) -> StoredTensor:
    found = next(tensor for tensor in Checkpoint(folder) if tensor.name == name)
    assert isinstance(found, StoredTensor)
    return found


@pytest.mark.parametrize(
    "index",
    [
        (),
        (0,),
        (6,),
        (slice(2, 5),),
        (slice(0, 7),),
        (3, slice(1, 4)),
        (6, slice(4, 5)),
        (2, 3),
        (2, 3, slice(1, 2)),
        (2, 3, 2),
        (slice(3, 3),),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_reading_a_part_is_indexing(tmp_path, index, dtype):
    tensor = torch.arange(7 * 5 * 3).view(7, 5, 3).to(dtype)
    write_folder(tmp_path, MOE, {"before": torch.ones(13), "x": tensor, "y": torch.ones(1)})
    part = stored(tmp_path, "x").read(index)
    assert part.dtype == dtype
    assert torch.equal(part, tensor[index])


def test_an_empty_tensor_and_a_scalar_can_be_read(tmp_path):
    write_folder(tmp_path, MOE, {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5)})
    assert stored(tmp_path, "empty").read().shape == (0, 3)
    assert stored(tmp_path, "scalar").read().item() == 2.5


def test_a_file_cut_while_it_is_in_use_is_an_error(tmp_path, tensors):
    write_folder(tmp_path, MOE, tensors)
    last = max(
        (t for t in Checkpoint(tmp_path) if isinstance(t, StoredTensor)), key=lambda t: t.offset
    )
    os.truncate(tmp_path / WEIGHTS, last.offset + last.nbytes - 1)
    with pytest.raises(CheckpointError, match=re.escape(f"{WEIGHTS} ends inside {last.name}; ")):
        last.read()


# Folders and indices.


def test_a_folder_without_config_is_not_a_model(tmp_path):
    assert "has no config.json; name a folder" in refusal(tmp_path)


def test_a_folder_without_weights_is_not_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    assert f"has neither {WEIGHTS} nor {INDEX}; name a folder" in refusal(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    text = refusal(tmp_path, UnsupportedModelError)
    assert "pickled weights, which can run code when opened; use a checkpoint with safe" in text


def test_a_folder_of_paddle_points_to_pt(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    (tmp_path / "model_state.pdparams").write_bytes(b"")
    text = refusal(tmp_path, UnsupportedModelError)
    assert "is in Paddle's format; use the checkpoint whose name ends in -PT" in text


def test_tensor_names_of_paddle_point_to_pt(tmp_path):
    names = {"ernie.layers.0.self_attn.qkv_proj.weight": torch.ones(2), "lm_head.weight": None}
    write_folder(tmp_path, MOE, {name: torch.ones(2) for name in names})
    text = refusal(tmp_path, UnsupportedModelError)
    assert "tensors named ernie.*); use the checkpoint whose name ends in -PT" in text


def test_missing_files_are_counted_and_named(tmp_path, tensors):
    write_folder(tmp_path, MOE, tensors, num_shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    text = refusal(tmp_path)
    assert "1 of 3 files are missing: model-00002-of-00003.safetensors; fetch" in text


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "x.bin",
        "..",
        "",
        "\x1b[2J/x.safetensors",
    ],
)
def test_an_index_cannot_name_files_elsewhere(tmp_path, tensors, name):
    folder = write_folder(tmp_path / "model", MOE, tensors, num_shards=2)
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][EXPERT] = name
    (folder / INDEX).write_text(json.dumps(index))
    assert "which is not a safetensors file beside it; do not trust" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{", "", "\xff", "[" * 100_000],
)
def test_a_damaged_index_is_an_error(tmp_path, tensors, text):
    folder = write_folder(tmp_path, MOE, tensors, num_shards=2)
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    assert INDEX in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "{", "", "\xff\xfe", "null", "[" * 100_000])
def test_a_damaged_config_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json is not" in refusal(tmp_path)


def test_a_json_file_of_absurd_size_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(CheckpointError, match="is larger than 64 MiB; fetch the file again"):
        read_json(tmp_path / "config.json")


def test_files_may_be_links_as_in_the_cache_of_the_hub(tmp_path, tensors):
    blobs = write_folder(tmp_path / "blobs", MOE, tensors, num_shards=2)
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert len(load(snapshot).weights) > 0


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("parent", ["snapshots", "folders"])
def test_links_out_of_the_model_are_not_followed(tmp_path, tensors, name, parent):
    outside = write_folder(tmp_path / "outside", MOE, tensors)
    folder = write_folder(tmp_path / "model" / parent / "0123", MOE, tensors)
    (folder / name).unlink()
    (folder / name).symlink_to(outside / name)
    text = refusal(folder)
    assert f"{name} is a link to /" in text
    assert "outside the model's folder; put the file itself there" in text


def test_a_pipe_in_place_of_a_file_is_an_error_and_not_waited_for(tmp_path, tensors):
    write_folder(tmp_path, MOE, tensors)
    for name, said in ((WEIGHTS, "it is not a regular file"), ("config.json", "not a regular")):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        assert said in refusal(tmp_path)


# Damaged safetensors files.


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def offsets(begin: int, end: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[EXPERT]["data_offsets"] = [begin, end]

    return change


def dtype_to(dtype: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[EXPERT]["dtype"] = dtype

    return change


def shape_to(shape: list[int]) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[EXPERT]["shape"] = shape

    return change


def without_shape(header: dict[str, Any]) -> None:
    del header[EXPERT]["shape"]


LIES = {
    "beyond_the_file": offsets(10**12, 10**12 + 8192),
    "overlapping": offsets(0, 8192),
    "negative": offsets(-8192, 0),
    "backwards": offsets(8192, 0),
    "overflowing": offsets(0, 2**64 - 1),
    "dtype_unknown": dtype_to("F99"),
    "dtype_wider": dtype_to("F32"),
    "shape_larger": shape_to([64, 65]),
    "shape_negative": shape_to([-64, -64]),
    "shape_overflowing": shape_to([2**40, 2**40]),
    "no_shape": without_shape,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_an_error(tmp_path, tensors, lie):
    write_folder(tmp_path, MOE, tensors)
    rewrite_header(tmp_path / WEIGHTS, LIES[lie])
    text = refusal(tmp_path)
    assert text.startswith(f"{WEIGHTS} is not a sound safetensors file (")
    assert text.endswith("; fetch the file again")


def test_float8_is_known_and_not_supported(tmp_path, tensors):
    eight = {**tensors, EXPERT: tensors[EXPERT].to(torch.float8_e4m3fn)}
    text = refusal(write_folder(tmp_path, MOE, eight), UnsupportedModelError)
    assert f'{WEIGHTS}: "{EXPERT}" is stored as F8_E4M3; use a checkpoint in bfloat16' in text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 9) + b"not JSON!",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 2) + b"\xff\xff",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_safetensors_file_is_an_error(tmp_path, data):
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    (tmp_path / WEIGHTS).write_bytes(data)
    assert f"{WEIGHTS} is not a sound safetensors file (" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_an_error(tmp_path, tensors, kept):
    write_folder(tmp_path, MOE, tensors)
    path = tmp_path / WEIGHTS
    os.truncate(path, int(path.stat().st_size * kept))
    assert f"{WEIGHTS} is not a sound safetensors file (" in refusal(tmp_path)


def test_bytes_behind_the_last_tensor_are_an_error(tmp_path, tensors):
    write_folder(tmp_path, MOE, tensors)
    with (tmp_path / WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert f"{WEIGHTS} is not a sound safetensors file (" in refusal(tmp_path)


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path, tensors):
    write_folder(tmp_path, MOE, tensors)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / WEIGHTS).mkdir()
    assert f"{WEIGHTS} is not a sound safetensors file (" in refusal(tmp_path)


def test_a_file_without_tensors_lacks_all_of_them(tmp_path):
    write_folder(tmp_path, MOE, {})
    assert "tensors are missing: model.embed_tokens.weight, model.norm.weight" in refusal(tmp_path)


def test_a_name_twice_in_one_header_does_not_pass_unseen(tmp_path, tensors):
    """Readers differ in which of two equal JSON keys they take."""
    write_folder(tmp_path, MOE, tensors)
    path = tmp_path / WEIGHTS
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + size])[EXPERT]
    text = data[8 : 8 + size].rstrip()[:-1] + f',"{EXPERT}":{json.dumps(entry)}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    assert "a key is there twice" in refusal(tmp_path)
