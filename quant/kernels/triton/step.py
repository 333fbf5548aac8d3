"""One decoded token as a row of kernel launches: buffers, grids and tuning. Imports Triton.

A layer is six launches: QKV; attention; output projection with residual; router; gate, up and
SiLU of all chosen experts; down, weighted sum and residual. Everything that changes from token to
token is on the device, so the launches can be captured once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from quant.kernels.triton.attention import attention_kernel
from quant.kernels.triton.decode import (
    add_kernel,
    advance_kernel,
    embed_kernel,
    gate_up_kernel,
    head_kernel,
    pick_kernel,
    project_kernel,
    route_kernel,
)
from quant.kernels.triton.tables import BITS, int8_table
from quant.tensor import QuantTensor

INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Warps a program has, and into how many programs a sum is split.

    Attributes:
        project_warps: Of QKV with 4-bit weights.
        gate_warps: Of gate and up with 4-bit weights.
        add_warps: Of the products that add to the residual stream, with 4-bit weights.
        row_warps: Of products with int8 and bf16 rows.
        project_splits: Programs for 16 rows of the output projection, at most.
        down_splits: Programs for 16 rows of the experts' down product, at most.
        head_rows: Rows of a program of the head.
        attention_splits: Programs for one key and value head.
        attention_tile: Tokens that attention reads at a time.
        attention_warps: Of attention.
        attention_stages: Tiles that attention has on the way.
        pdl: Launch a kernel before its predecessor has ended. Waiting programs take places from
            working ones: it gained nothing when it was measured (1.535 against 1.532 ms).
    """

    project_warps: int = 8
    gate_warps: int = 2
    add_warps: int = 4
    row_warps: int = 8
    project_splits: int = 5
    down_splits: int = 8
    head_rows: int = 16
    attention_splits: int = 32
    attention_tile: int = 128
    attention_warps: int = 8
    attention_stages: int = 2
    pdl: bool = False


