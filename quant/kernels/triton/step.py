"""One decoded token as a row of kernel launches: buffers, grids and tuning. Imports Triton.

A layer is seven launches: QKV; attention; the sum of its parts; output projection with residual;
router; gate, up and SiLU of all chosen experts; down, weighted sum and residual. Everything that
changes from token to token is on the device, so the launches can be captured once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor

from quant.kernels.triton.asking import fetch_kernel
from quant.kernels.triton.attention import attention_kernel, combine_kernel
from quant.kernels.triton.choosing import TokenChoice
from quant.kernels.triton.decode import (
    add_kernel,
    advance_kernel,
    embed_kernel,
    gate_up_kernel,
    head_kernel,
    project_kernel,
    route_kernel,
)
from quant.kernels.triton.launch_options import INTERPRETED, LaunchOptions
from quant.kernels.triton.step_buffers import StepBuffers
from quant.kernels.triton.step_weights import (
    MLP_SPLITS,
    ChoiceKind,
    CpuExperts,
    StepExperts,
    StepLayer,
    StepSizes,
    Tuning,
    divisor,
    parts_of,
    pieces,
)
from quant.kernels.triton.tables import BITS, level_tables
from quant.tensor import QuantTensor

# Of gate and up, by bits of a weight. So that in 4 bits six programs of two warps share a
# multiprocessor, and all programs of a token start at once on 132; in 8 bits four of eight warps.
# They suffice because slots are multiples of 16 elements apart; else addresses would take more.
GATE_REGISTERS = {4: 168, 8: 56, 16: None}


class DecodeStep(StepBuffers):
    """The launches of one token, with their buffers.

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
        choice: Chooses the next token from what `forward` left.
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
        slot_of = None if experts is None else experts.slot_of
        super().__init__(
            sizes, tuning or Tuning(), layers[0].qkv.format, slot_of, final_norm.device
        )
        self._layers = layers
        self._embedding = embedding
        self._head = head
        self._final_norm = final_norm
        self._experts = experts
        self._inverse_frequencies = inverse_frequencies
        self._tables: dict[tuple[str, bool], Tensor] = {}
        asks = experts is not None and experts.cpu is not None
        self._options = LaunchOptions(self.tuning, self._device, asks)
        self.choice = TokenChoice(self, self._options.every)
        self._beside = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if asks and self._device.type == "cuda"
            else None
        )

    def _words(self, codes: Tensor) -> Tensor:
        """An activation buffer as its readers want it."""
        return codes if codes.dtype == torch.bfloat16 else codes.view(torch.int64)

    def _table(self, format_name: str, exact: bool) -> Tensor:
        """The format's `level_tables` on the device, each word four times, see dots.py."""
        key = format_name, exact
        if key not in self._tables:
            words = level_tables(format_name, exact)
            self._tables[key] = words.repeat_interleave(4).to(self._device)
        return self._tables[key]

    @property
    def _norm_options(self) -> dict[str, int]:
        hidden = self.sizes.hidden_size
        return {"HIDDEN": hidden, "PADDED_GROUPS": triton.next_power_of_2(hidden // 16)}

    def forward(self, num_tokens: int) -> None:
        """From ``token`` to ``logits`` of the first num_tokens ids, and the likeliest in parts."""
        hidden, eps = self.sizes.hidden_size, self.sizes.rms_norm_eps
        codes, *_, absmax = (*self._embedding.parts.values(), parts_of(self._embedding)[1])
        embed_kernel[(hidden // 16,)](
            codes, absmax, self.token, self.state, self._inverse_frequencies,
            self._layers[0].input_norm, self._x, self._squares, self._xq, self._xs, self._angles,
            HIDDEN=hidden, D=self.sizes.head_dim, EMBED_BITS=BITS[self._embedding.format],
            BITS=BITS[self._linear_format], num_warps=1, **self._options.every,
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
        head_codes, head_absmax = parts_of(self._head)
        grid = (triton.cdiv(num_tokens, self.tuning.head_rows),)
        warps = self.tuning.row_warps
        head_kernel[grid](
            head_codes, head_absmax, self._words(self._xq), self._xs, self._squares,
            self.seen, self.penalty, self.logits, self._best, self._best_at, eps, num_tokens,
            BITS=BITS[self._head.format], ROWS=self.tuning.head_rows, WARPS=warps,
            PTX=not INTERPRETED, num_warps=warps, **self._norm_options, **self._options.every,
        )  # fmt: skip

    def _attend(self, layer_idx: int, layer: StepLayer) -> None:
        sizes, tuning = self.sizes, self.tuning
        qkv_codes, qkv_scales = parts_of(layer.qkv)
        project_kernel[(layer.qkv.shape[0] // 16,)](
            qkv_codes, qkv_scales, self._words(self._xq), self._xs,
            self._table(layer.qkv.format, True), self._squares, self._qkv, sizes.rms_norm_eps,
            EXACT=True, **self._norm_options,
            **self._options.product(layer.qkv.format, tuning.project_warps),
        )  # fmt: skip
        rep = sizes.num_heads // sizes.num_kv_heads
        shape: dict[str, Any] = {
            "REP": rep, "RP": self._padded_rep, "D": sizes.head_dim, "BT": tuning.attention_tile,
            "SPLITS": tuning.attention_splits, "BITS": BITS[layer.o.format],
        }  # fmt: skip
        parts = (self._attention_acc, self._attention_max, self._attention_sum)
        attention_kernel[(sizes.num_kv_heads, tuning.attention_splits)](
            self._qkv, self._angles, self.state, layer_idx, sizes.head_dim**-0.5, *parts,
            self._oq, self._os, NUM_LAYERS=sizes.num_layers, NUM_KV=sizes.num_kv_heads,
            PTX=not INTERPRETED, num_warps=tuning.attention_warps,
            num_stages=self._options.attention_stages(sizes.head_dim), **shape,
            **self._options.every,
        )  # fmt: skip
        combine_kernel[(sizes.num_heads,)](
            self.state, *parts, self._oq, self._os,
            PADDED_SPLITS=triton.next_power_of_2(tuning.attention_splits),
            num_warps=tuning.combine_warps,
            **shape, **self._options.every,
        )  # fmt: skip
        self._add(
            parts_of(layer.o), (0, 0), (self._oq, self._os), layer.post_norm, layer.o.format,
            width=layer.o.shape[1], num_slots=1, splits=1, warps=tuning.output_warps, exact=True,
            router=None if layer.router is None else layer.router[0],
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
        warps: int,
        exact: bool = False,
        router: Tensor | None = None,
        routed_layer: int | None = None,
    ) -> None:
        """Launch add_kernel; a router comes next, or routed_layer is a layer of experts."""
        routed, layer_idx = routed_layer is not None, routed_layer or 0
        slots = self._slots[layer_idx] if routed else self._dense_slot
        asks = self._asks(slots)
        add_kernel[(self.sizes.hidden_size // 16, splits)](
            *weight, slots, self._weights[layer_idx], *strides, self._words(inputs[0]), inputs[1],
            self._table(format_name, exact), self._x, norm, self._squares, self._xq, self._xs,
            self._partial, self._counters, self._x if router is None else router,
            self._logit_parts, self._asked, self._num_asked[layer_idx:], self._fetched,
            self._arrived, HIDDEN=self.sizes.hidden_size, WIDTH=width, NUM_SLOTS=num_slots,
            SPLIT=splits, ROUTED=routed, ASKS=asks, EXACT=exact,
            NUM_EXPERTS=0 if router is None else len(router),
            PADDED_EXPERTS=1 if router is None else triton.next_power_of_2(len(router)),
            **self._options.product(format_name, warps),
        )  # fmt: skip

    def _asks(self, slots: Tensor) -> bool:
        """Whether a table may name experts that the CPU runs."""
        return (
            slots is not self._dense_slot
            and self._experts is not None
            and self._experts.cpu is not None
        )

    def _first_fixed(self, slots: Tensor) -> int:
        """From which slot on the table is the same for every token."""
        return 0 if slots is self._dense_slot else self.sizes.num_experts_per_tok

    def _route(self, layer_idx: int, layer: StepLayer) -> None:
        sizes, experts = self.sizes, self._experts
        if layer.router is None or experts is None:
            raise ValueError(f"layer {layer_idx} has neither an MLP nor experts")
        bias = layer.router[1]
        cpu = experts.cpu
        route_kernel[(1,)](
            self._logit_parts, self._x, layer.post_norm, self._squares, bias,
            experts.slot_of[layer_idx], self._slots[layer_idx], self._weights[layer_idx],
            experts.counts[layer_idx], sizes.rms_norm_eps, sizes.router_norm_min, layer_idx,
            0 if cpu is None else cpu.num_slots, self._asked if cpu is None else cpu.cpu_share,
            0 if cpu is None else cpu.request, self._asked, self._num_asked[layer_idx:],
            self._asked if cpu is None else cpu.hits,
            PADDED_HIDDEN=triton.next_power_of_2(sizes.hidden_size),
            NUM_EXPERTS=sizes.num_experts,
            PADDED_EXPERTS=triton.next_power_of_2(sizes.num_experts),
            TOP_K=sizes.num_experts_per_tok, ASKS=cpu is not None, PTX=not INTERPRETED,
            num_warps=self.tuning.route_warps,
            **self._norm_options, **self._options.every,
        )  # fmt: skip

    def _gate_up(
        self, weight: tuple[Tensor, Tensor], strides: tuple[int, int], slots: Tensor,
        num_slots: int, width: int, format_name: str,
    ) -> None:  # fmt: skip
        gate_up_kernel[(width // 16, num_slots)](
            *weight, slots, *strides, self._words(self._xq), self._xs,
            self._table(format_name, False), self._squares, self._aq, self._as,
            self.sizes.rms_norm_eps, WIDTH=width, FIRST_FIXED=self._first_fixed(slots),
            ASKS=self._asks(slots), maxnreg=GATE_REGISTERS[BITS[format_name]], **self._norm_options,
            **self._options.product(format_name, self.tuning.gate_warps),
        )  # fmt: skip

    def _run_experts(self, layer_idx: int, norm: Tensor) -> None:
        sizes, experts = self.sizes, self._experts
        if experts is None:
            raise ValueError(f"layer {layer_idx} has no experts")
        num_slots = sizes.num_experts_per_tok + sizes.num_shared_experts
        strides = (experts.code_stride, experts.scale_stride)
        if experts.cpu is not None:
            self._fetch(layer_idx, experts.cpu)
        self._gate_up(
            experts.gate_up, strides, self._slots[layer_idx], num_slots, sizes.expert_width,
            experts.format,
        )  # fmt: skip
        self._add(
            experts.down, strides, (self._aq, self._as), norm, experts.format,
            width=sizes.expert_width, num_slots=num_slots,
            splits=divisor(num_slots, self.tuning.down_splits), warps=self.tuning.down_warps,
            routed_layer=layer_idx,
        )  # fmt: skip
        if experts.cpu is not None:
            self.join_beside()

    def beside(self) -> AbstractContextManager[object]:
        """Launches in this context run beside those that follow, until `join_beside`."""
        if self._beside is not None:
            self._beside.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._beside)

    def join_beside(self) -> None:
        """What is launched from here on comes after what was launched beside."""
        if self._beside is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._beside)

    def _fetch(self, layer_idx: int, cpu: CpuExperts) -> None:
        """Launch what waits for the CPU."""
        hidden = self.sizes.hidden_size
        with self.beside():
            fetch_kernel[(1,)](
                cpu.answer, self._asked, self._num_asked[layer_idx:], self._fetched, self._arrived,
                HIDDEN=hidden, PADDED=triton.next_power_of_2(hidden), PTX=not INTERPRETED,
                num_warps=4,
            )  # fmt: skip

    def _run_mlp(self, mlp: tuple[QuantTensor, QuantTensor], norm: Tensor) -> None:
        gate_up, down = mlp
        width = down.shape[1]
        self._gate_up(parts_of(gate_up), (0, 0), self._dense_slot, 1, width, gate_up.format)
        num_pieces = pieces(width, MLP_SPLITS)
        self._add(
            parts_of(down), (0, 0), (self._aq, self._as), norm, down.format,
            width=width // num_pieces, num_slots=num_pieces, splits=num_pieces,
            warps=self.tuning.down_warps,
        )  # fmt: skip

    def pick(self, num_tokens: int) -> None:
        """Write the likeliest token of the last `forward` to ``token``."""
        self.choice.launch(ChoiceKind(num_tokens))

    def advance(self) -> None:
        """Count ``token`` as seen, and the position up."""
        advance_kernel[(1,)](self.token, self.state, self.seen, num_warps=1, **self._options.every)
