"""A decoder from finished weights, wherever they lie."""

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder, DecoderWeights
from erniechat.model.family import routed_name
from quant.copy import WeightSource
from quant.errors import QuantError
from quant.experts.store import ResidentExpertStore
from quant.kernels.base import ExpertWeights
from quant.linear import QuantLinear
from quant.tensor import QuantTensor


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
        weight = weights[name]
        if not isinstance(weight, QuantTensor):
            raise QuantError(f"{name} is not a quantized matrix; delete the quantized copy")
        return weight.to(device)

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
    embedding = matrices.pop("embed_tokens")
    head = matrices.pop("lm_head", embedding)
    linears = {
        name: QuantLinear(weight, formats.linear_backend, tensors.get(name + ".bias"))
        for name, weight in matrices.items()
    }
    linears["lm_head"] = QuantLinear(head, formats.embedding_backend, tensors.get("lm_head.bias"))
    store = ResidentExpertStore(experts, config.num_hidden_layers, formats.linear_backend)
    return Decoder(config, DecoderWeights(linears, tensors, embedding), store, dtype)
