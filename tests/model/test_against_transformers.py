"""The decoder against transformers' Ernie4_5ForCausalLM and Ernie4_5_MoeForCausalLM."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from erniechat.errors import CheckpointError
from erniechat.model import decoder as decoder_module
from erniechat.model.layers import rotate
from erniechat.model.routing import route
from tests.model.checkpoints import (
    DENSE,
    MOE,
    SPELLINGS,
    Raw,
    cached_reference,
    chunked_logits,
    load,
    prefill_logits,
    random_ids,
    reference_decode_logits,
    reference_logits,
)

TOLERANCE = 1e-4  # of the issue, for logits in float32 whose standard deviation is about 1.4
NUM_TOKENS = 40
NUM_PREFILLED = 33  # the rest is decoded one by one
CHUNKS = [1, 20, 12]  # then one by one

# Each changes what its name says and must change the result: see the test of ignored keys.
SHARED_VARIATIONS: dict[str, Raw] = {
    "as_it_is": {},
    "num_key_value_heads_as_many_as_heads": {"num_key_value_heads": 4},
    "num_key_value_heads_one": {"num_key_value_heads": 1},
    "num_attention_heads": {"num_attention_heads": 8},
    "head_dim": {"head_dim": 48},
    "hidden_size": {"hidden_size": 128},
    "intermediate_size": {"intermediate_size": 192},
    "num_hidden_layers": {"num_hidden_layers": 4},
    "rope_theta": {"rope_theta": 100.0},
    "rms_norm_eps": {"rms_norm_eps": 0.1},
    "use_bias": {"use_bias": True},
    "untied": {"tie_word_embeddings": False},
    "use_bias_untied": {"use_bias": True, "tie_word_embeddings": False},
    "vocab_size": {"vocab_size": 333},
    "max_position_embeddings": {"max_position_embeddings": 4096},
    "unused": {"initializer_range": 0.1, "use_cache": False, "eos_token_id": [2, 5]},
}
DENSE_VARIATIONS: dict[str, Raw] = {"head_dim_derived": {"head_dim": None}}
MOE_VARIATIONS: dict[str, Raw] = {
    "moe_intermediate_size": {"moe_intermediate_size": 128},
    "moe_num_experts": {"moe_num_experts": 12},
    "moe_k_one": {"moe_k": 1},
    "moe_k_all": {"moe_k": 8},
    "moe_num_shared_experts_none": {"moe_num_shared_experts": 0},
    "moe_num_shared_experts_one": {"moe_num_shared_experts": 1},
    "moe_layer_start_index_zero": {"moe_layer_start_index": 0},
    "moe_layer_start_index_three_dense": {"num_hidden_layers": 5, "moe_layer_start_index": 3},
    "moe_layer_end_index": {"moe_layer_end_index": 1},
    "moe_layer_interval": {"num_hidden_layers": 4, "moe_layer_interval": 2},
    "moe_norm_min": {"moe_norm_min": 0.9},
    "no_moe_layer": {"moe_layer_start_index": 3},
    "unused_moe": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
}
VARIATIONS = {
    **{f"dense-{n}": {**DENSE, **v} for n, v in (SHARED_VARIATIONS | DENSE_VARIATIONS).items()},
    **{f"moe-{n}": {**MOE, **v} for n, v in (SHARED_VARIATIONS | MOE_VARIATIONS).items()},
}


def reference_of(raw: Raw, seed: int = 0) -> transformers.PreTrainedModel:
    return cached_reference(json.dumps(raw), seed)


def ids_of(raw: Raw, seed: int = 1) -> list[int]:
    return random_ids(NUM_TOKENS, raw["vocab_size"], seed)


def difference(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max())


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_logits_in_float32_are_those_of_transformers(tmp_path, variation, spelling):
    raw = VARIATIONS[variation]
    model = reference_of(raw)
    decoder = load(SPELLINGS[spelling](tmp_path, raw, model)).decoder
    ids = ids_of(raw)

    assert difference(prefill_logits(decoder, ids), reference_logits(model, ids)) <= TOLERANCE
    decoded = reference_decode_logits(model, ids, NUM_PREFILLED)
    assert difference(chunked_logits(decoder, ids, [NUM_PREFILLED]), decoded) <= TOLERANCE
    assert difference(chunked_logits(decoder, ids, CHUNKS), decoded) <= TOLERANCE


@pytest.mark.parametrize("raw", [DENSE, MOE], ids=["dense", "moe"])
def test_every_config_key_is_varied_above(raw):
    named = {key for case in VARIATIONS.values() for key in case if case[key] != raw.get(key)}
    config_class = type(reference_of(raw).config)
    keys = {field.name for field in dataclasses.fields(config_class)}
    inherited = {f.name for f in dataclasses.fields(transformers.PreTrainedConfig)}
    spelled_otherwise = {"rope_parameters"}  # the saved spellings of rope_theta
    not_of_the_math = {"pad_token_id", "bos_token_id", "hidden_act"}  # tested in test_families
    assert keys - inherited - spelled_otherwise - not_of_the_math <= named


# A key that the decoder ignored would have its usual value: such a decoder must be told apart.
CONSTANTS = {
    "moe-rope_theta": {"rope_theta": 500000.0},
    "dense-rope_theta": {"rope_theta": 500000.0},
    "moe-rms_norm_eps": {"rms_norm_eps": 1e-5},
    "dense-rms_norm_eps": {"rms_norm_eps": 1e-5},
    "moe-moe_k_one": {"moe_k": 3},
    "moe-moe_k_all": {"moe_k": 3},
    "moe-moe_norm_min": {"moe_norm_min": 1e-12},
}


@pytest.mark.parametrize("variation", CONSTANTS)
def test_a_decoder_that_ignored_a_constant_would_be_seen(tmp_path, variation):
    raw = VARIATIONS[variation]
    model = reference_of(raw)
    SPELLINGS["hub"](tmp_path, raw, model)
    wrong = load(tmp_path, config_changes=CONSTANTS[variation]).decoder
    ids = ids_of(raw)
    assert difference(prefill_logits(wrong, ids), reference_logits(model, ids)) > 10 * TOLERANCE


SHAPES = [
    name
    for name in VARIATIONS
    if any(
        part in name
        for part in ("_heads", "head_dim", "_size", "_layers", "_index", "_interval", "experts")
    )
]


@pytest.mark.parametrize("variation", SHAPES)
def test_a_decoder_that_ignored_a_size_would_find_other_tensors(tmp_path, variation):
    raw = VARIATIONS[variation]
    base = MOE if variation.startswith("moe") else DENSE
    SPELLINGS["hub"](tmp_path, raw, reference_of(raw))
    changes = {key: base.get(key) for key, value in raw.items() if value != base.get(key)}
    with pytest.raises(CheckpointError):
        load(tmp_path, config_changes=changes)


def bias_rounded(x: Tensor, gate: Tensor, bias: Tensor, k: int, norm_min: float) -> Any:
    return route(x, gate, bias.bfloat16().float(), k, norm_min)


def bias_dropped(x: Tensor, gate: Tensor, bias: Tensor, k: int, norm_min: float) -> Any:
    return route(x, gate, torch.zeros_like(bias), k, norm_min)


def gate_rounded(x: Tensor, gate: Tensor, bias: Tensor, k: int, norm_min: float) -> Any:
    return route(x.bfloat16(), gate.bfloat16().float(), bias, k, norm_min)


def norm_min_ignored(x: Tensor, gate: Tensor, bias: Tensor, k: int, norm_min: float) -> Any:
    return route(x, gate, bias, k, 1e-12)


def weights_biased(x: Tensor, gate: Tensor, bias: Tensor, k: int, norm_min: float) -> Any:
    biased = F.linear(x.float(), gate).softmax(-1) + bias
    weights, ids = biased.topk(k)
    return ids, weights / weights.sum(-1, keepdim=True).clamp(min=norm_min)


def weights_not_normalized(x: Tensor, gate: Tensor, bias: Tensor, k: int, norm_min: float) -> Any:
    probabilities = F.linear(x.float(), gate).softmax(-1)
    ids = (probabilities + bias).topk(k).indices
    return ids, probabilities.gather(-1, ids)


def half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return rotated.to(x.dtype)


def turned_backwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(x, cos, -sin)


PORT_ERRORS = {
    "bias_rounded": ("route", bias_rounded),
    "bias_dropped": ("route", bias_dropped),
    "gate_rounded": ("route", gate_rounded),
    "weights_biased": ("route", weights_biased),
    "weights_not_normalized": ("route", weights_not_normalized),
    "norm_min_ignored": ("route", norm_min_ignored),
    "rope_half_split": ("rotate", half_split),
    "rope_backwards": ("rotate", turned_backwards),
}


@pytest.mark.parametrize("port_error", PORT_ERRORS)
def test_a_classic_port_error_would_be_seen(tmp_path, monkeypatch, port_error):
    raw = {**MOE, "moe_norm_min": 0.8}
    model = reference_of(raw)
    decoder = load(SPELLINGS["hub"](tmp_path, raw, model)).decoder
    ids = ids_of(raw)
    expected = reference_logits(model, ids)
    assert difference(prefill_logits(decoder, ids), expected) <= TOLERANCE

    monkeypatch.setattr(decoder_module, *PORT_ERRORS[port_error])
    assert difference(prefill_logits(decoder, ids), expected) > 10 * TOLERANCE
    monkeypatch.undo()
    decoded = chunked_logits(decoder, ids, [NUM_PREFILLED])
    assert difference(decoded, expected) <= TOLERANCE


# bfloat16: our own rounding must not be worse than transformers' own.
NUM_SEEDS = 6
NO_WORSE = 1.25


def divergence(logits: Tensor, reference: Tensor) -> float:
    """Mean Kullback-Leibler divergence from the reference's next-token distribution."""
    expected, log_got = reference.log_softmax(-1), logits.log_softmax(-1)
    return float((expected.exp() * (expected - log_got)).sum(-1).mean())


