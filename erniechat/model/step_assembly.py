"""The launches that a GPU captures, from a decoder's weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.layers import inverse_frequencies
from quant.experts.pool import PooledExpertStore
from quant.experts.tiered import TieredExpertStore
from quant.kernels.triton.backend import ExpertTable, chunk_launchers, decode_launchers
from quant.kernels.triton.step_weights import CpuExperts, StepExperts, StepLayer, StepSizes
from quant.linear import QuantLinear
from quant.tensor import QuantTensor

WIDTH_UNIT = 64  # inputs that share a scale in 4 bits; the kernels cut all widths so


def why_not_captured(config: ModelConfig) -> str:
    """Why the captured step cannot run a model of this shape; empty if it can."""
    if config.use_bias or config.head_bias:
        return "the model has biases"
    heads = config.num_attention_heads * config.head_dim
    widths = [config.hidden_size, heads, config.intermediate_size]
    if config.moe_layers:
        widths.append(config.moe_intermediate_size)
    odd = [width for width in widths if width % WIDTH_UNIT]
    if odd:
        return f"widths {odd} are not multiples of {WIDTH_UNIT}"
    if config.head_dim not in (64, 128, 256):
        return f"a head of {config.head_dim} is not 64, 128 or 256 wide"
    if config.num_attention_heads // config.num_key_value_heads > 16:
        return "more than 16 query heads share a key head"
    return ""


def build_step(
    config: ModelConfig,
    linears: Mapping[str, QuantLinear],
    tensors: Mapping[str, Tensor],
    embedding: QuantTensor,
    store: PooledExpertStore | None,
) -> Any:  # its class comes with Triton
    """The launches of one token from a decoder's weights."""
    layers = []
    for layer_idx in range(config.num_hidden_layers):
        at = f"layers.{layer_idx}."
        has_experts = layer_idx in config.moe_layers
        layers.append(
            StepLayer(
                linears[at + "qkv"].weight,
                linears[at + "o"].weight,
                tensors[at + "input_norm"],
                tensors[at + "post_attention_norm"],
                mlp=None
                if has_experts
                else (linears[at + "mlp.gate_up"].weight, linears[at + "mlp.down"].weight),
                router=(tensors[at + "router"], tensors[at + "correction_bias"])
                if has_experts
                else None,
            )
        )
    sizes = StepSizes(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok if config.moe_layers else 0,
        num_shared_experts=config.num_shared_experts if config.moe_layers else 0,
        expert_width=config.moe_intermediate_size,
        rms_norm_eps=config.rms_norm_eps,
        router_norm_min=config.router_norm_min,
    )
    return decode_launchers().DecodeStep(
        sizes,
        layers,
        embedding,
        linears["lm_head"].weight,
        tensors["norm"],
        None if store is None else _experts(store),
        inverse_frequencies(config.head_dim, config.rope_theta, embedding.device),
    )


def _experts(store: PooledExpertStore) -> StepExperts:
    pool = store.pool
    example = pool.expert(0)

    def first(matrix: str) -> tuple[Tensor, Tensor]:
        """Codes and scales of slot 0 as the kernels read them."""
        weight: QuantTensor = getattr(example, matrix)
        names = list(weight.parts)
        codes, scales = pool.part(0, matrix, names[0]), pool.part(0, matrix, names[-1])
        return (codes.view(torch.int32) if weight.format == "int8" else codes), scales

    gate_up, down = first("gate_up"), first("down")
    return StepExperts(
        gate_up,
        down,
        pool.slot_nbytes // gate_up[0].itemsize,
        pool.slot_nbytes // gate_up[1].itemsize,
        store.slot_of,
        store.routing_counts,
        example.gate_up.format,
        _cpu_experts(store) if isinstance(store, TieredExpertStore) else None,
    )


def _cpu_experts(store: TieredExpertStore) -> CpuExperts:
    blocks = store.server.blocks
    return CpuExperts(
        store.num_slots,
        store.cpu_share,
        store.decode_hits,
        store.server.request.data_ptr(),
        store.server.answer.data_ptr(),
        (
            blocks.rows.data_ptr(),
            blocks.answers.data_ptr(),
            blocks.ids.data_ptr(),
            blocks.weights.data_ptr(),
        ),
        store.prompts.masks,
        store.prompts.sources,
        store.prompts.targets,
        store.pool.slot_nbytes,
    )


def build_chunk(step: Any, store: PooledExpertStore | None) -> Any:
    """The launches of a chunk of a prompt over the weights of a step.

    None if they could not reach all experts.
    """
    if isinstance(store, TieredExpertStore) and store.has_unaddressable:
        return None
    tables: Mapping[int, ExpertTable] = {} if store is None else store.tables
    if isinstance(store, TieredExpertStore):
        tables = store.prompts.tables
    return chunk_launchers().PrefillChunk(
        step,
        {layer_idx: table.gate_up_at for layer_idx, table in tables.items()},
        {layer_idx: table.down_at for layer_idx, table in tables.items()},
    )
