"""Checkpoints that bitsandbytes has quantized: made with it directly, and by transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from erniechat.errors import CheckpointError, ModelError
from erniechat.model.checkpoint import Checkpoint, StoredQuantized
from quant.formats import FORMATS
from quant.formats.codebook import unpack_x16
from quant.kernels.bnb import library
from quant.tensor import QuantTensor
from tests.model.checkpoints import (
    MOE,
    SPELLINGS,
    hub_tensors,
    load,
    prefill_logits,
    random_ids,
    reference_logits,
    reference_model,
    write_folder,
)

# Widths of 128, so that blocks of 128 fit into a row as well.
RAW = {**MOE, "hidden_size": 128, "moe_intermediate_size": 128}
QKV = "layers.0.qkv"
Q = "model.layers.0.self_attn.q_proj.weight"
EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
STATE = "quant_state.bitsandbytes__"
# Our scales are float16 where blocks are kept; bitsandbytes gives weights back in bfloat16.
SCALES_ROUNDED = 2**-9 + 2**-11


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return hub_tensors(reference_model(RAW))


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def quantize_4bit(weight: Tensor, **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """What Linear4bit saves of a weight, without its name, and the weight that it means."""
    functional = library()
    packed, state = functional.quantize_4bit(weight, **options)
    parts = {"": packed} | {f".{key}": t for key, t in state.as_dict(packed=True).items()}
    # As one row: bitsandbytes 0.50 on CPUs gives wrong values where a block spans several rows
    # (17 % off for rows of 128 in blocks of 256, where the quantization itself is 10 % off).
    state.shape = torch.Size((1, weight.numel()))
    return parts, functional.dequantize_4bit(packed, state).float().view(weight.shape)


def quantized_folder(
    folder: Path, tensors: dict[str, Tensor], **options: Any
) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint whose linear maps are in 4 bits, and the floats that they mean."""
    saved, meant = {}, {}
    for name, tensor in tensors.items():
        if is_linear(name):
            parts, meant[name] = quantize_4bit(tensor, **options)
            saved |= {name + suffix: part for suffix, part in parts.items()}
        else:
            saved[name] = meant[name] = tensor
    config = {**RAW, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    return write_folder(folder, config, saved), meant


def model_of(meant: dict[str, Tensor]) -> transformers.PreTrainedModel:
    """Transformers' model with the floats that a quantized checkpoint means."""
    model = reference_model(RAW)
    state = model.state_dict()
    for name in state:
        if ".experts." in name and "shared" not in name:
            at, matrix = name.rsplit(".", 1)
            parts = ["gate", "up"] if matrix == "gate_up_proj" else ["down"]
            state[name] = torch.stack(
                [
                    torch.cat([meant[f"{at}.{e}.{part}_proj.weight"].float() for part in parts])
                    for e in range(8)
                ]
            )
        else:
            hub = name.replace(".mlp.gate.moe_statics.", ".mlp.moe_statics.")
            hub = hub.replace("lm_head.", "model.embed_tokens.")
            state[name] = meant[hub].float()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("block_size", [64, 128, 256])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_4bit_checkpoint_means_what_bitsandbytes_says(
    tmp_path, tensors, kind, block_size, nested
):
    folder, meant = quantized_folder(
        tmp_path, tensors, quant_type=kind, blocksize=block_size, compress_statistics=nested
    )
    checkpoint = Checkpoint(folder)
    assert checkpoint.quantized_format == kind
    for stored in checkpoint:
        if isinstance(stored, StoredQuantized):
            weight = stored.read()
            if isinstance(weight, QuantTensor):
                assert block_size == 64
                weight = FORMATS[kind].dequantize(weight, torch.float32)
            error = (weight - meant[stored.name]).norm() / meant[stored.name].norm()
            assert float(error) < SCALES_ROUNDED


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_codes_of_blocks_of_64_are_kept_bit_for_bit(tmp_path, tensors, kind, nested):
    folder, _ = quantized_folder(
        tmp_path, tensors, quant_type=kind, blocksize=64, compress_statistics=nested
    )
    weights = load(folder, format_name=kind).weights
    saved = load_file(folder / "model.safetensors")

    def codes(name: str) -> Tensor:
        packed = saved[name].flatten()
        return torch.stack((packed >> 4, packed & 15), -1).view(-1, 128)

    held = weights[QKV]
    assert isinstance(held, QuantTensor)
    names = [Q.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
    assert torch.equal(unpack_x16(held.parts["codes"]), torch.cat([codes(n) for n in names]))
    gate_up = weights["layers.1.experts.5.gate_up"]
    assert isinstance(gate_up, QuantTensor)
    both = torch.cat([codes(EXPERT.replace("up_proj", "gate_proj")), codes(EXPERT)])
    assert torch.equal(unpack_x16(gate_up.parts["codes"]), both)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_logits_of_a_4bit_checkpoint_are_those_of_the_floats_that_it_means(
    tmp_path, tensors, nested
):
    folder, meant = quantized_folder(
        tmp_path, tensors, quant_type="nf4", blocksize=64, compress_statistics=nested
    )
    ids = random_ids(30, 208)
    expected = reference_logits(model_of(meant), ids)
    unquantized = reference_logits(reference_model(RAW), ids)
    got = prefill_logits(load(folder, format_name="nf4").decoder, ids)
    # The embedding is int8 beside nf4, so this is likeness and not equality; but it is nearer to
    # what was saved than to what was quantized, which a second quantization would not be.
    assert float((got - expected).norm()) < 0.25 * float((unquantized - expected).norm())


def test_the_storage_of_codes_may_be_another_dtype(tmp_path, tensors):
    """FSDP asks for codes inside bfloat16 tensors."""
    plain, _ = quantized_folder(tmp_path / "a", tensors, quant_type="nf4", blocksize=64)
    other, _ = quantized_folder(
        tmp_path / "b", tensors, quant_type="nf4", blocksize=64, quant_storage=torch.bfloat16
    )
    first, second = (load(folder, format_name="nf4").weights[QKV] for folder in (plain, other))
    assert isinstance(first, QuantTensor)
    assert isinstance(second, QuantTensor)
    assert torch.equal(first.parts["codes"], second.parts["codes"])


@pytest.mark.parametrize("format_name", ["bf16", "int8", "fp4"])
def test_an_nf4_checkpoint_can_be_loaded_in_another_format(tmp_path, tensors, format_name):
    folder, meant = quantized_folder(tmp_path, tensors, quant_type="nf4", blocksize=64)
    held = load(folder, format_name=format_name).weights["layers.1.experts.5.gate_up"]
    assert isinstance(held, QuantTensor)
    assert held.format == format_name
    up = FORMATS[format_name].dequantize(held, torch.float32)[128:]
    bound = {"bf16": 2**-8, "int8": 0.01, "fp4": 0.25}[format_name]
    assert float((up - meant[EXPERT]).norm() / meant[EXPERT].norm()) < bound


def test_only_some_layers_may_be_quantized(tmp_path, tensors):
    """Transformers 5 leaves fused experts as they are."""
    saved = {}
    for name, tensor in tensors.items():
        if is_linear(name) and ".experts." not in name:
            parts, _ = quantize_4bit(tensor, quant_type="nf4", blocksize=64)
            saved |= {name + suffix: part for suffix, part in parts.items()}
        else:
            saved[name] = tensor
    weights = load(write_folder(tmp_path, RAW, saved), format_name="nf4").weights
    expert = weights["layers.1.experts.5.gate_up"]
    assert isinstance(expert, QuantTensor)
    up = FORMATS["nf4"].quantize(tensors[EXPERT])
    assert torch.equal(expert.parts["codes"][8:], up.parts["codes"])


def saved_by_transformers(
    tmp_path: Path, **options: Any
) -> tuple[transformers.PreTrainedModel, Path]:
    source = SPELLINGS["hub"](tmp_path / "source", RAW, reference_model(RAW))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.bfloat16,
        quantization_config=transformers.BitsAndBytesConfig(**options),
        device_map={"": "cpu"},
    )
    model.save_pretrained(tmp_path / "saved")
    return model, tmp_path / "saved"


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of the libraries that save
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_a_4bit_checkpoint_of_transformers_loads(tmp_path, kind, nested):
    library()
    model, folder = saved_by_transformers(
        tmp_path,
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    stored = {t.name: t for t in Checkpoint(folder) if isinstance(t, StoredQuantized)}
    linears = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    assert set(stored) == set(linears)
    for name, parameter in linears.items():
        weight = stored[name].read()
        assert isinstance(weight, QuantTensor)
        means = library().dequantize_4bit(parameter.data, parameter.quant_state).float()
        error = (FORMATS[kind].dequantize(weight, torch.float32) - means).norm() / means.norm()
        assert float(error) < SCALES_ROUNDED
    weights = load(folder, format_name=kind).weights
    expert = weights["layers.1.experts.5.gate_up"]  # transformers 5 leaves it in bf16
    assert isinstance(expert, QuantTensor)
    up = FORMATS[kind].quantize(hub_tensors(reference_model(RAW))[EXPERT])
    assert torch.equal(expert.parts["codes"][8:], up.parts["codes"])


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_an_8bit_checkpoint_of_transformers_loads(tmp_path):
    library()
    _, folder = saved_by_transformers(tmp_path, load_in_8bit=True)
    saved = load_file(next(folder.glob("*.safetensors")))
    weights = load(folder, format_name="int8").weights
    held = weights[QKV]
    assert isinstance(held, QuantTensor)
    names = [Q.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
    assert saved[Q].dtype == torch.int8
    assert torch.equal(held.parts["codes"], torch.cat([saved[name] for name in names]))
    scales = [saved[name.replace("weight", "SCB")].float() for name in names]
    assert torch.equal(held.parts["absmax"], torch.cat(scales))


def eight_bit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    saved = {}
    for name, tensor in tensors.items():
        if is_linear(name):
            codes, scale, _ = library().int8_vectorwise_quant(tensor.half())
            at = name.removesuffix("weight")
            saved |= {name: codes, at + "SCB": scale}
            saved[at + "weight_format"] = torch.tensor(0, dtype=torch.uint8)
        else:
            saved[name] = tensor
    return saved


def test_int8_with_row_scales_is_kept_bit_for_bit(tmp_path, tensors):
    saved = eight_bit(tensors)
    weights = load(write_folder(tmp_path, RAW, saved), format_name="int8").weights
    expert = weights["layers.1.experts.5.gate_up"]
    assert isinstance(expert, QuantTensor)
    assert torch.equal(expert.parts["codes"][128:], saved[EXPERT])
    assert torch.equal(expert.parts["absmax"][128:], saved[EXPERT.replace("weight", "SCB")])
    means = FORMATS["int8"].dequantize(expert, torch.float32)[128:]
    assert float((means - tensors[EXPERT].float()).abs().max()) < 0.01


# Damaged ones.


def state_to(**changes: Any) -> Callable[[dict[str, Tensor]], None]:
    def change(saved: dict[str, Tensor]) -> None:
        name = f"{Q}.{STATE}nf4"
        state = json.loads(bytes(saved[name].tolist()))
        state |= changes
        text = json.dumps({key: value for key, value in state.items() if value is not None})
        saved[name] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    return change


def part_to(suffix: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(saved: dict[str, Tensor]) -> None:
        saved[Q + suffix] = make(saved[Q + suffix])

    return change


def without(suffix: str) -> Callable[[dict[str, Tensor]], None]:
    def change(saved: dict[str, Tensor]) -> None:
        del saved[Q + suffix]

    return change


def nan(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, float("nan"))


def shorter(tensor: Tensor) -> Tensor:
    return tensor.flatten()[1:].clone()


NOT_A_STATE = "its quant_state is not one of bitsandbytes' nf4 or fp4"
DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "state_missing": (without(f".{STATE}nf4"), "has no quant_state"),
    "state_not_json": (part_to(f".{STATE}nf4", shorter), NOT_A_STATE),
    "state_empty": (part_to(f".{STATE}nf4", lambda t: t[:0].clone()), NOT_A_STATE),
    "kind_unknown": (state_to(quant_type="int3"), NOT_A_STATE),
    "shape_missing": (state_to(shape=None), NOT_A_STATE),
    "shape_3d": (state_to(shape=[2, 32, 128]), NOT_A_STATE),
    "shape_other": (state_to(shape=[128, 64]), "has shape 128 × 64, config.json says 128 × 128"),
    "shape_negative": (state_to(shape=[-128, -128]), NOT_A_STATE),
    "block_size_zero": (state_to(blocksize=0), NOT_A_STATE),
    "block_size_other": (state_to(blocksize=128), "its absmax has 256 values instead of 128"),
    "codes_shorter": (part_to("", shorter), "8191 bytes of codes do not make 128 × 128 weights"),
    "absmax_missing": (without(".absmax"), "tensors are not part of this model"),
    "absmax_shorter": (part_to(".absmax", shorter), "its absmax has 255 values instead of 256"),
    "absmax_nan": (part_to(".absmax", nan), "its absmax has values that are NaN or infinite"),
    "absmax_large": (part_to(".absmax", lambda t: t + 1e6), "a 4-bit scale holds at most 65504"),
    "map_missing": (without(".quant_map"), "its quant_map is missing"),
    "map_shorter": (part_to(".quant_map", shorter), "its quant_map has 15 values instead of 16"),
    "map_other": (part_to(".quant_map", lambda t: t.flip(0).clone()), "its codebook is not that"),
    "map_nan": (part_to(".quant_map", nan), "its quant_map has values that are NaN"),
}
NESTED_DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "not_mentioned": (
        state_to(nested_blocksize=None),
        "it has nested scales that its quant_state does not mention",
    ),
    "offset_missing": (state_to(nested_offset=None), NOT_A_STATE),
    "block_size_zero": (state_to(nested_blocksize=0), NOT_A_STATE),
    "outer_missing": (without(".nested_absmax"), "its nested_absmax is missing"),
    "outer_shorter": (
        part_to(".nested_absmax", lambda t: t[:0].clone()),
        "its nested_absmax has 0 values instead of 1",
    ),
    "outer_nan": (part_to(".nested_absmax", nan), "its nested_absmax has values that are NaN"),
    "map_missing": (without(".nested_quant_map"), "its nested_quant_map is missing"),
    "map_shorter": (
        part_to(".nested_quant_map", shorter),
        "its nested_quant_map has 255 values instead of 256",
    ),
    "codes_not_uint8": (
        part_to(".absmax", lambda t: t.float() + 1000),
        "its nested absmax is not stored as uint8",
    ),
}


def refusal(folder: Path, format_name: str) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, format_name=format_name)
    assert type(caught.value) is CheckpointError
    assert caught.value.hint
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("nested", "damage"),
    [(False, name) for name in DAMAGES] + [(True, name) for name in NESTED_DAMAGES],
)
def test_a_damaged_4bit_weight_is_named_with_what_is_wrong(tmp_path, tensors, nested, damage):
    folder, _ = quantized_folder(
        tmp_path, tensors, quant_type="nf4", blocksize=64, compress_statistics=nested
    )
    saved = load_file(folder / "model.safetensors")
    change, said = (NESTED_DAMAGES if nested else DAMAGES)[damage]
    change(saved)
    text = refusal(write_folder(tmp_path, RAW, saved), "nf4")
    assert Q in text
    assert said in text


@pytest.mark.parametrize(
    ("suffix", "value", "said"),
    [
        ("SCB", torch.full((128,), float("inf")), "its SCB has values that are NaN or infinite"),
        ("SCB", torch.ones(64), "its SCB has 64 values instead of 128"),
        ("weight_format", torch.tensor(2, dtype=torch.uint8), "an order for one kind of GPU"),
        ("weight", torch.ones(128, 128), "its codes are not an int8 matrix"),
    ],
)
def test_a_damaged_int8_weight_is_named_with_what_is_wrong(tmp_path, tensors, suffix, value, said):
    saved = {**eight_bit(tensors), Q.removesuffix("weight") + suffix: value}
    text = refusal(write_folder(tmp_path, RAW, saved), "int8")
    assert Q in text
    assert said in text


def test_a_router_must_not_be_quantized(tmp_path, tensors):
    name = "model.layers.1.mlp.gate.weight"
    parts, _ = quantize_4bit(tensors[name], quant_type="nf4", blocksize=64)
    saved = {**tensors} | {name + suffix: part for suffix, part in parts.items()}
    text = refusal(write_folder(tmp_path, RAW, saved), "nf4")
    assert f"{name} is quantized, and a router must not be; use a checkpoint that keeps it" in text
