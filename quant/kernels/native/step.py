"""One decoded token as one native call: checked descriptors of a whole decoder."""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import ExpertWeights
from quant.kernels.native.backend import SERVED, NativeBackend
from quant.kernels.native.buffers import DTYPES, address, matrix
from quant.kernels.native.library import (
    NOT_HERE,
    Expert,
    Matrix,
    Step,
    StepLayer,
    check_status,
)
from quant.tensor import QuantTensor

ACTIVATION_DTYPES = tuple(DTYPES)

Bring = Callable[[int, list[int]], None]


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The shape of a decoder; without routed experts their four numbers are 0.

    Attributes:
        vocab_size: Rows of embedding and head.
        hidden_size: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head, even.
        num_experts: Routed experts of a layer.
        num_experts_per_tok: Routed experts a token uses.
        expert_width: Inner width of a routed expert.
        norm_eps: Added to the mean square in norms.
        router_norm_min: Least sum by which routing weights are divided.
    """

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    expert_width: int
    norm_eps: float
    router_norm_min: float


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One decoder block.

    Attributes:
        input_norm: ``[hidden_size]``, of any float dtype, as is post_norm.
        post_norm: Before the MLP.
        qkv: ``[(num_heads + 2 · num_kv_heads) · head_dim, hidden_size]``.
        o: ``[hidden_size, num_heads · head_dim]``.
        gated: A dense block's MLP or the shared experts; None without shared experts.
        router: float32 ``[num_experts, hidden_size]``, None in a dense block.
        correction_bias: float32 ``[num_experts]``, None in a dense block.
        experts: The routed experts by id; None for those that are not in memory yet.
    """

    input_norm: Tensor
    post_norm: Tensor
    qkv: QuantTensor
    o: QuantTensor
    gated: ExpertWeights | None
    router: Tensor | None = None
    correction_bias: Tensor | None = None
    experts: Sequence[ExpertWeights | None] = ()


@dataclass(frozen=True, slots=True)
class StepWeights:
    """A decoder.

    Attributes:
        blocks: In order.
        norm: Before the head.
        embedding: int8 or bf16 ``[vocab_size, hidden_size]``.
        head: Quantized ``[vocab_size, hidden_size]``.
        inverse_frequencies: float32 ``[head_dim / 2]``, radians a position.
    """

    blocks: Sequence[BlockWeights]
    norm: Tensor
    embedding: QuantTensor
    head: QuantTensor
    inverse_frequencies: Tensor