@dataclass(frozen=True, slots=True)
class StepSizes:
    """What the kernels must know of a model; all of them multiples of 64 where they are widths."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    expert_width: int
    rms_norm_eps: float
    router_norm_min: float


@dataclass(frozen=True, slots=True)
class StepLayer:
    """A layer's weights on the device; ``mlp`` for one without experts, else ``router``.

    Attributes:
        qkv: ``[(num_heads + 2 · num_kv_heads) · head_dim, hidden_size]``.
        o: ``[hidden_size, num_heads · head_dim]``.
        input_norm: ``[hidden_size]``.
        post_norm: ``[hidden_size]``.
        mlp: gate_up and down.
        router: float32 ``[num_experts, hidden_size]`` and correction bias ``[num_experts]``.
    """

    qkv: QuantTensor
    o: QuantTensor
    input_norm: Tensor
    post_norm: Tensor
    mlp: tuple[QuantTensor, QuantTensor] | None = None
    router: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class StepExperts:
    """The expert pool as the kernels see it.

    Attributes:
        gate_up: Codes and scales of slot 0, tensors that begin there.
        down: As gate_up.
        code_stride: Elements of codes from slot to slot.
        scale_stride: Elements of scales from slot to slot.
        slot_of: int32 ``[num_layers, num_experts + num_shared]``.
        counts: int64, the same shape.
        format: Of the experts.
    """

    gate_up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    code_stride: int
    scale_stride: int
    slot_of: Tensor
    counts: Tensor
    format: str


def _pieces(num_inputs: int, most: int) -> int:
    """Pieces of whole blocks of 64 into which inputs can be cut evenly, at most so many."""
    blocks = num_inputs // 64
    return max(p for p in range(1, most + 1) if blocks % p == 0)


def _divisor(number: int, most: int) -> int:
    return max(p for p in range(1, most + 1) if number % p == 0)


def _parts(weight: QuantTensor) -> tuple[Tensor, Tensor]:
    """Codes as the kernels read them, and scales."""
    parts = list(weight.parts.values())
    codes = parts[0].view(torch.int32) if weight.format == "int8" else parts[0]
    return codes, parts[-1]


class DecodeStep:
    """Buffers and launches of one token.

    Args:
        sizes: Of the model.
        layers: Its layers.
        embedding: ``[vocab_size, hidden_size]``, int8 or bf16 rows.
        head: As embedding.
        final_norm: ``[hidden_size]``.
        experts: None for a dense model.
        inverse_frequencies: float32 ``[head_dim / 2]``.
        tuning: How kernels are cut.

    Attributes:
        state: int64 on the device: position of the token to read, and address and capacity of
            the KV cache.
        token: int64 ``[1]``, the token to read; `pick` writes the next one.
        seen: uint8 ``[vocab_size]``, 1 for tokens under the repetition penalty.
        penalty: float32 ``[1]``.
        logits: float32 ``[vocab_size]``.
    """

    def __init__(
        self,
        sizes: StepSizes,
        layers: Sequence[StepLayer],
        embedding: QuantTensor,
        head: QuantTensor,
        final_norm: Tensor,
        experts: StepExperts | None,
        inverse_frequencies: Tensor,
        tuning: Tuning | None = None,
    ) -> None:
        self.sizes = sizes
        self.tuning = tuning or Tuning()
        self._layers = layers
        self._embedding = embedding
        self._head = head
        self._final_norm = final_norm
        self._experts = experts
        self._inverse_frequencies = inverse_frequencies
        self._device = final_norm.device
        self._linear_format = layers[0].qkv.format
        self._pdl = self._has_pdl()
        self._make_buffers()

    def _has_pdl(self) -> bool:
        if INTERPRETED or not self.tuning.pdl:
            return False
        return torch.cuda.get_device_capability(self._device) >= (9, 0)

    def _new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _make_buffers(self) -> None:
        sizes, tuning = self.sizes, self.tuning
        hidden, heads = sizes.hidden_size, sizes.num_heads * sizes.head_dim
        kv = sizes.num_kv_heads
        slots = sizes.num_experts_per_tok + sizes.num_shared_experts
        inner = max(sizes.intermediate_size, slots * sizes.expert_width)
        self._code_dtype = torch.bfloat16 if self._linear_format == "bf16" else torch.int8
        self._x = self._new(hidden)
        self._squares = self._new(hidden // 16)
        self._xq, self._xs = self._new(hidden, dtype=self._code_dtype), self._new(hidden // 16)
        self._aq, self._as = self._new(inner, dtype=self._code_dtype), self._new(inner // 16)
        self._oq, self._os = self._new(heads, dtype=self._code_dtype), self._new(heads // 16)
        self._angles = self._new(sizes.head_dim)
        self._qkv = self._new(heads + 2 * kv * sizes.head_dim)
        most = max(tuning.project_splits, tuning.down_splits, 8)
        self._partial = self._new(hidden // 16 * most * 16)
        self._counters = self._new(hidden // 16 + kv + 1, dtype=torch.int32)
        splits, self._padded_rep = tuning.attention_splits, 16
        self._attention_acc = self._new(kv, splits, self._padded_rep, sizes.head_dim)
        self._attention_max = self._new(kv, splits, self._padded_rep)
        self._attention_sum = self._new(kv, splits, self._padded_rep)
        self._router_logits = self._new(max(sizes.num_experts, 1))
        self._slots = self._new(sizes.num_layers, max(slots, 1), dtype=torch.int32)
        self._weights = self._new(sizes.num_layers, max(slots, 1)) + 1.0
        self._dense_slot = self._new(1, dtype=torch.int32)
        if self._experts is not None and sizes.num_shared_experts:
            shared = self._experts.slot_of[:, sizes.num_experts :]
            self._slots[:, sizes.num_experts_per_tok :] = shared
        num_best = triton.cdiv(sizes.vocab_size, tuning.head_rows)
        self._best = self._new(num_best)
        self._best_at = self._new(num_best, dtype=torch.int64)
        self.logits = self._new(sizes.vocab_size)
        self.state = self._new(3, dtype=torch.int64)
        self.token = self._new(1, dtype=torch.int64)
        self.seen = self._new(sizes.vocab_size, dtype=torch.uint8)
        self.penalty = self._new(1) + 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for t in vars(self).values() if isinstance(t, Tensor))

    def _words(self, codes: Tensor) -> Tensor:
        """An activation buffer as its readers want it."""
        return codes if codes.dtype == torch.bfloat16 else codes.view(torch.int32)

    def _launch(self) -> dict[str, Any]:
        """Options of every launch."""
        options: dict[str, Any] = {"PDL": self._pdl}
        if self._pdl:
            options["launch_pdl"] = True
        return options

    def _options(self, format_name: str, warps: int) -> dict[str, Any]:
        """Options of a product with weights of a format; warps are for 4 bits."""
        bits = BITS[format_name]
        warps = warps if bits == 4 else self.tuning.row_warps
        table = dict(zip(("T0", "T1", "T2", "T3"), int8_table(format_name), strict=True))
        return {
            "BITS": bits,
            "WARPS": warps,
            "PTX": not INTERPRETED,
            "num_warps": warps,
            **table,
            **self._launch(),
        }

    @property
    def _norm_options(self) -> dict[str, int]:
        hidden = self.sizes.hidden_size
        return {"HIDDEN": hidden, "PADDED_GROUPS": triton.next_power_of_2(hidden // 16)}

    def forward(self, num_tokens: int) -> None:
        """From ``token`` to ``logits`` of the first num_tokens ids, and the likeliest in parts."""
        hidden, eps = self.sizes.hidden_size, self.sizes.rms_norm_eps
        codes, *_, absmax = (*self._embedding.parts.values(), _parts(self._embedding)[1])
        embed_kernel[(hidden // 16,)](
            codes, absmax, self.token, self.state, self._inverse_frequencies,
            self._layers[0].input_norm, self._x, self._squares, self._xq, self._xs, self._angles,
            HIDDEN=hidden, D=self.sizes.head_dim, EMBED_BITS=BITS[self._embedding.format],
            BITS=BITS[self._linear_format], num_warps=1, **self._launch(),
        )  # fmt: skip
        for layer_idx, layer in enumerate(self._layers):
            last = layer_idx + 1 == len(self._layers)
            norm = self._final_norm if last else self._layers[layer_idx + 1].input_norm
            self._attend(layer_idx, layer)
            if layer.mlp is None:
                self._route(layer_idx, layer)
                self._run_experts(layer_idx, norm)
            else:
                self._run_mlp(layer.mlp, norm)
        head_codes, head_absmax = _parts(self._head)
        grid = (triton.cdiv(num_tokens, self.tuning.head_rows),)
        warps = self.tuning.row_warps
        head_kernel[grid](
            head_codes, head_absmax, self._words(self._xq), self._xs, self._squares,
            self.seen, self.penalty, self.logits, self._best, self._best_at, eps, num_tokens,
            BITS=BITS[self._head.format], ROWS=self.tuning.head_rows, WARPS=warps,
            PTX=not INTERPRETED, num_warps=warps, **self._norm_options, **self._launch(),
        )  # fmt: skip

    def _attend(self, layer_idx: int, layer: StepLayer) -> None:
        sizes, tuning = self.sizes, self.tuning
        qkv_codes, qkv_scales = _parts(layer.qkv)
        project_kernel[(layer.qkv.shape[0] // 16,)](
            qkv_codes, qkv_scales, self._words(self._xq), self._xs, self._squares, self._qkv,
            sizes.rms_norm_eps, **self._norm_options,
            **self._options(layer.qkv.format, tuning.project_warps),
        )  # fmt: skip
        attention_kernel[(sizes.num_kv_heads, tuning.attention_splits)](
            self._qkv, self._angles, self.state, layer_idx, sizes.head_dim**-0.5,
            self._attention_acc, self._attention_max, self._attention_sum,
            self._counters[sizes.hidden_size // 16 :], self._oq, self._os,
            NUM_LAYERS=sizes.num_layers, NUM_KV=sizes.num_kv_heads,
            REP=sizes.num_heads // sizes.num_kv_heads, RP=self._padded_rep, D=sizes.head_dim,
            BT=tuning.attention_tile, SPLITS=tuning.attention_splits,
            BITS=BITS[layer.o.format], PTX=not INTERPRETED, num_warps=tuning.attention_warps,
            num_stages=tuning.attention_stages, **self._launch(),
        )  # fmt: skip
        inputs = layer.o.shape[1]
        pieces = _pieces(inputs, tuning.project_splits)
        self._add(
            _parts(layer.o), (0, 0), (self._oq, self._os), layer.post_norm, layer.o.format,
            width=inputs // pieces, num_slots=pieces, splits=pieces,
        )  # fmt: skip

    def _add(
        self,
        weight: tuple[Tensor, Tensor],
        strides: tuple[int, int],
        inputs: tuple[Tensor, Tensor],
        norm: Tensor,
        format_name: str,
        *,
        width: int,
        num_slots: int,
        splits: int,
        routing: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Launch add_kernel; routing are slots and weights of a layer of experts."""
        slots, weights = routing or (self._dense_slot, self._weights)
        add_kernel[(self.sizes.hidden_size // 16, splits)](
            *weight, slots, weights, *strides, self._words(inputs[0]), inputs[1],
            self._x, norm, self._squares, self._xq, self._xs, self._partial, self._counters,
            WIDTH=width, NUM_SLOTS=num_slots, SPLIT=splits, ROUTED=routing is not None,
            FIRST_FIXED=self._first_fixed(slots),
            **self._options(format_name, self.tuning.add_warps),
        )  # fmt: skip

    def _first_fixed(self, slots: Tensor) -> int:
        """From which slot on the table is the same for every token."""
        return 0 if slots is self._dense_slot else self.sizes.num_experts_per_tok

    def _route(self, layer_idx: int, layer: StepLayer) -> None:
        sizes, experts = self.sizes, self._experts
        if layer.router is None or experts is None:
            raise ValueError(f"layer {layer_idx} has neither an MLP nor experts")
        router, bias = layer.router
        route_kernel[(sizes.num_experts,)](
            self._x, layer.post_norm, self._squares, router, bias, self._router_logits,
            self._counters[sizes.hidden_size // 16 + sizes.num_kv_heads :],
            experts.slot_of[layer_idx], self._slots[layer_idx], self._weights[layer_idx],
            experts.counts[layer_idx], sizes.rms_norm_eps, sizes.router_norm_min,
            PADDED_HIDDEN=triton.next_power_of_2(sizes.hidden_size),
            NUM_EXPERTS=sizes.num_experts,
            PADDED_EXPERTS=triton.next_power_of_2(sizes.num_experts),
            TOP_K=sizes.num_experts_per_tok, num_warps=4, **self._norm_options, **self._launch(),
        )  # fmt: skip

    def _gate_up(
        self, weight: tuple[Tensor, Tensor], strides: tuple[int, int], slots: Tensor,
        num_slots: int, width: int, format_name: str,
    ) -> None:  # fmt: skip
        gate_up_kernel[(width // 16, num_slots)](
            *weight, slots, *strides, self._words(self._xq), self._xs, self._squares,
            self._aq, self._as, self.sizes.rms_norm_eps,
            WIDTH=width, FIRST_FIXED=self._first_fixed(slots), **self._norm_options,
            **self._options(format_name, self.tuning.gate_warps),
        )  # fmt: skip

    def _run_experts(self, layer_idx: int, norm: Tensor) -> None:
        sizes, experts = self.sizes, self._experts
        if experts is None:
            raise ValueError(f"layer {layer_idx} has no experts")
        num_slots = sizes.num_experts_per_tok + sizes.num_shared_experts
        strides = (experts.code_stride, experts.scale_stride)
        slots, weights = self._slots[layer_idx], self._weights[layer_idx]
        self._gate_up(
            experts.gate_up, strides, slots, num_slots, sizes.expert_width, experts.format
        )
        self._add(
            experts.down, strides, (self._aq, self._as), norm, experts.format,
            width=sizes.expert_width, num_slots=num_slots,
            splits=_divisor(num_slots, self.tuning.down_splits), routing=(slots, weights),
        )  # fmt: skip

    def _run_mlp(self, mlp: tuple[QuantTensor, QuantTensor], norm: Tensor) -> None:
        gate_up, down = mlp
        width = down.shape[1]
        self._gate_up(_parts(gate_up), (0, 0), self._dense_slot, 1, width, gate_up.format)
        pieces = _pieces(width, 8)
        self._add(
            _parts(down), (0, 0), (self._aq, self._as), norm, down.format,
            width=width // pieces, num_slots=pieces, splits=pieces,
        )  # fmt: skip

    def pick(self, num_tokens: int) -> None:
        """Write the likeliest token of the last `forward` to ``token``."""
        num_best = triton.cdiv(num_tokens, self.tuning.head_rows)
        pick_kernel[(1,)](
            self._best, self._best_at, self.token, NUM=num_best,
            PADDED=triton.next_power_of_2(num_best), num_warps=8, **self._launch(),
        )  # fmt: skip

    def advance(self) -> None:
        """Count ``token`` as seen, and the position up."""
        advance_kernel[(1,)](self.token, self.state, self.seen, num_warps=1, **self._launch())
