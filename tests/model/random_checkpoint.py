"""A random MoE checkpoint in hub spelling, made without transformers, with values hard to round."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from erniechat.model.checkpoint import Checkpoint
from erniechat.model.conversion import Formats
from erniechat.model.families import family_of
from erniechat.model.readings import Reading, plan_readings
from quant.formats import FORMATS
from quant.formats.nf4 import NF4
from quant.kernels.reference import ReferenceBackend

SMALL: dict[str, Any] = {
    "model_type": "ernie4_5_moe",
    "vocab_size": 208,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 64,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "tie_word_embeddings": True,
}


def hard_matrix(rows: int, columns: int, seed: int) -> Tensor:
    """Normal values at scales from 1e-38 to 1e4, zeros, ties of nf4, and blocks of one value."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight *= 10.0 ** torch.linspace(-38, 4, rows)[:, None]
    values = NF4.codebook.sort().values
    weight[3] = 0
    weight[5, :15] = (values[:-1] + values[1:]) / 2 * weight[5].abs().max()
    weight[7] = -0.75
    weight[9, 1:] = 1e-45  # beside one large value
    weight[11, 0] = 65280.0  # as bf16 has it
    return weight


def write_random(folder: Path, raw: dict[str, Any] = SMALL, num_shards: int = 2) -> Path:
    """Its folder; an expert's matrices lie in different shards."""
    folder.mkdir(parents=True, exist_ok=True)
    family = family_of(raw)
    slots = family.tensors(family.parse_config(raw))
    shards: list[dict[str, Tensor]] = [{} for _ in range(num_shards)]
    weight_map = {}
    for seed, (name, slot) in enumerate(slots.items()):
        if name == "lm_head.weight":
            continue
        if len(slot.shape) == 2 and "gate.weight" not in name:
            tensor = hard_matrix(*slot.shape, seed).bfloat16()
        else:
            tensor = torch.randn(slot.shape, generator=torch.Generator().manual_seed(seed))
        shard_idx = seed * num_shards // len(slots)
        shards[shard_idx][name] = tensor
        weight_map[name] = f"model-{shard_idx}.safetensors"
    for shard_idx, tensors in enumerate(shards):
        save_file(tensors, folder / f"model-{shard_idx}.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def readings_of(folder: Path) -> list[Reading]:
    """The plan of a checkpoint folder."""
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.config)
    return plan_readings(checkpoint, family, family.parse_config(checkpoint.config))


def formats_named(name: str) -> Formats:
    """Linear maps in one format, the embedding in int8, both as they are."""
    backend = ReferenceBackend()
    return Formats(FORMATS[name], FORMATS["int8"], backend, backend)
