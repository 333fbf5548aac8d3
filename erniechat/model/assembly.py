"""A decoder from finished weights, wherever they lie."""

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder, DecoderWeights
from erniechat.model.device_step import CapturedStep, build_chunk, build_step, why_not_captured
from erniechat.model.family import routed_name
from erniechat.model.layers import causal_attention
from erniechat.model.native_step import build_native_step
from quant.copy import WeightSource
from quant.errors import QuantError
from quant.experts.pool import ExpertPool, PooledExpertStore, split_gated
from quant.experts.store import ExpertStore, ResidentExpertStore
from quant.kernels.base import ExpertWeights
from quant.linear import QuantLinear
from quant.tensor import QuantTensor
from quant.upload import Uploader


def assemble(
    config: ModelConfig,
    weights: WeightSource,
    formats: Formats,
    device: torch.device,
    dtype: torch.dtype,
) -> Decoder:
    """Join weights, kernels and the expert store to a decoder.

    Args:
        config: The model's shape.
        weights: Every weight by its name in the model, prepared for the backends of formats.
        formats: Whose backends run the weights.
        device: Where the model runs; weights that are elsewhere are copied there.
        dtype: Of activations.

    Raises:
        QuantError: If a weight is not there or not of the expected kind.
    """

    def matrix(name: str) -> QuantTensor:
        return _matrix(weights, name).to(device)

    if device.type == "cuda" and formats.linear_backend.name == "triton":
        return _assemble_pooled(config, weights, formats, device, dtype)
    experts = {
        layer_idx: [
            ExpertWeights(
                matrix(routed_name(layer_idx, expert_idx, "gate_up")),
                matrix(routed_name(layer_idx, expert_idx, "down")),
            )
            for expert_idx in range(config.num_experts)
        ]
        for layer_idx in config.moe_layers
    }
    tensors: dict[str, Tensor] = {}
    matrices: dict[str, QuantTensor] = {}
    for name in weights:
        if ".experts." in name:
            continue
        weight = weights[name]
        if isinstance(weight, QuantTensor):
            matrices[name] = weight.to(device)
        else:
            tensors[name] = weight.to(device)
    store = ResidentExpertStore(experts, config.num_hidden_layers, formats.linear_backend)
    found = _decoder_weights(matrices, tensors, formats)
    step = build_native_step(config, found.linears, tensors, found.embedding, experts, store, dtype)
    attention = causal_attention if step is None else step.attention
    return Decoder(config, found, store, dtype, step, attention)


def _matrix(weights: WeightSource, name: str) -> QuantTensor:
    weight = weights[name]
    if not isinstance(weight, QuantTensor):
        raise QuantError(f"{name} is not a quantized matrix; delete the quantized copy")
    return weight


def _decoder_weights(
    matrices: dict[str, QuantTensor], tensors: dict[str, Tensor], formats: Formats
) -> DecoderWeights:
    """Each matrix with the kernels that run it; a head of its own or the embedding's."""
    embedding = matrices.pop("embed_tokens")
    head = matrices.pop("lm_head", embedding)
    linears = {
        name: QuantLinear(weight, formats.linear_backend, tensors.get(name + ".bias"))
        for name, weight in matrices.items()
    }
    linears["lm_head"] = QuantLinear(head, formats.embedding_backend, tensors.get("lm_head.bias"))
    return DecoderWeights(linears, tensors, embedding)


def _assemble_pooled(
    config: ModelConfig,
    weights: WeightSource,
    formats: Formats,
    device: torch.device,
    dtype: torch.dtype,
) -> Decoder:
    """On a GPU: experts in one pool, weights sent there as they are read, decode captured."""
    tensors: dict[str, Tensor] = {}
    matrices: dict[str, QuantTensor] = {}
    with_bias = config.use_bias  # a shared expert's bias would have to be added in the pool
    with Uploader(device) as upload:
        store = _pooled_experts(config, weights, formats, device, upload, not with_bias)
        for name in weights:
            if ".experts." in name or (store and store.has_shared and ".shared." in name):
                continue
            weight = weights[name]
            if isinstance(weight, QuantTensor):
                parts = {part: upload.move(data) for part, data in weight.parts.items()}
                matrices[name] = QuantTensor(weight.format, weight.layout, weight.shape, parts)
            else:
                tensors[name] = upload.move(weight)
    found = _decoder_weights(matrices, tensors, formats)
    step = None
    if dtype == torch.bfloat16 and not why_not_captured(config):
        launches = build_step(config, found.linears, tensors, found.embedding, store)
        step = CapturedStep(launches, build_chunk(launches, store), device)
    door: ExpertStore = store or ResidentExpertStore(
        {}, config.num_hidden_layers, formats.linear_backend
    )
    return Decoder(config, found, door, dtype, step)


def _pooled_experts(
    config: ModelConfig,
    weights: WeightSource,
    formats: Formats,
    device: torch.device,
    upload: Uploader,
    pool_shared: bool,
) -> PooledExpertStore | None:
    """Every layer's experts in slots of one pool, in the order of layers; None without any."""
    if not config.moe_layers:
        return None
    num_shared = config.num_shared_experts if pool_shared else 0

    def expert(layer_idx: int, expert_idx: int) -> ExpertWeights:
        return ExpertWeights(
            _matrix(weights, routed_name(layer_idx, expert_idx, "gate_up")),
            _matrix(weights, routed_name(layer_idx, expert_idx, "down")),
        )

    per_layer = config.num_experts + num_shared
    num_slots = per_layer * len(config.moe_layers)
    pool = ExpertPool(expert(config.moe_layers[0], 0), num_slots, device)
    slots: dict[int, range] = {}
    for order, layer_idx in enumerate(config.moe_layers):
        slots[layer_idx] = range(order * per_layer, (order + 1) * per_layer)
        for expert_idx in range(config.num_experts):
            pool.write(slots[layer_idx][expert_idx], expert(layer_idx, expert_idx), upload)
        if num_shared:
            gate_up = _matrix(weights, f"layers.{layer_idx}.shared.gate_up")
            down = _matrix(weights, f"layers.{layer_idx}.shared.down")
            for shared_idx, shared in enumerate(split_gated(gate_up, down, num_shared)):
                pool.write(slots[layer_idx][config.num_experts + shared_idx], shared, upload)
    return PooledExpertStore(
        pool, slots, config.num_hidden_layers, num_shared, formats.linear_backend
    )
