"""Decoding on the CPU: one token through the whole decoder in one call of the native kernels.

Where some experts are on the disk, the call stops at a layer that chose one of them, and goes on
when it is in RAM. A prompt goes layer by layer, with native products and attention.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.kv_cache import KVCache
from erniechat.model.layers import inverse_frequencies
from quant.experts.disk import DiskExpertStore
from quant.experts.placement import ExpertKey
from quant.experts.store import ResidentExpertStore
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend, causal_attention
from quant.kernels.native.step import (
    ACTIVATION_DTYPES,
    BlockWeights,
    DecodeStep,
    StepSizes,
    StepWeights,
)
from quant.linear import QuantLinear
from quant.tensor import QuantTensor


class NativeStep:
    """Reads single tokens, as `Decoder` does piece by piece.

    Args:
        step: The decoder's weights.
        store: Gets the counts of routings, and brings experts that are on the disk.
    """

    def __init__(self, step: DecodeStep, store: ResidentExpertStore | DiskExpertStore) -> None:
        self._step = step
        self._store = store
        self._disk = store if isinstance(store, DiskExpertStore) else None
        if self._disk is not None:
            _follow(self._disk, step)

    def reads(self, num_tokens: int) -> bool:
        """Whether `read` takes so many tokens: a prompt is read faster by whole products."""
        return num_tokens == 1

    def read(self, input_ids: list[int], kv_cache: KVCache) -> Tensor:
        """Logits float32 ``[1, vocab_size]`` after one token whose place the cache has made.

        Raises:
            QuantError: If the token does not exist, an activation is not finite, or the disk
                cannot be read.
        """
        (token_id,) = input_ids
        bring = None if self._disk is None else self._bring
        try:
            logits = self._step.forward(token_id, len(kv_cache) - 1, kv_cache.data, bring)
        finally:
            self._count()
        if self._disk is not None:
            self._disk.end_token()
        return logits[None]

    def _count(self) -> None:
        self._store.count(self._step.counts)
        self._step.counts.zero_()

    def _bring(self, layer_idx: int, expert_ids: list[int]) -> None:
        """Have a layer's choice in RAM; what the token used before it weighs who must leave."""
        self._count()
        if self._disk is not None:
            self._disk.bring(layer_idx, expert_ids)


def _follow(store: DiskExpertStore, step: DecodeStep) -> None:
    """Let a step know of each expert in RAM, from when it is first used until it leaves."""

    def place(key: ExpertKey, weights: ExpertWeights) -> None:
        if not step.knows(*key):
            step.place(*key, weights)

    store.on_take = place
    store.on_leave = lambda key: step.forget(*key)


def why_not_native(
    config: ModelConfig, linears: Mapping[str, QuantLinear], dtype: torch.dtype
) -> str:
    """Why a decoder cannot be read in native calls; empty if it can."""
    if config.use_bias or config.head_bias:
        return "the model has biases"
    if dtype not in ACTIVATION_DTYPES:
        return f"activations are in {dtype}"
    if not all(isinstance(linear.backend, NativeBackend) for linear in linears.values()):
        return "not all products are the native kernels'"
    return ""


def prompt_attention(
    config: ModelConfig, linears: Mapping[str, QuantLinear], dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Attention of many tokens in one native call, where the native kernels run the decoder."""
    backend = linears["lm_head"].backend
    if why_not_native(config, linears, dtype) or not isinstance(backend, NativeBackend):
        return None
    return partial(causal_attention, backend=backend)


def build_native_step(
    config: ModelConfig,
    linears: Mapping[str, QuantLinear],
    tensors: Mapping[str, Tensor],
    embedding: QuantTensor,
    experts: Mapping[int, Sequence[ExpertWeights]],
    store: ResidentExpertStore | DiskExpertStore,
    dtype: torch.dtype,
) -> NativeStep | None:
    """The step of a decoder; None where `why_not_native` has a reason or the store guesses.

    Args:
        config: Its shape.
        linears: By name; see `DecoderWeights`, as for tensors.
        tensors: By name.
        embedding: ``[vocab_size, hidden_size]``.
        experts: Routed experts by layer; those of a store with a disk are brought by it.
        store: Gets the counts of routings.
        dtype: Of activations and the KV cache.

    Raises:
        QuantError: If a weight is not what the config says.
    """
    backend = linears["lm_head"].backend
    if why_not_native(config, linears, dtype) or not isinstance(backend, NativeBackend):
        return None
    if isinstance(store, DiskExpertStore) and store.guesses:  # by each layer's activations
        return None
    blocks = [
        _block(config, layer_idx, linears, tensors, experts.get(layer_idx))
        for layer_idx in range(config.num_hidden_layers)
    ]
    weights = StepWeights(
        blocks,
        tensors["norm"],
        embedding,
        linears["lm_head"].weight,
        inverse_frequencies(config.head_dim, config.rope_theta, torch.device("cpu")),
    )
    sizes = StepSizes(
        config.vocab_size,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.num_experts if config.moe_layers else 0,
        config.num_experts_per_tok if config.moe_layers else 0,
        config.moe_intermediate_size if config.moe_layers else 0,
        config.rms_norm_eps,
        config.router_norm_min,
    )
    return NativeStep(DecodeStep(sizes, weights, dtype, backend), store)


def _block(
    config: ModelConfig,
    layer_idx: int,
    linears: Mapping[str, QuantLinear],
    tensors: Mapping[str, Tensor],
    experts: Sequence[ExpertWeights] | None,
) -> BlockWeights:
    at = f"layers.{layer_idx}."
    routed = layer_idx in config.moe_layers
    mlp = at + ("shared" if routed else "mlp")
    gated = None
    if not routed or config.num_shared_experts:
        gated = ExpertWeights(linears[mlp + ".gate_up"].weight, linears[mlp + ".down"].weight)
    return BlockWeights(
        tensors[at + "input_norm"],
        tensors[at + "post_attention_norm"],
        linears[at + "qkv"].weight,
        linears[at + "o"].weight,
        gated,
        tensors[at + "router"] if routed else None,
        tensors[at + "correction_bias"] if routed else None,
        (experts or [None] * config.num_experts) if routed else (),
    )
