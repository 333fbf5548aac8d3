"""The families: what their configs mean, and which tensors a checkpoint has."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.config import ModelConfig
from erniechat.model.families import FAMILIES, family_of
from erniechat.model.family import Dense, Piece, Routed, Unused, routed_name, shown
from tests.model.checkpoints import ARCHITECTURES, CLASSES, DENSE, HUB_EXTRAS, MOE

HUB = Path(__file__).parents[2].parent / "shared" / "hub"
# Counted from transformers' classes, by group of tensors.
PARAMETERS = {
    "ERNIE-4.5-0.3B-PT": {
        "embedding": 105_906_176,
        "attention": 84_934_656,
        "mlp": 169_869_312,
        "norm": 37_888,
        "total": 360_748_032,
    },
    "ERNIE-4.5-21B-A3B-PT": {
        "embedding": 264_765_440,
        "attention": 440_401_920,
        "mlp": 94_371_840,
        "routed": 20_384_317_440,
        "shared": 637_009_920,
        "router": 4_425_408,
        "norm": 145_920,
        "total": 21_825_437_888,
    },
    "ERNIE-4.5-300B-A47B-PT": {
        "embedding": 847_249_408,
        "lm_head": 847_249_408,
        "attention": 8_153_726_976,
        "mlp": 2_113_929_216,
        "routed": 287_494_373_376,
        "router": 26_741_952,
        "norm": 892_928,
        "total": 299_484_163_264,
    },
}
PARAMETERS["ERNIE-4.5-21B-A3B-Thinking"] = PARAMETERS["ERNIE-4.5-21B-A3B-PT"]
GROUPS = {
    "embed_tokens": "embedding",
    "lm_head": "lm_head",
    "qkv": "attention",
    "o": "attention",
    "gate_up": "mlp",
    "down": "mlp",
    "router": "router",
    "correction_bias": "router",
    "norm": "norm",
    "input_norm": "norm",
    "post_attention_norm": "norm",
}


def hub_config(name: str) -> dict[str, Any]:
    path = HUB / name / "config.json"
    if not path.is_file():
        pytest.skip("no configs of published models beside the repository")
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return raw


def parse(raw: dict[str, Any]) -> ModelConfig:
    return family_of(raw).parse_config(raw)


@pytest.mark.parametrize("name", PARAMETERS)
def test_tensors_of_a_published_model_have_its_number_of_parameters(name):
    raw = hub_config(name)
    slots = family_of(raw).tensors(parse(raw))
    counts: Counter[str] = Counter()
    for slot in slots.values():
        if isinstance(slot, Routed):
            group = "routed"
        elif slot.optional and raw["tie_word_embeddings"]:
            continue  # a tied head is not stored
        elif ".shared." in slot.target:
            group = "shared"
        else:
            group = GROUPS[slot.target.rsplit(".", 1)[-1]]
        counts[group] += torch.Size(slot.shape).numel()
        counts["total"] += torch.Size(slot.shape).numel()
    assert counts == PARAMETERS[name]


def test_names_of_the_21b_are_those_of_the_hub():
    raw = hub_config("ERNIE-4.5-21B-A3B-Thinking")
    slots = family_of(raw).tensors(parse(raw))
    assert slots["model.layers.0.mlp.gate_proj.weight"].shape == (12288, 2560)
    assert slots["model.layers.1.self_attn.k_proj.weight"].shape == (512, 2560)
    assert slots["model.layers.27.mlp.gate.weight"].shape == (64, 2560)
    assert slots["model.layers.27.mlp.moe_statics.e_score_correction_bias"].shape == (64,)
    expert = slots["model.layers.27.mlp.experts.63.down_proj.weight"]
    assert expert == Routed(27, 63, "down", (2560, 1536))
    assert slots["model.layers.1.mlp.shared_experts.up_proj.weight"].shape == (3072, 2560)
    assert len([slot for slot in slots.values() if isinstance(slot, Routed)]) == 27 * 64 * 3
    assert not any("mtp" in name for name in slots)


def test_dense_layers_of_the_300b_are_the_first_three_and_no_expert_is_shared():
    raw = hub_config("ERNIE-4.5-300B-A47B-PT")
    config = parse(raw)
    assert config.moe_layers == tuple(range(3, 54))
    assert config.num_experts_per_tok == 8
    assert config.head_dim == 128
    assert not any("shared_experts" in name for name in family_of(raw).tensors(config))


@pytest.mark.parametrize("model_type", CLASSES)
def test_missing_keys_take_the_defaults_of_transformers(model_type):
    ours, theirs = parse({"model_type": model_type}), CLASSES[model_type][0]()
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "use_bias",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == 128
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] == 500_000
    if model_type == "ernie4_5_moe":
        assert ours.moe_layers == tuple(range(1, 28))
        assert ours.num_experts == theirs.moe_num_experts
        assert ours.num_experts_per_tok == theirs.moe_k
        assert ours.moe_intermediate_size == theirs.moe_intermediate_size
        assert ours.num_shared_experts == theirs.moe_num_shared_experts
        assert ours.router_norm_min == theirs.moe_norm_min


@pytest.mark.parametrize("raw", [DENSE, MOE], ids=["dense", "moe"])
def test_null_means_the_same_as_missing(raw):
    optional = ["rope_theta", "rms_norm_eps", "use_bias", "max_position_embeddings"]
    optional += [key for key in raw if key.startswith("moe_")]
    without = {key: value for key, value in raw.items() if key not in optional}
    assert parse({**raw, **dict.fromkeys(optional)}) == parse(without)


def test_head_dim_null_is_derived_in_both_families():
    assert parse({**DENSE, "head_dim": None}).head_dim == 16
    assert parse({**MOE, "head_dim": None}).head_dim == 16
    assert parse({**MOE, "head_dim": 24}).head_dim == 24


def test_number_of_kv_heads_null_means_as_many_as_heads():
    assert parse({**DENSE, "num_key_value_heads": None}).num_key_value_heads == 4


def test_rope_theta_is_read_in_every_spelling():
    raw = {key: value for key, value in DENSE.items() if key != "rope_theta"}
    plain = {"rope_type": "default", "rope_theta": 1234.0}
    assert parse(raw).rope_theta == 500_000
    assert parse({**raw, "rope_theta": 1234}).rope_theta == 1234
    assert parse({**raw, "rope_parameters": plain}).rope_theta == 1234
    assert parse({**raw, "rope_theta": 5, "rope_parameters": plain}).rope_theta == 1234
    assert parse({**raw, "rope_theta": 1234, "rope_scaling": None}).rope_theta == 1234
    assert parse({**raw, "rope_theta": 1234, "rope_scaling": {"type": "default"}}) == parse(
        {**raw, "rope_theta": 1234}
    )


def test_spellings_of_transformers_for_experts_are_read():
    raw = {key: v for key, v in MOE.items() if key not in ("moe_num_experts", "moe_k")}
    config = parse({**raw, "num_experts": 8, "num_experts_per_tok": 3})
    assert config == parse(MOE)


@pytest.mark.parametrize("raw", [DENSE, MOE], ids=["dense", "moe"])
def test_architecture_and_training_keys_do_not_matter(raw):
    old = {"architectures": [ARCHITECTURES[raw["model_type"]]]}
    assert parse({**raw, **HUB_EXTRAS, **old, "fuse_attention_ffn": True}) == parse(raw)


@pytest.mark.parametrize(
    ("layers", "start", "end", "interval", "expected"),
    [
        (4, 1, -1, 1, (1, 2, 3)),
        (4, 0, -1, 1, (0, 1, 2, 3)),
        (6, 1, 4, 2, (1, 3)),  # (i + 1) % 2 == 0
        (6, 2, 4, 2, (3,)),
        (6, 1, 9, 3, (2, 5)),
        (4, 4, -1, 1, ()),
    ],
)
def test_moe_layers_by_hand(layers, start, end, interval, expected):
    raw = {
        **MOE,
        "num_hidden_layers": layers,
        "moe_layer_start_index": start,
        "moe_layer_end_index": end,
        "moe_layer_interval": interval,
    }
    assert parse(raw).moe_layers == expected


BAD_VALUES: list[tuple[str, Any, str]] = [
    ("hidden_size", 0, "hidden_size must be a whole number from 1 to"),
    ("hidden_size", "64", 'got "64"'),
    ("hidden_size", 64.5, "got 64.5"),
    ("hidden_size", True, "got True"),
    ("num_hidden_layers", -1, "got -1"),
    ("num_hidden_layers", 10**12, "from 1 to 16384, got 1000000000000"),
    ("moe_num_experts", 10**5, "moe_num_experts must be a whole number from 1 to 16384"),
    ("vocab_size", 10**9, "from 1 to 16777216"),
    ("moe_num_experts", 2, "moe_k 3 is more than the 2 experts"),
    ("moe_k", 0, "moe_k must be"),
    ("moe_layer_interval", 0, "moe_layer_interval must be"),
    ("moe_layer_start_index", [1, 2], "got [1, 2]"),
    ("moe_layer_end_index", -2, "got -2"),
    ("moe_norm_min", float("nan"), "got nan"),
    ("rms_norm_eps", float("inf"), "rms_norm_eps must be a number above 0, got inf"),
    ("rms_norm_eps", -1e-5, "got -1e-05"),
    ("rope_theta", "500000", 'got "500000"'),
    ("rope_parameters", [1], "rope_parameters must be an object, got [1]"),
    ("use_bias", "false", 'use_bias must be true or false, got "false"'),
    ("num_key_value_heads", 3, "4 attention heads are not a multiple of 3 key-value heads"),
    ("head_dim", 15, "head_dim 15 is odd"),
    ("vocab_size", "9" * 1000, "…"),
]


@pytest.mark.parametrize(("key", "value", "said"), BAD_VALUES)
def test_a_value_that_makes_no_sense_is_one_line_with_key_value_and_way_out(key, value, said):
    with pytest.raises(CheckpointError) as caught:
        parse({**MOE, key: value})
    text = str(caught.value)
    assert said in text
    assert text.startswith("config.json: ")
    assert text.endswith("; fetch the file again")
    assert text.isprintable()
    assert len(text) < 250


def test_more_experts_than_any_model_has_are_refused_before_they_are_listed():
    said = "config.json: 16384 layers of 16384 experts are more than any model has; fetch"
    with pytest.raises(CheckpointError, match=said):
        parse({**MOE, "num_hidden_layers": 16384, "moe_num_experts": 16384})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act "gelu" is not supported, only "silu" is'),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 'rope type "linear"'),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'rope type "yarn"'),
        ({"model_type": "llama"}, 'model_type "llama" is not supported; this program runs ernie'),
        ({"model_type": "a\x1b[2J\nb"}, r'model_type "a\x1b[2J\nb" is not'),
    ],
)
def test_what_is_not_supported_is_said_so(changes, said):
    with pytest.raises(UnsupportedModelError) as caught:
        parse({**MOE, **changes})
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("value", [None, 5, ["ernie4_5"]])
def test_a_config_without_model_type_is_an_error(value):
    with pytest.raises(CheckpointError, match=r"config.json has no model_type; use a checkpoint"):
        family_of({"model_type": value})


def test_every_family_is_registered_under_its_model_type():
    assert {name: family.model_type for name, family in FAMILIES.items()} == {
        "ernie4_5": "ernie4_5",
        "ernie4_5_moe": "ernie4_5_moe",
    }


MTP_NAMES = [
    "model.mtp_block.0.self_attn.q_proj.weight",
    "model.mtp_block.0.mlp.gate_proj.weight",
    "model.mtp_emb_norm.0.weight",
    "model.mtp_hidden_norm.0.weight",
    "model.mtp_linear_proj.0.weight",
]


@pytest.mark.parametrize("name", MTP_NAMES)
def test_tensors_of_multi_token_prediction_are_unused_with_a_reason(name):
    found = family_of(MOE).pieces(parse(MOE), name)
    assert isinstance(found, Unused)
    assert "multi-token prediction" in found.reason


@pytest.mark.parametrize("name", ["model.layers.1.mlp.experts.gate_up_proj.weight", "x", ""])
def test_other_names_are_not_known(name):
    assert family_of(MOE).pieces(parse(MOE), name) is None


def test_a_renamed_bias_is_that_of_the_hub():
    renamed = "model.layers.2.mlp.gate.moe_statics.e_score_correction_bias"
    hub = "model.layers.2.mlp.moe_statics.e_score_correction_bias"
    assert family_of(MOE).pieces(parse(MOE), renamed) == (Piece(hub),)


def test_fused_experts_are_cut_into_gate_then_up():
    config = parse(MOE)  # 8 experts, width 64, hidden 64
    pieces = family_of(MOE).pieces(config, "model.layers.1.mlp.experts.gate_up_proj")
    assert isinstance(pieces, tuple)
    assert len(pieces) == 16
    at = "model.layers.1.mlp.experts.7."
    shape = (8, 128, 64)
    assert pieces[14] == Piece(at + "gate_proj.weight", (7, slice(0, 64)), shape)
    assert pieces[15] == Piece(at + "up_proj.weight", (7, slice(64, 128)), shape)
    down = family_of(MOE).pieces(config, "model.layers.1.mlp.experts.down_proj")
    assert isinstance(down, tuple)
    assert down[7] == Piece(at + "down_proj.weight", (7,), (8, 64, 64))


def test_pieces_of_one_weight_are_complete_and_in_order():
    slots = family_of(MOE).tensors(parse({**MOE, "use_bias": True}))
    pieces: dict[str, list[tuple[int, int]]] = {}
    for slot in slots.values():
        if isinstance(slot, Dense):
            pieces.setdefault(slot.target, []).append((slot.piece, slot.num_pieces))
    for target, found in pieces.items():
        assert found == [(i, len(found)) for i in range(len(found))], target
    assert pieces["layers.0.qkv"] == [(0, 3), (1, 3), (2, 3)]
    assert pieces["layers.0.mlp.gate_up.bias"] == [(0, 2), (1, 2)]


def test_names_of_experts():
    assert routed_name(3, 17, "gate_up") == "layers.3.experts.17.gate_up"


def test_shown_values_are_short_and_printable():
    assert shown("plain 名") == '"plain 名"'
    assert shown("a\nb\x1b[31m") == r'"a\nb\x1b[31m"'
    assert shown("\u202etxt") == r'"\u202etxt"'
    assert shown(["x\n"]) == r"['x\n']"
    assert len(shown("x" * 1000)) == 83
