"""Random weights of a model's shape, quantized from the start: speed without a checkpoint."""

import dataclasses
from collections import defaultdict

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.family import Dense, Family, Routed, routed_name
from quant.copy import MemoryWeights

ROUTER_STD = 0.02  # over a normed input of 2,560 features: logits with a deviation of about 1


def with_layers(config: ModelConfig, num_layers: int) -> ModelConfig:
    """The same model with only its first layers."""
    return dataclasses.replace(
        config,
        num_hidden_layers=num_layers,
        moe_layers=tuple(i for i in config.moe_layers if i < num_layers),
    )


def random_weights(
    config: ModelConfig, family: Family, formats: Formats, seed: int = 0
) -> MemoryWeights:
    """Every weight of a checkpoint of this shape, made of random codes; no float matrix is made.

    Args:
        config: The shape.
        family: Names its tensors.
        formats: How weights are held.
        seed: The same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = MemoryWeights()
    dense: dict[str, list[Dense]] = defaultdict(list)
    experts: set[tuple[int, int]] = set()
    for slot in family.tensors(config).values():
        if isinstance(slot, Routed):
            experts.add((slot.layer_idx, slot.expert_idx))
        elif not slot.optional:
            dense[slot.target].append(slot)
    for target, slots in dense.items():
        rows = sum(slot.shape[0] for slot in slots)
        role = slots[0].role
        if role in ("linear", "embedding"):
            weight_format = formats.linear if role == "linear" else formats.embedding
            backend = formats.linear_backend if role == "linear" else formats.embedding_backend
            shape = (rows, slots[0].shape[1])
            weights[target] = backend.prepare(weight_format.random(shape, generator))
        else:
            weights[target] = _plain(slots[0], rows, generator)
    width, hidden = config.moe_intermediate_size, config.hidden_size
    for layer_idx, expert_idx in sorted(experts):
        gate_up = formats.linear.random((2 * width, hidden), generator)
        down = formats.linear.random((hidden, width), generator)
        prepare = formats.linear_backend.prepare
        weights[routed_name(layer_idx, expert_idx, "gate_up")] = prepare(gate_up)
        weights[routed_name(layer_idx, expert_idx, "down")] = prepare(down)
    return weights


def _plain(slot: Dense, rows: int, generator: torch.Generator) -> Tensor:
    """Norms of one, routers that spread tokens over all experts, no biases."""
    if slot.role == "norm":
        return torch.ones(rows, dtype=torch.bfloat16)
    if slot.role == "router":
        return torch.empty(slot.shape).normal_(0, ROUTER_STD, generator=generator)
    return torch.zeros(rows)
