"""The families ernie4_5 (dense) and ernie4_5_moe: config spellings and tensor names of the hub."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.config import ModelConfig
from erniechat.model.family import Dense, Family, Piece, Role, Routed, Slot, Unused, shown

ROPE_THETA = 500_000.0  # default of both families where a config has none
FUSED_EXPERTS = re.compile(r"model\.layers\.(0|[1-9][0-9]*)\.mlp\.experts\.(gate_up|down)_proj")
RENAMED_BIAS = ".mlp.gate.moe_statics.e_score_correction_bias"
HUB_BIAS = ".mlp.moe_statics.e_score_correction_bias"
MAX_SIZE = 1 << 24  # beyond it is a damaged file, not a model
MAX_COUNT = 1 << 14  # of layers, and of experts in one
MAX_NUMBER = 1e30  # stays finite in float32
MAX_TENSORS = 1 << 20  # the largest published checkpoint has 10 thousand


def _integer(
    raw: Mapping[str, Any], key: str, default: int, low: int = 1, high: int = MAX_SIZE
) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CheckpointError(
            f"config.json: {key} must be a whole number from {low} to {high}, got {shown(value)}",
            "fetch the file again",
        )
    return value


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key)
    value = default if value is None else value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= MAX_NUMBER:  # NaN fails too
        raise CheckpointError(
            f"config.json: {key} must be a number above 0, got {shown(value)}",
            "fetch the file again",
        )
    return float(value)


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key) or False
    if not isinstance(value, bool):
        raise CheckpointError(
            f"config.json: {key} must be true or false, got {shown(value)}", "fetch the file again"
        )
    return value


def _rope_theta(raw: Mapping[str, Any]) -> float:
    """The base frequency in either spelling: a key of its own, or inside rope_parameters."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise CheckpointError(
            f"config.json: rope_parameters must be an object, got {shown(scaling)}",
            "fetch the file again",
        )
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        raise UnsupportedModelError(
            f'config.json: rope type {shown(kind)} is not supported, only "default" is',
            "use a checkpoint with its original positions",
        )
    return _number({**raw, **scaling}, "rope_theta", ROPE_THETA)


