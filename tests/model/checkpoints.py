"""Tiny random checkpoints of both families, in every spelling a checkpoint can have."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from erniechat.model.assembly import assemble
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.delivery import convert
from erniechat.model.families import family_of
from erniechat.model.readings import plan_readings
from quant.copy import MemoryWeights
from quant.formats import FORMATS
from quant.kernels import BACKENDS

Raw = dict[str, Any]

# Both shapes are as small as the 4-bit layout allows: 64 inputs, 16 outputs.
DENSE: Raw = {
    "model_type": "ernie4_5",
    "vocab_size": 208,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # 4 · 32 is not hidden_size, as in the 0.3B
    "max_position_embeddings": 256,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "use_bias": False,
    "tie_word_embeddings": True,
}
MOE: Raw = {
    **{key: value for key, value in DENSE.items() if key != "head_dim"},
    "model_type": "ernie4_5_moe",
    "num_hidden_layers": 3,
    "moe_intermediate_size": 64,
    "moe_num_experts": 8,
    "moe_k": 3,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
}
# What hub configs hold beside, without meaning for a reply.
HUB_EXTRAS: Raw = {
    "_attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "moe_capacity": [64, 64, 64],
    "moe_gate": "topk",
    "moe_use_aux_free": True,
    "num_nextn_predict_layers": 1,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
ARCHITECTURES = {
    "ernie4_5": "Ernie4_5_ForCausalLM",  # the spelling of early checkpoints
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
}
CLASSES = {
    "ernie4_5": (transformers.Ernie4_5Config, transformers.Ernie4_5ForCausalLM),
    "ernie4_5_moe": (transformers.Ernie4_5_MoeConfig, transformers.Ernie4_5_MoeForCausalLM),
}
FLOAT32_NAMES = (".mlp.gate.weight", "e_score_correction_bias")


def reference_model(raw: Mapping[str, Any], seed: int = 0) -> transformers.PreTrainedModel:
    """Transformers' model of a config with random weights, float32, every value exact in bf16.

    Only what checkpoints keep in float32 is not rounded: the router, and a correction bias whose
    experts differ by about as much as their probabilities do, on top of a large constant.
    """
    config_class, model_class = CLASSES[raw["model_type"]]
    keys = {key: value for key, value in raw.items() if key not in ("model_type", "rope_theta")}
    if "rope_theta" in raw:
        keys["rope_parameters"] = {"rope_type": "default", "rope_theta": raw["rope_theta"]}
    model = model_class(config_class(**keys)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("e_score_correction_bias"):
                spread = 0.02 * torch.rand(parameter.shape, generator=generator)
                parameter.copy_(30 + spread)
            elif name.endswith("mlp.gate.weight"):
                parameter.copy_(noise / 4)
            elif "norm" in name:
                parameter.copy_((1 + noise / 4).bfloat16())
            else:
                parameter.copy_((noise / 6).bfloat16())
    return model


def hub_tensors(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """Its weights as the hub has them: a tensor per expert, bf16 but for the router."""
    out: dict[str, Tensor] = {}
    for name, tensor in plain_tensors(model).items():
        if name.endswith(".experts.gate_up_proj"):
            at = name.removesuffix("gate_up_proj")
            for expert_idx, (gate, up) in enumerate(t.chunk(2) for t in tensor):
                out[f"{at}{expert_idx}.gate_proj.weight"] = gate.contiguous()
                out[f"{at}{expert_idx}.up_proj.weight"] = up.contiguous()
        elif name.endswith(".experts.down_proj"):
            at = name.removesuffix("down_proj")
            for expert_idx, down in enumerate(tensor):
                out[f"{at}{expert_idx}.down_proj.weight"] = down.contiguous()
        else:
            out[name.replace(".mlp.gate.moe_statics.", ".mlp.moe_statics.")] = tensor
    return out


def plain_tensors(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """Its weights under the names they have in memory: fused experts, the bias in the gate."""
    tied = model.config.tie_word_embeddings
    return {
        name: tensor.clone() if name.endswith(FLOAT32_NAMES) else tensor.bfloat16()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def write_folder(
    folder: Path, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], num_shards: int = 1
) -> Path:
    """A checkpoint folder; with several shards, neighbouring tensors lie in different ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(raw)), "utf-8")
    if num_shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for shard_idx in range(num_shards):
        file = f"model-{shard_idx + 1:05}-of-{num_shards:05}.safetensors"
        names = list(tensors)[shard_idx::num_shards]
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


def save_by_transformers(folder: Path, raw: Raw, model: transformers.PreTrainedModel) -> Path:
    """As `save_pretrained` writes it: float32, rope_parameters, dtype."""
    model.save_pretrained(folder)
    return folder


