"""Checkpoints of the training model in hub layout: tensor names, saving and loading."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erniechat.mini.layers import Block, MoE
from erniechat.mini.model import Model

FLOAT32_NAMES = ("mlp.gate.weight", "e_score_correction_bias")


def _block_slots(block: Block) -> dict[str, Tensor]:
    slots = {
        "input_layernorm.weight": block.input_norm.data,
        "post_attention_layernorm.weight": block.post_norm.data,
    }
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        slots[f"self_attn.{name}.weight"] = getattr(block.attention, name).data
    moe = block.mlp if isinstance(block.mlp, MoE) else None
    dense = moe.shared if moe else block.mlp
    prefix = "mlp.shared_experts." if moe else "mlp."
    for name in ("gate_proj", "up_proj", "down_proj"):
        slots[f"{prefix}{name}.weight"] = getattr(dense, name).data
    if moe:
        slots["mlp.gate.weight"] = moe.gate.data
        slots["mlp.moe_statics.e_score_correction_bias"] = moe.bias[None]
        for expert_idx in range(len(moe.gate)):
            for name in ("gate", "up", "down"):
                experts = getattr(moe, f"expert_{name}").data
                slots[f"mlp.experts.{expert_idx}.{name}_proj.weight"] = experts[expert_idx]
    return slots


def hub_slots(model: Model) -> dict[str, Tensor]:
    """Each hub name with the parameter, or the view of it, that holds this tensor."""
    slots = {"model.embed_tokens.weight": model.embed.data, "model.norm.weight": model.norm.data}
    for layer_idx, block in enumerate(model.blocks):
        for name, slot in _block_slots(block).items():
            slots[f"model.layers.{layer_idx}.{name}"] = slot
    return slots


def hub_tensors(model: Model) -> dict[str, Tensor]:
    """Each hub name with its tensor on the CPU, bfloat16 except the router."""
    return {
        name: slot.to(
            "cpu",
            torch.float32 if name.endswith(FLOAT32_NAMES) else torch.bfloat16,
            copy=True,
        ).contiguous()
        for name, slot in hub_slots(model).items()
    }


def _shard(tensors: dict[str, Tensor], num_shards: int) -> list[dict[str, Tensor]]:
    """Share the tensors out in order, by bytes."""
    total_nbytes = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, Tensor]] = [{}]
    shard_nbytes = 0
    for name, tensor in tensors.items():
        full = shard_nbytes + tensor.nbytes > total_nbytes / num_shards
        if full and len(shards) < num_shards:
            shards.append({})
            shard_nbytes = 0
        shards[-1][name] = tensor
        shard_nbytes += tensor.nbytes
    return shards


def save_checkpoint(model: Model, folder: Path | str, num_shards: int = 3) -> None:
    """Write config, weights and index into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hub_tensors(model)
    shards = _shard(tensors, num_shards)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")


def load_checkpoint(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Model:
    """Read a checkpoint with hub names; the router stays in float32.

    Raises:
        ValueError: If a tensor is missing or left over.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        tensors.update(load_file(file))
    model = Model(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    slots = hub_slots(model)
    if differing := sorted(slots.keys() ^ tensors.keys()):
        raise ValueError(
            f"{folder} and its config.json differ in {len(differing)} tensors, the first "
            f"{differing[0]}; use a whole checkpoint"
        )
    for name, slot in slots.items():
        slot.copy_(tensors[name])
    model = model.to(device)
    for name, parameter in model.named_parameters():
        if not name.endswith("mlp.gate"):
            parameter.data = parameter.data.to(dtype)
    return model