class DecodeStep:
    """Reads one token at a time through a decoder, in one parallel region.

    Args:
        sizes: The decoder's shape.
        weights: Prepared for the backend; kept alive by this.
        dtype: Of activations and of the cache, bfloat16 or float32.
        backend: Its library and instruction set are used.

    Attributes:
        counts: How often each expert was chosen, int64 ``[num_layers, num_experts]``; whoever
            moves them elsewhere sets them to zero.

    Raises:
        QuantError: If a weight is not of its shape, a router not in float32, or the linear maps
            are not all 4-bit or all int8.
    """

    def __init__(
        self, sizes: StepSizes, weights: StepWeights, dtype: torch.dtype, backend: NativeBackend
    ) -> None:
        _check_sizes(sizes, weights, dtype)
        self.sizes = sizes
        self.counts = torch.zeros(len(weights.blocks), sizes.num_experts, dtype=torch.int64)
        self._dtype = dtype
        self._native, path = backend.chosen()
        self._kept: list[object] = [weights]  # what the descriptors point to
        self._format = weights.blocks[0].qkv.format
        self._tables = [(ctypes.c_void_p * sizes.num_experts)() for _ in weights.blocks]
        self._placed: dict[tuple[int, int], tuple[Expert, ExpertWeights]] = {}
        layers = (StepLayer * len(weights.blocks))()
        for layer_idx, block in enumerate(weights.blocks):
            layers[layer_idx] = self._layer(layer_idx, block)
        self._kept.append(layers)
        gated = [block.gated.down.shape[1] for block in weights.blocks if block.gated is not None]
        absmax = weights.embedding.parts.get("absmax")
        head = _matrix(weights.head, "the head", (sizes.vocab_size, sizes.hidden_size))
        angles = address(
            weights.inverse_frequencies,
            "inverse_frequencies",
            (sizes.head_dim // 2,),
            torch.float32,
        )
        self._step = Step(
            *(ctypes.addressof(layers), self._norm(weights.norm, "norm"), angles),
            *(_embedding(weights.embedding, sizes), 0 if absmax is None else absmax.data_ptr()),
            *(0, 0, 0, 0, head),
            *(len(weights.blocks), sizes.hidden_size, sizes.num_heads, sizes.num_kv_heads),
            *(sizes.head_dim, sizes.num_experts, sizes.num_experts_per_tok),
            *(sizes.expert_width, max(gated, default=0)),
            *(0, 0, 0, -1, sizes.norm_eps, sizes.router_norm_min, DTYPES[dtype], path),
        )

    def _norm(self, weight: Tensor, name: str) -> int:
        """A norm's weight as the activations' dtype has it, in float32."""
        values = weight.to(self._dtype).float().contiguous()
        self._kept.append(values)
        return address(values, name, (self.sizes.hidden_size,), torch.float32)

    def _expert(self, expert: ExpertWeights) -> Expert:
        hidden_size, width = self.sizes.hidden_size, expert.down.shape[1]
        gate_up = _matrix(expert.gate_up, "gate and up", (2 * width, hidden_size))
        return Expert(gate_up, _matrix(expert.down, "down", (hidden_size, width)))

    def place(self, layer_idx: int, expert_idx: int, expert: ExpertWeights) -> None:
        """Say where an expert is; it is kept alive. Not while a token is read.

        Raises:
            QuantError: If it is not of the step's format and shape.
        """
        _check_expert(expert, self.sizes, self._format)
        view = self._expert(expert)
        self._placed[layer_idx, expert_idx] = view, expert
        self._tables[layer_idx][expert_idx] = ctypes.addressof(view)

    def forget(self, layer_idx: int, expert_idx: int) -> None:
        """Let go of an expert, if it was placed. Not while a token is read."""
        self._tables[layer_idx][expert_idx] = None
        self._placed.pop((layer_idx, expert_idx), None)

    def knows(self, layer_idx: int, expert_idx: int) -> bool:
        """Whether an expert was placed."""
        return (layer_idx, expert_idx) in self._placed

    def _layer(self, layer_idx: int, block: BlockWeights) -> StepLayer:
        sizes = self.sizes
        width = sizes.num_heads * sizes.head_dim
        all_heads = width + 2 * sizes.num_kv_heads * sizes.head_dim
        gated = None if block.gated is None else self._expert(block.gated)
        self._kept.append(gated)
        router = bias = 0
        table, counts = self._tables[layer_idx], self.counts[layer_idx]
        for expert_idx, expert in enumerate(block.experts):
            if expert is not None:
                self.place(layer_idx, expert_idx, expert)
        if block.router is not None and block.correction_bias is not None:
            shape = (sizes.num_experts, sizes.hidden_size)
            router = address(block.router, "a router", shape, torch.float32)
            bias = address(block.correction_bias, "a correction bias", shape[:1], torch.float32)
        return StepLayer(
            *(self._norm(block.input_norm, "input_norm"), self._norm(block.post_norm, "post_norm")),
            *(router, bias, ctypes.addressof(table)),
            *(0 if gated is None else ctypes.addressof(gated), counts.data_ptr()),
            _matrix(block.qkv, "qkv", (all_heads, sizes.hidden_size)),
            _matrix(block.o, "o", (sizes.hidden_size, width)),
        )

    def forward(
        self, token_id: int, position: int, kv_cache: Tensor, bring: Bring | None = None
    ) -> Tensor:
        """Read one token, write its keys and values, and add its choices to `counts`.

        Args:
            token_id: The token.
            position: How many tokens the cache holds before it.
            kv_cache: ``[2, num_layers, num_kv_heads, capacity, head_dim]`` of the step's dtype;
                changed at the position.
            bring: Asked with a layer and all experts of its choice, in ascending order, where one
                of them was not placed; it places them, and the token goes on.

        Returns:
            Logits, float32 ``[vocab_size]``.

        Raises:
            QuantError: If the token or position does not exist, the cache is not what it should
                be, an activation is not finite, or an expert was not brought.
        """
        sizes, step = self.sizes, Step.from_buffer_copy(self._step)  # calls may overlap
        capacity = kv_cache.shape[3] if kv_cache.dim() == 5 else 0
        shape = (2, len(self.counts), sizes.num_kv_heads, capacity, sizes.head_dim)
        step.kv_cache = address(kv_cache, "kv_cache", shape, self._dtype)
        if not 0 <= token_id < sizes.vocab_size:
            raise QuantError(f"token {token_id} is not one of {sizes.vocab_size}")
        if not 0 <= position < capacity:
            raise QuantError(f"position {position} is not in a cache of {capacity}")
        logits = torch.empty(sizes.vocab_size)
        step.capacity, step.position, step.token_id = capacity, position, token_id
        step.logits = logits.data_ptr()
        hidden = torch.empty(sizes.hidden_size)
        wanted = torch.empty(1 + sizes.num_experts_per_tok, dtype=torch.int64)
        step.hidden, step.wanted = hidden.data_ptr(), wanted.data_ptr()
        while (status := self._native.handle.native_step(step)) == NOT_HERE and bring is not None:
            layer_idx, *expert_ids = wanted.tolist()
            bring(layer_idx, expert_ids)
            if not all(self.knows(layer_idx, expert_idx) for expert_idx in expert_ids):
                break
            step.begin_layer = layer_idx
        check_status(status)
        return logits


def _matrix(weight: QuantTensor, name: str, shape: tuple[int, int]) -> Matrix:
    if weight.shape != shape:
        raise QuantError(f"{name} must be {list(shape)}, got {list(weight.shape)}")
    return matrix(weight)


def _embedding(weight: QuantTensor, sizes: StepSizes) -> int:
    """The address of an embedding's rows."""
    shape = (sizes.vocab_size, sizes.hidden_size)
    if weight.format == "bf16":
        return address(weight.parts["weight"], "the embedding", shape, torch.bfloat16)
    if weight.format != "int8":
        raise QuantError(f"an embedding must be in bf16 or int8, got {weight.format}")
    address(weight.parts["absmax"], "the embedding's absmax", shape[:1], torch.float32)
    return address(weight.parts["codes"], "the embedding", shape, torch.int8)


def _check_sizes(sizes: StepSizes, weights: StepWeights, dtype: torch.dtype) -> None:
    """Refuse what C++ could not go through."""
    if dtype not in DTYPES:
        raise QuantError(f"activations must be float32 or bfloat16, got {dtype}")
    if not weights.blocks:
        raise QuantError("a decoder needs at least one block")
    if sizes.head_dim % 2 or sizes.num_kv_heads < 1 or sizes.num_heads % sizes.num_kv_heads:
        raise QuantError(
            f"{sizes.num_heads} heads of {sizes.head_dim} on {sizes.num_kv_heads}: heads must have "
            "an even width and share keys evenly"
        )
    if not (math.isfinite(sizes.norm_eps) and sizes.norm_eps >= 0):
        raise QuantError(f"norm_eps must be a number from 0 up, got {sizes.norm_eps}")
    formats = set()
    for block in weights.blocks:
        routed = block.router is not None
        if routed != (block.correction_bias is not None) or (routed != bool(block.experts)):
            raise QuantError("a block has a router, a correction bias and experts, or none of them")
        if routed and len(block.experts) != sizes.num_experts:
            raise QuantError(f"a block has {len(block.experts)} of {sizes.num_experts} experts")
        if not routed and block.gated is None:
            raise QuantError("a block has no MLP")
        gated = [] if block.gated is None else [block.gated]
        linears = [block.qkv, block.o, *(part for expert in gated for part in _parts(expert))]
        formats |= {weight.format for weight in linears}
    if len(formats) > 1 or not formats <= set(SERVED):
        raise QuantError(f"all linear maps must be in one of {SERVED}, got {sorted(formats)}")
    has_routed = any(block.router is not None for block in weights.blocks)
    if has_routed and not 1 <= sizes.num_experts_per_tok <= sizes.num_experts:
        raise QuantError(
            f"a token cannot use {sizes.num_experts_per_tok} of {sizes.num_experts} experts"
        )


def _check_expert(expert: ExpertWeights, sizes: StepSizes, format_name: str) -> None:
    """Refuse a routed expert that is not as all of them must be."""
    if expert.down.shape[1] != sizes.expert_width:
        raise QuantError(
            f"an expert has a width of {expert.down.shape[1]}; all must have {sizes.expert_width}"
        )
    formats = sorted({part.format for part in _parts(expert)} | {format_name})
    if len(formats) > 1:
        raise QuantError(f"all linear maps must be in one format, got {formats}")


def _parts(expert: ExpertWeights) -> tuple[QuantTensor, QuantTensor]:
    return expert.gate_up, expert.down