def save_hub(folder: Path, raw: Raw, model: transformers.PreTrainedModel) -> Path:
    """As Baidu's converter writes it, a multi-token prediction block included."""
    config = {**HUB_EXTRAS, **raw, "architectures": [ARCHITECTURES[raw["model_type"]]]}
    tensors = hub_tensors(model)
    if "moe_k" in raw:
        tensors["model.mtp_emb_norm.0.weight"] = torch.ones(raw["hidden_size"])
        tensors["model.mtp_block.0.self_attn.q_proj.weight"] = torch.ones(7, 7)
    return write_folder(folder, config, tensors)


def save_fused(folder: Path, raw: Raw, model: transformers.PreTrainedModel) -> Path:
    """Fused experts, the renamed bias and three shards that cut across layers and experts."""
    config = {key: value for key, value in raw.items() if key != "rope_theta"}
    if "rope_theta" in raw:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": raw["rope_theta"]}
    return write_folder(folder, {**config, "dtype": "float32"}, plain_tensors(model), 3)


def save_scattered(folder: Path, raw: Raw, model: transformers.PreTrainedModel) -> Path:
    """Hub spelling, the three matrices of every expert in three different files."""
    return write_folder(folder, {**HUB_EXTRAS, **raw}, hub_tensors(model), 5)


Saver = Callable[[Path, Raw, transformers.PreTrainedModel], Path]
SPELLINGS: Mapping[str, Saver] = {
    "transformers": save_by_transformers,
    "hub": save_hub,
    "fused": save_fused,
    "scattered": save_scattered,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A decoder and what it was made of."""

    decoder: Decoder
    config: ModelConfig
    weights: MemoryWeights


def formats_of(name: str, backend: str = "") -> Formats:
    """Linear maps in one format by one backend, the embedding in bf16 or int8."""
    default = {"bf16": "torch", "int8": "torch"}.get(name, "reference")
    linear_backend = BACKENDS[backend or default]()
    embedding = FORMATS["bf16" if name == "bf16" else "int8"]
    return Formats(FORMATS[name], embedding, linear_backend, BACKENDS["torch"]())


def load(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    format_name: str = "bf16",
    config_changes: Mapping[str, Any] | None = None,
) -> Loaded:
    """A checkpoint folder through the whole path: headers, plan, conversion, assembly."""
    checkpoint = Checkpoint(folder)
    raw = {**checkpoint.config, **(config_changes or {})}
    family = family_of(raw)
    config = family.parse_config(raw)
    formats = formats_of(format_name)
    weights = MemoryWeights()
    convert(plan_readings(checkpoint, family, config), formats, weights)
    decoder = assemble(config, weights, formats, torch.device("cpu"), dtype)
    return Loaded(decoder, config, weights)


def prefill_logits(decoder: Decoder, input_ids: list[int]) -> Tensor:
    """Logits of every token, all read at once."""
    cache = decoder.new_kv_cache(len(input_ids))
    return decoder.forward(input_ids, cache, all_logits=True)


def chunked_logits(decoder: Decoder, input_ids: list[int], sizes: list[int]) -> Tensor:
    """Logits of every token, read in chunks of the sizes given and then one by one."""
    cache, out, begin = decoder.new_kv_cache(len(input_ids)), [], 0
    while begin < len(input_ids):
        end = begin + (sizes[len(out)] if len(out) < len(sizes) else 1)
        out.append(decoder.forward(input_ids[begin:end], cache, all_logits=True))
        begin = end
    return torch.cat(out)


@torch.inference_mode()
def reference_logits(model: transformers.PreTrainedModel, input_ids: list[int]) -> Tensor:
    """Transformers' logits of every token, float32."""
    return model(input_ids=torch.tensor([input_ids]), use_cache=False).logits[0].float()


@torch.inference_mode()
def reference_decode_logits(
    model: transformers.PreTrainedModel, input_ids: list[int], num_prefilled: int
) -> Tensor:
    """Transformers' logits of every token: a prefill, then one at a time with its cache."""
    out = model(input_ids=torch.tensor([input_ids[:num_prefilled]]), use_cache=True)
    logits = [out.logits[0]]
    for token_id in input_ids[num_prefilled:]:
        past = out.past_key_values
        out = model(input_ids=torch.tensor([[token_id]]), past_key_values=past, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits).float()


def random_ids(num_tokens: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Token ids from a seed."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, vocab_size, (num_tokens,), generator=generator).tolist()
    return ids


@cache
def cached_reference(raw_json: str, seed: int = 0) -> transformers.PreTrainedModel:
    """`reference_model` of a config given as JSON; tests share it and must not change it."""
    return reference_model(json.loads(raw_json), seed)
