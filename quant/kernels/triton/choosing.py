"""The launches that choose the next token, over a step's buffers. Imports Triton."""

from typing import Any

import torch
import triton
from torch import Tensor

from quant.kernels.triton.sampling import (
    BLOCK,
    begin_kernel,
    draw_kernel,
    pick_kernel,
    round_kernel,
)
from quant.kernels.triton.step_buffers import StepBuffers
from quant.kernels.triton.step_weights import ChoiceKind

INTERPRETED = bool(triton.knobs.runtime.interpret)
SHIFTS = (24, 16, 8, 0)
MIN_TEMPERATURE = 1e-6  # below it a difference of a rounding error decides already


class TokenChoice:
    """Chooses from the logits that a step left, writes its ``token``.

    Args:
        step: Its buffers.
        options: Of every launch.
    """

    def __init__(self, step: StepBuffers, options: dict[str, Any]) -> None:
        self._step = step
        self._options = options
        device, num_programs = step.logits.device, triton.cdiv(len(step.logits), BLOCK)

        def new(count: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(count, dtype=dtype, device=device)

        self._largest = new(1, torch.float32)
        self._controls = new(3, torch.float64)
        self._choice = new(2, torch.int64)
        self._found = new(6, torch.int64)
        self._counts, self._masses = new(256, torch.int64), new(256, torch.int64)
        self._counter = new(1, torch.int32)
        self._scores = new(num_programs, torch.float32)
        self._winners = new(num_programs, torch.int64)

    def set(self, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """How the next tokens are drawn; see `Sampler` of the generation."""
        controls = (max(temperature, MIN_TEMPERATURE), top_p, min_p)
        self._controls.copy_(torch.tensor(controls, dtype=torch.float64))
        signed = seed % 2**64 - (seed % 2**64 >> 63) * 2**64
        self._choice.copy_(torch.tensor((signed, top_k)))

    def begin(self, logits: Tensor, num_tokens: int) -> None:
        """Take float32 logits ``[vocab_size]`` for the head's, under the repetition penalty."""
        step = self._step
        rows = step.tuning.head_rows
        begin_kernel[(triton.cdiv(num_tokens, rows),)](
            logits, step.seen, step.penalty, step.logits, step._best, step._best_at, num_tokens,
            ROWS=rows, num_warps=1, **self._options,
        )  # fmt: skip

    def launch(self, kind: ChoiceKind) -> None:
        """Choose a token after `DecodeStep.forward` or `begin` with as many tokens."""
        step = self._step
        num_best = triton.cdiv(kind.num_tokens, step.tuning.head_rows)
        pick_kernel[(1,)](
            step._best, step._best_at, step.token, self._largest, NUM=num_best,
            PADDED=triton.next_power_of_2(num_best), num_warps=8, **self._options,
        )  # fmt: skip
        if kind.greedy:
            return
        if kind.top_k:
            self._find_threshold(kind, by_mass=False, after_top_k=False)
        if kind.top_p:
            self._find_threshold(kind, by_mass=True, after_top_k=kind.top_k)
        self._draw(kind)

    def _draw(self, kind: ChoiceKind) -> None:
        """Draw a token of those above the thresholds."""
        step, num_programs = self._step, triton.cdiv(kind.num_tokens, BLOCK)
        draw_kernel[(num_programs,)](
            step.logits, self._largest, self._controls, self._choice, self._found, step.state,
            self._scores, self._winners, self._counter, step.token, kind.num_tokens,
            K=kind.top_k, P=kind.top_p, BLOCK=BLOCK, num_warps=4,
            PADDED=triton.next_power_of_2(num_programs), **self._options,
        )  # fmt: skip

    def _find_threshold(self, kind: ChoiceKind, *, by_mass: bool, after_top_k: bool) -> None:
        for shift in SHIFTS:
            round_kernel[(triton.cdiv(kind.num_tokens, BLOCK),)](
                self._step.logits, self._largest, self._controls, self._choice, self._found,
                self._counts, self._masses, self._counter, kind.num_tokens,
                SHIFT=shift, MASS=by_mass, K=after_top_k, BLOCK=BLOCK, PTX=not INTERPRETED,
                num_warps=4, **self._options,
            )  # fmt: skip