class Ernie45:
    """ERNIE 4.5, dense or with experts. Source: transformers, models/ernie4_5 and ernie4_5_moe.

    Args:
        model_type: ``ernie4_5`` or ``ernie4_5_moe``.
    """

    def __init__(self, model_type: Literal["ernie4_5", "ernie4_5_moe"]) -> None:
        self.model_type = model_type
        self._is_moe = model_type == "ernie4_5_moe"

    def parse_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """See `Family.parse_config`. Missing keys take the defaults of transformers."""
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(
                f"config.json: hidden_act {shown(raw['hidden_act'])} is not supported, only "
                '"silu" is',
                "every published ERNIE 4.5 uses it",
            )
        moe = self._is_moe
        hidden_size = _integer(raw, "hidden_size", 2560 if moe else 1024)
        num_layers = _integer(raw, "num_hidden_layers", 28 if moe else 18, high=MAX_COUNT)
        num_heads = _integer(raw, "num_attention_heads", 20 if moe else 16)
        kv_default = num_heads if "num_key_value_heads" in raw else (4 if moe else 2)
        derived = hidden_size // num_heads
        head_dim_default = derived if moe or "head_dim" in raw else 128
        use_bias = _flag(raw, "use_bias")
        config = ModelConfig(
            vocab_size=_integer(raw, "vocab_size", 103424),
            hidden_size=hidden_size,
            intermediate_size=_integer(raw, "intermediate_size", 12288 if moe else 3072),
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=_integer(raw, "num_key_value_heads", kv_default),
            head_dim=_integer(raw, "head_dim", head_dim_default),
            max_position_embeddings=_integer(raw, "max_position_embeddings", 131072),
            rms_norm_eps=_number(raw, "rms_norm_eps", 1e-5),
            rope_theta=_rope_theta(raw),
            use_bias=use_bias,
            head_bias=use_bias and moe,
            **(self._moe_values(raw, num_layers) if moe else {}),
        )
        self._check(config)
        return config

    def _moe_values(self, raw: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
        start = _integer(raw, "moe_layer_start_index", 1, low=0)
        end = _integer(raw, "moe_layer_end_index", -1, low=-1)
        end = num_layers - 1 if end == -1 else end
        interval = _integer(raw, "moe_layer_interval", 1)
        layers = range(num_layers)
        return {
            "moe_layers": tuple(i for i in layers if (i + 1) % interval == 0 and start <= i <= end),
            "num_experts": _integer(
                raw, _spelled(raw, "moe_num_experts", "num_experts"), 64, high=MAX_COUNT
            ),
            "num_experts_per_tok": _integer(raw, _spelled(raw, "moe_k", "num_experts_per_tok"), 6),
            "moe_intermediate_size": _integer(raw, "moe_intermediate_size", 1536),
            "num_shared_experts": _integer(raw, "moe_num_shared_experts", 2, low=0),
            "router_norm_min": _number(raw, "moe_norm_min", 1e-12),
        }

    def _check(self, config: ModelConfig) -> None:
        if config.num_attention_heads % config.num_key_value_heads:
            raise CheckpointError(
                f"config.json: {config.num_attention_heads} attention heads are not a multiple of "
                f"{config.num_key_value_heads} key-value heads",
                "fetch the file again",
            )
        if config.head_dim % 2:
            raise CheckpointError(
                f"config.json: head_dim {config.head_dim} is odd, and rotary positions turn pairs",
                "fetch the file again",
            )
        if config.moe_layers and config.num_experts_per_tok > config.num_experts:
            raise CheckpointError(
                f"config.json: moe_k {config.num_experts_per_tok} is more than the "
                f"{config.num_experts} experts there are",
                "fetch the file again",
            )

        if config.num_hidden_layers * (9 + 3 * config.num_experts) > MAX_TENSORS:
            raise CheckpointError(
                f"config.json: {config.num_hidden_layers} layers of {config.num_experts} experts "
                "are more than any model has",
                "fetch the file again",
            )

    def tensors(self, config: ModelConfig) -> Mapping[str, Slot]:
        """See `Family.tensors`."""
        out: dict[str, Slot] = {}
        hidden = config.hidden_size
        embedding = (config.vocab_size, hidden)
        out["model.embed_tokens.weight"] = Dense("embed_tokens", embedding, "embedding")
        out["model.norm.weight"] = Dense("norm", (hidden,), "norm")
        # Whether the head is tied is read off the tensors: configs in the wild contradict them.
        out["lm_head.weight"] = Dense("lm_head", embedding, "embedding", optional=True)
        if config.head_bias:
            out["lm_head.bias"] = Dense("lm_head.bias", (config.vocab_size,), "bias")
        for layer_idx in range(config.num_hidden_layers):
            out.update(_layer_tensors(config, layer_idx))
        return out

    def pieces(self, config: ModelConfig, name: str) -> tuple[Piece, ...] | Unused | None:
        """See `Family.pieces`."""
        if "mtp" in name:
            return Unused("multi-token prediction is not used for decoding")
        if name.endswith(RENAMED_BIAS):
            return (Piece(name.removesuffix(RENAMED_BIAS) + HUB_BIAS),)
        if found := FUSED_EXPERTS.fullmatch(name):
            layer_idx, matrix = found.groups()
            return tuple(_fused_pieces(config, int(layer_idx), matrix))
        return None


def _spelled(raw: Mapping[str, Any], hub: str, transformers: str) -> str:
    """The spelling of a key that the config uses."""
    return transformers if hub not in raw and transformers in raw else hub


def _layer_tensors(config: ModelConfig, layer_idx: int) -> Iterator[tuple[str, Slot]]:
    hub, ours = f"model.layers.{layer_idx}.", f"layers.{layer_idx}."
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    yield hub + "input_layernorm.weight", Dense(ours + "input_norm", (hidden,), "norm")
    post = Dense(ours + "post_attention_norm", (hidden,), "norm")
    yield hub + "post_attention_layernorm.weight", post
    for piece, (letter, rows) in enumerate(zip("qkv", (query, key_value, key_value), strict=True)):
        at, bias = f"{hub}self_attn.{letter}_proj.", config.use_bias
        yield from _linear(at, ours + "qkv", (rows, hidden), bias, piece, 3)
    at = hub + "self_attn.o_proj."
    yield from _linear(at, ours + "o", (hidden, query), config.use_bias)
    if layer_idx not in config.moe_layers:
        yield from _mlp(config, hub + "mlp.", ours + "mlp.", config.intermediate_size)
        return
    router = (config.num_experts, hidden)
    yield hub + "mlp.gate.weight", Dense(ours + "router", router, "router")
    bias_slot = Dense(ours + "correction_bias", (config.num_experts,), "correction_bias")
    yield f"model.layers.{layer_idx}{HUB_BIAS}", bias_slot
    if config.num_shared_experts:
        width = config.moe_intermediate_size * config.num_shared_experts
        yield from _mlp(config, hub + "mlp.shared_experts.", ours + "shared.", width)
    wide, tall = (config.moe_intermediate_size, hidden), (hidden, config.moe_intermediate_size)
    for expert_idx in range(config.num_experts):
        at = f"{hub}mlp.experts.{expert_idx}."
        yield at + "gate_proj.weight", Routed(layer_idx, expert_idx, "gate", wide)
        yield at + "up_proj.weight", Routed(layer_idx, expert_idx, "up", wide)
        yield at + "down_proj.weight", Routed(layer_idx, expert_idx, "down", tall)


def _linear(
    hub: str,
    ours: str,
    shape: tuple[int, int],
    bias: bool,
    piece: int = 0,
    num_pieces: int = 1,
) -> Iterator[tuple[str, Slot]]:
    role: Role = "linear"
    yield hub + "weight", Dense(ours, shape, role, piece, num_pieces)
    if bias:
        yield hub + "bias", Dense(ours + ".bias", shape[:1], "bias", piece, num_pieces)


def _mlp(config: ModelConfig, hub: str, ours: str, width: int) -> Iterator[tuple[str, Slot]]:
    wide, bias = (width, config.hidden_size), config.use_bias
    yield from _linear(hub + "gate_proj.", ours + "gate_up", wide, bias, 0, 2)
    yield from _linear(hub + "up_proj.", ours + "gate_up", wide, bias, 1, 2)
    yield from _linear(hub + "down_proj.", ours + "down", wide[::-1], bias)


def _fused_pieces(config: ModelConfig, layer_idx: int, matrix: str) -> Iterator[Piece]:
    """The experts inside ``gate_up_proj`` [E, 2I, H] (gate first) or ``down_proj`` [E, H, I]."""
    width, hidden = config.moe_intermediate_size, config.hidden_size
    joined = (config.num_experts, 2 * width, hidden)
    down = (config.num_experts, hidden, width)
    for expert_idx in range(config.num_experts):
        at = f"model.layers.{layer_idx}.mlp.experts.{expert_idx}."
        if matrix == "down":
            yield Piece(at + "down_proj.weight", (expert_idx,), down)
        else:
            yield Piece(at + "gate_proj.weight", (expert_idx, slice(0, width)), joined)
            yield Piece(at + "up_proj.weight", (expert_idx, slice(width, 2 * width)), joined)


ERNIE4_5: Family = Ernie45("ernie4_5")
ERNIE4_5_MOE: Family = Ernie45("ernie4_5_moe")