def root_mean_square(logits: Tensor, reference: Tensor) -> float:
    return float((logits - reference).square().mean().sqrt())


@pytest.mark.parametrize("raw", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("decode", [False, True], ids=["prefill", "decode"])
def test_logits_in_bfloat16_are_no_worse_than_those_of_transformers(tmp_path, raw, decode):
    ours, theirs = [], []
    for seed in range(NUM_SEEDS):
        model = reference_of(raw, seed)
        folder = SPELLINGS["hub"](tmp_path / str(seed), raw, model)
        ids = ids_of(raw, seed)
        expected = reference_logits(model, ids)
        rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        decoder = load(folder, torch.bfloat16).decoder
        if decode:
            got = chunked_logits(decoder, ids, [NUM_PREFILLED])
            peer = reference_decode_logits(rounded, ids, NUM_PREFILLED)
        else:
            got, peer = prefill_logits(decoder, ids), reference_logits(rounded, ids)
        ours.append((divergence(got, expected), root_mean_square(got, expected)))
        theirs.append((divergence(peer, expected), root_mean_square(peer, expected)))
    means = torch.tensor(ours).mean(0), torch.tensor(theirs).mean(0)
    assert (means[1] > 0).all()  # else the reference would not have been rounded
    assert (means[0] <= NO_WORSE * means[1]).all()


def test_a_stored_head_is_used_even_where_the_config_says_tied(tmp_path):
    raw = {**DENSE, "tie_word_embeddings": False}
    model = reference_of(raw)
    SPELLINGS["hub"](tmp_path, raw, model)
    loaded = load(tmp_path, config_changes={"tie_word_embeddings": True})
    ids = ids_of(raw)
    logits = prefill_logits(loaded.decoder, ids)
    assert difference(logits, reference_logits(model, ids)) <= TOLERANCE


def test_only_the_last_logits_are_computed_unless_all_are_asked_for(tmp_path):
    model = reference_of(MOE)
    loaded = load(SPELLINGS["hub"](tmp_path, MOE, model))
    ids = ids_of(MOE)
    last = loaded.decoder.forward(ids, loaded.decoder.new_kv_cache(64))
    assert last.shape == (1, MOE["vocab_size"])
    assert difference(last, reference_logits(model, ids)[-1:]) <= TOLERANCE
