"""A chunk of a prompt as a row of launches of fixed size, to be captured. Imports Triton."""

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from quant.kernels.triton.asking import (
    ask_rows_kernel,
    await_rows_kernel,
    send_rows_kernel,
    stage_kernel,
    take_rows_kernel,
)
from quant.kernels.triton.chunk_kernels import (
    add_norm_kernel,
    chunk_attention_kernel,
    place_rows_kernel,
    rotate_kernel,
    route_rows_kernel,
)
from quant.kernels.triton.products import INTERPRETED, address_table, tile_options
from quant.kernels.triton.step import DecodeStep
from quant.kernels.triton.step_weights import CpuExperts, StepLayer
from quant.kernels.triton.tiles import tiles_kernel
from quant.linear import embed
from quant.tensor import QuantTensor

MAX_TOKENS = 512
MAX_ROWS = 1024  # that the CPU takes of a chunk and layer; as in quant/kernels/native/serve.py
PLACE_BLOCK = 64
STAGE_PARTS = 4  # programs that bring one expert


class PrefillChunk:
    """Buffers and launches of up to MAX_TOKENS tokens, over the weights of a DecodeStep.

    Args:
        step: Has the weights.
        gate_up_at: By layer index, addresses int64 ``[2, num_slots]`` of each expert's codes and
            scales, shared experts last.
        down_at: As gate_up_at.

    Attributes:
        ids: int64 ``[MAX_TOKENS]``, the tokens to read.
        state: int64 ``[4]``, see chunk_kernels.
        logits: float32 ``[1, vocab_size]`` after the last real token.
    """

    def __init__(
        self, step: DecodeStep, gate_up_at: dict[int, Tensor], down_at: dict[int, Tensor]
    ) -> None:
        self._step = step
        self._gate_up_at, self._down_at = gate_up_at, down_at
        sizes, device = step.sizes, step.state.device
        self._addresses: dict[int, Tensor] = {}
        self._ahead = None
        if device.type == "cuda":
            self._ahead = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        tokens, hidden = MAX_TOKENS, sizes.hidden_size
        heads, kv = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        chosen = sizes.num_experts_per_tok + sizes.num_shared_experts

        def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.ids = new(tokens, dtype=torch.int64)
        self.state = new(4, dtype=torch.int64)
        self._x = new(tokens, hidden, dtype=torch.float32)
        self._normed = new(tokens, hidden)
        self._routed = new(tokens, hidden, dtype=torch.float32)  # as normed, for the router
        self._qkv, self._q = new(tokens, heads + 2 * kv), new(tokens, heads)
        self._attended, self._delta = new(tokens, heads), new(tokens, hidden)
        self._act = new(max(tokens * chosen * sizes.expert_width, tokens * sizes.intermediate_size))
        self._pairs = new(tokens * max(chosen, 1) * hidden, dtype=torch.float32)
        self._chosen = new(tokens * max(chosen, 1), dtype=torch.int64)
        self._shares = new(tokens * max(chosen, 1), dtype=torch.float32)
        self._ranks = new(tokens * max(chosen, 1), dtype=torch.int32)
        self._fill = new(sizes.num_experts + sizes.num_shared_experts + 1, dtype=torch.int32)
        self._pos_of = new(tokens * max(chosen, 1), dtype=torch.int32) - 1
        self.logits = new(1, sizes.vocab_size, dtype=torch.float32)

    def forward(self, num_tokens: int) -> None:
        """Read ``ids[:num_tokens]``, of which the state's number are real; write ``logits``."""
        step, sizes = self._step, self._step.sizes
        hidden = embed(step._embedding, self.ids[:num_tokens], torch.bfloat16)
        self._x[:num_tokens] = hidden.float()
        self._norm(num_tokens, step._layers[0].input_norm, None, 0)
        to_stage = iter(sorted(self._gate_up_at))
        staged = self._stage(next(to_stage, None))
        for layer_idx, layer in enumerate(step._layers):
            if layer.mlp is None:
                arrived, staged = staged, self._stage(next(to_stage, None))
            last = layer_idx + 1 == len(step._layers)
            norm = step._final_norm if last else step._layers[layer_idx + 1].input_norm
            self._attend(num_tokens, layer_idx, layer)
            self._norm(num_tokens, layer.post_norm, self._delta, 1, routed=layer.mlp is None)
            if layer.mlp is not None:
                self._run_mlp(num_tokens, layer.mlp)
                self._norm(num_tokens, norm, self._delta, 1)
            else:
                self._run_experts(num_tokens, layer_idx, layer, arrived)
                chosen = sizes.num_experts_per_tok + sizes.num_shared_experts
                self._norm(num_tokens, norm, self._pairs, chosen)
        final = self._normed.index_select(0, self.state[3:4] - 1)
        self._matmul(final, step._head, self.logits)

    def _stage(self, layer_idx: int | None) -> torch.cuda.Event | None:
        """Bring experts of a layer to the GPU beside what follows; says when they are there.

        Two layers in turn use the same slots, so the last but one must have been computed.
        """
        experts = self._step._experts
        if experts is None or experts.cpu is None or layer_idx is None:
            return None
        cpu, device = experts.cpu, self.state.device
        num_staged = cpu.stage_sources.shape[1]
        if not num_staged:
            return None
        if self._ahead is not None:
            self._ahead.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._ahead):
            stage_kernel[(num_staged, STAGE_PARTS)](
                cpu.stage_sources[layer_idx], cpu.stage_targets[layer_idx], cpu.slot_nbytes // 4,
                PARTS=STAGE_PARTS, BLOCK=4096, num_warps=8,
            )  # fmt: skip
            if self._ahead is None:
                return None
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._ahead)
        return event

    def _norm(
        self,
        num_tokens: int,
        norm: Tensor,
        delta: Tensor | None,
        num_deltas: int,
        *,
        routed: bool = False,
    ) -> None:
        sizes = self._step.sizes
        add_norm_kernel[(num_tokens,)](
            self._x, self._x if delta is None else delta, norm, self._normed, self._routed,
            sizes.rms_norm_eps, HIDDEN=sizes.hidden_size,
            PADDED=triton.next_power_of_2(sizes.hidden_size), NUM_DELTAS=num_deltas,
            ROUTED=routed, num_warps=8,
        )  # fmt: skip

    def _matmul(self, x: Tensor, weight: QuantTensor, out: Tensor, gated: bool = False) -> None:
        """``x @ weight.T``, gated: the SwiGLU of its two halves."""
        key = id(weight)
        if key not in self._addresses:
            self._addresses[key] = address_table([weight])
        at = self._addresses[key]
        rows, columns = weight.shape
        num_out = rows // 2 if gated else rows
        options = tile_options(weight, len(x), gated=gated)
        tiles_kernel[
            (triton.cdiv(num_out, options["BN"]), triton.cdiv(len(x), options["BM"]))
        ](
            x, x, x, at[0], at[1], x, out, len(x), 1, num_out, columns,
            GROUPED=False, GATED=gated, WEIGHTED=False, ROWS_PER_X=1, **options,
        )  # fmt: skip

    def _attend(self, num_tokens: int, layer_idx: int, layer: StepLayer) -> None:
        sizes = self._step.sizes
        self._matmul(self._normed[:num_tokens], layer.qkv, self._qkv)
        shape: dict[str, Any] = {
            "NUM_LAYERS": sizes.num_layers,
            "NUM_HEADS": sizes.num_heads,
            "NUM_KV": sizes.num_kv_heads,
            "D": sizes.head_dim,
        }
        rotate_kernel[(num_tokens, sizes.num_heads + 2 * sizes.num_kv_heads)](
            self._qkv, self._q, self._step._inverse_frequencies, self.state, layer_idx,
            num_warps=1, **shape,
        )  # fmt: skip
        tile = min(64, max(16, num_tokens))
        chunk_attention_kernel[(triton.cdiv(num_tokens, tile), sizes.num_heads)](
            self._q, self._attended, self.state, layer_idx, sizes.head_dim**-0.5,
            BQ=tile, BT=64, PTX=not INTERPRETED, num_warps=4, num_stages=2, **shape,
        )  # fmt: skip
        self._matmul(self._attended[:num_tokens], layer.o, self._delta)

    def _run_mlp(self, num_tokens: int, mlp: tuple[QuantTensor, QuantTensor]) -> None:
        gate_up, down = mlp
        act = self._act[: num_tokens * down.shape[1]].view(num_tokens, -1)
        self._matmul(self._normed[:num_tokens], gate_up, act, gated=True)
        self._matmul(act, down, self._delta)

    def _run_experts(
        self, num_tokens: int, layer_idx: int, layer: StepLayer, arrived: torch.cuda.Event | None
    ) -> None:
        """The layer's experts; those of the CPU are asked for before the staged ones are here."""
        step, sizes = self._step, self._step.sizes
        if layer.router is None or step._experts is None:
            raise ValueError(f"layer {layer_idx} has no experts")
        router, bias = layer.router
        cpu = step._experts.cpu
        on_cpu = None if cpu is None else cpu.on_cpu.get(num_tokens)
        chosen = sizes.num_experts_per_tok + sizes.num_shared_experts
        num_slots = sizes.num_experts + sizes.num_shared_experts
        num_pairs = num_tokens * chosen
        logits = F.linear(self._routed[:num_tokens], router)
        self._fill.zero_()
        padded = triton.next_power_of_2(num_slots)
        route_rows_kernel[(num_tokens,)](
            logits, bias, self.state, self._chosen, self._shares, self._ranks, self._fill,
            step._experts.counts[layer_idx], sizes.router_norm_min,
            self._fill if on_cpu is None else on_cpu[layer_idx], self._pos_of,
            *((0, 0) if cpu is None else cpu.rows[2:]),
            NUM_EXPERTS=sizes.num_experts, PADDED=padded, TOP_K=sizes.num_experts_per_tok,
            SHARED=sizes.num_shared_experts, ASKS=on_cpu is not None, MAX_ROWS=MAX_ROWS,
            num_warps=4,
        )  # fmt: skip
        if cpu is not None and on_cpu is not None:
            self._ask(cpu, layer_idx, num_pairs)
        gate_up_at, down_at = self._gate_up_at[layer_idx], self._down_at[layer_idx]
        up_options = tile_options(step._experts, num_pairs // num_slots, gated=True)
        down_options = tile_options(step._experts, num_pairs // num_slots, grouped=True)
        row_tile = up_options["BM"]
        num_tiles = min(num_pairs, num_pairs // row_tile + num_slots)
        rows = torch.full((num_tiles * row_tile,), num_pairs, device=router.device)
        expert_of = torch.empty(num_tiles, dtype=torch.int64, device=router.device)
        place_rows_kernel[(triton.cdiv(max(num_pairs, num_tiles), PLACE_BLOCK),)](
            self._chosen, self._ranks, self._fill, rows, expert_of, num_pairs, num_tiles,
            NUM_SLOTS=num_slots, PADDED=padded, ROW_TILE=row_tile, BLOCK=PLACE_BLOCK, num_warps=4,
        )  # fmt: skip
        if arrived is not None:
            torch.cuda.current_stream(self.state.device).wait_event(arrived)
        grid = (triton.cdiv(sizes.expert_width, up_options["BN"]), num_tiles)
        tiles_kernel[grid](
            self._normed, rows, expert_of, gate_up_at[0], gate_up_at[1], self._shares, self._act,
            num_pairs, num_slots, sizes.expert_width, sizes.hidden_size,
            GROUPED=True, GATED=True, WEIGHTED=False, ROWS_PER_X=chosen, **up_options,
        )  # fmt: skip
        grid = (triton.cdiv(sizes.hidden_size, down_options["BN"]), num_tiles)
        tiles_kernel[grid](
            self._act, rows, expert_of, down_at[0], down_at[1], self._shares, self._pairs,
            num_pairs, num_slots, sizes.hidden_size, sizes.expert_width,
            GROUPED=True, GATED=False, WEIGHTED=True, ROWS_PER_X=1, **down_options,
        )  # fmt: skip
        if cpu is not None and on_cpu is not None:
            self._take(cpu, num_pairs)

    def _ask(self, cpu: CpuExperts, layer_idx: int, num_pairs: int) -> None:
        """Send the CPU its rows, and wait for it on a stream of its own."""
        step, sizes = self._step, self._step.sizes
        hidden, chosen = sizes.hidden_size, sizes.num_experts_per_tok + sizes.num_shared_experts
        send_rows_kernel[(num_pairs,)](
            self._normed, self._pos_of, cpu.rows[0], HIDDEN=hidden,
            PADDED=triton.next_power_of_2(hidden), CHOSEN=chosen, num_warps=4,
        )  # fmt: skip
        num_rows = self._fill[sizes.num_experts + sizes.num_shared_experts :]
        ask_rows_kernel[(1,)](
            num_rows, layer_idx, cpu.request, step._asked, step._num_asked, MAX_ROWS=MAX_ROWS,
            PTX=not INTERPRETED, num_warps=1,
        )  # fmt: skip
        with step.beside():
            await_rows_kernel[(1,)](
                cpu.answer, step._asked, step._num_asked, step._arrived, PTX=not INTERPRETED,
                num_warps=1,
            )  # fmt: skip

    def _take(self, cpu: CpuExperts, num_pairs: int) -> None:
        """Put the CPU's results where the GPU's are."""
        self._step.join_beside()
        hidden = self._step.sizes.hidden_size
        take_rows_kernel[(num_pairs,)](
            cpu.rows[1], self._pos_of, self._pairs, HIDDEN=hidden,
            PADDED=triton.next_power_of_2(hidden), num_warps=4,
        )  # fmt: skip
