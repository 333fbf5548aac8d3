"""One decoded token as one native call: checked descriptors of a whole decoder."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import ExpertWeights
from quant.kernels.native.backend import SERVED, NativeBackend
from quant.kernels.native.buffers import DTYPES, address, matrix
from quant.kernels.native.library import Expert, Matrix, Step, StepLayer, check_status
from quant.tensor import QuantTensor

ACTIVATION_DTYPES = tuple(DTYPES)


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The shape of a decoder; without routed experts their three numbers are 0.

    Attributes:
        vocab_size: Rows of embedding and head.
        hidden_size: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head, even.
        num_experts: Routed experts of a layer.
        num_experts_per_tok: Routed experts a token uses.
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
        experts: The routed experts by id.
    """

    input_norm: Tensor
    post_norm: Tensor
    qkv: QuantTensor
    o: QuantTensor
    gated: ExpertWeights | None
    router: Tensor | None = None
    correction_bias: Tensor | None = None
    experts: Sequence[ExpertWeights] = ()


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
        layers = (StepLayer * len(weights.blocks))()
        for layer_idx, block in enumerate(weights.blocks):
            layers[layer_idx] = self._layer(block, self.counts[layer_idx])
        self._kept.append(layers)
        widths = [expert.down.shape[1] for block in weights.blocks for expert in block.experts[:1]]
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
            *(0, 0, head),
            *(len(weights.blocks), sizes.hidden_size, sizes.num_heads, sizes.num_kv_heads),
            *(sizes.head_dim, sizes.num_experts, sizes.num_experts_per_tok),
            *(max(widths, default=0), max(gated, default=0)),
            *(0, 0, 0, sizes.norm_eps, sizes.router_norm_min, DTYPES[dtype], path),
        )

    def _norm(self, weight: Tensor, name: str) -> int:
        """A norm's weight as the activations' dtype has it, in float32."""
        values = weight.to(self._dtype).float().contiguous()
        self._kept.append(values)
        return address(values, name, (self.sizes.hidden_size,), torch.float32)

    def _expert(self, expert: ExpertWeights) -> Expert:
        hidden_size, width = self.sizes.hidden_size, expert.down.shape[1]
        gate_up = _matrix(expert.gate_up, "gate and up", (2 * width, hidden_size))
        view = Expert(gate_up, _matrix(expert.down, "down", (hidden_size, width)))
        self._kept.append(view)
        return view

    def _layer(self, block: BlockWeights, counts: Tensor) -> StepLayer:
        sizes = self.sizes
        width = sizes.num_heads * sizes.head_dim
        all_heads = width + 2 * sizes.num_kv_heads * sizes.head_dim
        gated = None if block.gated is None else self._expert(block.gated)
        router = bias = 0
        views = [self._expert(expert) for expert in block.experts]
        table = (ctypes.c_void_p * len(views))(*map(ctypes.addressof, views))
        self._kept.append(table)
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

    def forward(self, token_id: int, position: int, kv_cache: Tensor) -> Tensor:
        """Read one token, write its keys and values, and add its choices to `counts`.

        Args:
            token_id: The token.
            position: How many tokens the cache holds before it.
            kv_cache: ``[2, num_layers, num_kv_heads, capacity, head_dim]`` of the step's dtype;
                changed at the position.

        Returns:
            Logits, float32 ``[vocab_size]``.

        Raises:
            QuantError: If the token or position does not exist, the cache is not what it should
                be, or an activation is not finite.
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
        check_status(self._native.handle.native_step(step))
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
    formats, widths = set(), set()
    for block in weights.blocks:
        routed = block.router is not None
        if routed != (block.correction_bias is not None) or (routed != bool(block.experts)):
            raise QuantError("a block has a router, a correction bias and experts, or none of them")
        if routed and len(block.experts) != sizes.num_experts:
            raise QuantError(f"a block has {len(block.experts)} of {sizes.num_experts} experts")
        if not routed and block.gated is None:
            raise QuantError("a block has no MLP")
        gated = [] if block.gated is None else [block.gated]
        widths |= {expert.down.shape[1] for expert in block.experts}
        linears = [block.qkv, block.o]
        linears += [part for expert in (*gated, *block.experts) for part in _parts(expert)]
        formats |= {weight.format for weight in linears}
    if len(formats) > 1 or not formats <= set(SERVED):
        raise QuantError(f"all linear maps must be in one of {SERVED}, got {sorted(formats)}")
    if len(widths) > 1:
        raise QuantError(f"experts have widths of {sorted(widths)}; all must have one")
    if widths and not 1 <= sizes.num_experts_per_tok <= sizes.num_experts:
        raise QuantError(
            f"a token cannot use {sizes.num_experts_per_tok} of {sizes.num_experts} experts"
        )


def _parts(expert: ExpertWeights) -> tuple[QuantTensor, QuantTensor]:
    return expert.gate_up, expert.down
