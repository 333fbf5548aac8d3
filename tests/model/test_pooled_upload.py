"""Experts on their way to a GPU's pool: each in the slot that the table names, whole."""

import torch

from erniechat.model.expert_assembly import ExpertPlaces, pooled_experts, slots_for
from erniechat.model.expert_slots import expert_of
from erniechat.model.families import family_of
from erniechat.model.synthetic import random_weights
from quant.experts.pool import split_gated
from quant.kernels.base import ExpertWeights
from quant.upload import BackgroundUpload
from tests.model.random_checkpoint import SMALL, formats_named

CPU = torch.device("cpu")
FAMILY = family_of(SMALL)
CONFIG = FAMILY.parse_config(SMALL)


def same(one: ExpertWeights, other: ExpertWeights) -> bool:
    return all(
        torch.equal(getattr(one, matrix).parts[name], part)
        for matrix in ("gate_up", "down")
        for name, part in getattr(other, matrix).parts.items()
    )


def test_every_expert_is_in_its_slot_once_the_upload_was_waited_for():
    formats = formats_named("nf4")
    weights = random_weights(CONFIG, FAMILY, formats)
    places = ExpertPlaces()
    placed = slots_for(CONFIG, weights, CPU, 2, places, torch.bfloat16)
    upload = BackgroundUpload(
        CPU, lambda put: placed.fill(weights, put), placed.nbytes, is_staged=True
    )
    store = pooled_experts(CONFIG, weights, formats, placed, upload, places, torch.bfloat16).store
    assert upload.wait()
    assert upload.done_nbytes == upload.nbytes
    slots = [slot for i in CONFIG.moe_layers for slot in store.slot_of[i].tolist()]
    assert sorted(slots) == list(range(2 * (4 + 2)))
    for layer_idx in CONFIG.moe_layers:
        shared = split_gated(
            weights[f"layers.{layer_idx}.shared.gate_up"],
            weights[f"layers.{layer_idx}.shared.down"],
            2,
        )
        experts = [expert_of(weights, layer_idx, i) for i in range(4)] + shared
        for slot, expert in zip(store.slot_of[layer_idx].tolist(), experts, strict=True):
            assert same(store.pool.expert(slot), expert)
