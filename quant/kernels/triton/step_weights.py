"""What a captured step is told: sizes, weights, tuning, choices. No Triton is needed for it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.tensor import QuantTensor

MLP_SPLITS = 8  # programs for 16 rows of a dense layer's down product, at most


@dataclass(frozen=True, slots=True)
class Tuning:
    """Warps a program has, and into how many programs a sum is split.

    Attributes:
        project_warps: Of QKV with 4-bit weights.
        gate_warps: Of gate and up with 4-bit weights.
        output_warps: Of the output projection with 4-bit weights.
        down_warps: Of down with 4-bit weights.
        route_warps: Of the router.
        combine_warps: Of the sum of attention's parts.
        row_warps: Of products with int8 and bf16 rows.
        down_splits: Programs for 16 rows of the experts' down product, at most.
        head_rows: Rows of a program of the head.
        attention_splits: Programs for one key and value head.
        attention_tile: Tokens that attention reads at a time.
        attention_warps: Of attention.
        attention_stages: Tiles that attention has on the way; None for `attention_stages`.
        pdl: Launch a kernel before its predecessor has ended, where the GPU can and no expert lies
            outside its memory.
    """

    project_warps: int = 8
    gate_warps: int = 2
    output_warps: int = 4
    down_warps: int = 2
    route_warps: int = 8
    combine_warps: int = 1
    row_warps: int = 8
    down_splits: int = 8
    head_rows: int = 16
    attention_splits: int = 32
    attention_tile: int = 64
    attention_warps: int = 4
    attention_stages: int | None = None
    pdl: bool = True


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
class CpuExperts:
    """How the kernels ask the CPU for experts; see asking.py.

    Attributes:
        num_slots: Slots from here on, and negative ones, are outside the GPU's memory.
        cpu_share: int32 ``[num_experts_per_tok + 1]``: how many experts the CPU runs, by how many
            lie outside.
        hits: int64 ``[2]``: experts found in the GPU's memory, and those read through the bus.
        request: Address in pinned memory of what the GPU asks.
        answer: Address of what the CPU says.
        rows: Addresses of the host's rows: activations, answers, ids, weights.
        on_cpu: By the size of a chunk which experts the CPU runs for it, int8
            ``[num_layers, num_experts]``.
        stage_sources: `sources` of `quant.experts.prompt_tables.PromptTables`.
        stage_targets: Where to.
        slot_nbytes: Bytes of an expert.
    """

    num_slots: int
    cpu_share: Tensor
    hits: Tensor
    request: int
    answer: int
    rows: tuple[int, int, int, int]
    on_cpu: Mapping[int, Tensor]
    stage_sources: Tensor
    stage_targets: Tensor
    slot_nbytes: int


@dataclass(frozen=True, slots=True)
class StepExperts:
    """The expert pool as the kernels see it.

    Attributes:
        gate_up: Codes and scales of slot 0, tensors that begin there.
        down: As gate_up.
        code_stride: Elements of codes from slot to slot.
        scale_stride: Elements of scales from slot to slot.
        slot_of: int64 ``[num_layers, num_experts + num_shared]``.
        counts: int64, the same shape.
        format: Of the experts.
        cpu: None if the GPU runs all of them.
    """

    gate_up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    code_stride: int
    scale_stride: int
    slot_of: Tensor
    counts: Tensor
    format: str
    cpu: CpuExperts | None = None


@dataclass(frozen=True, slots=True)
class ChoiceKind:
    """What is launched to choose a token; how much of it is set on the device.

    Attributes:
        num_tokens: Tokens that may be chosen: those with the lowest ids.
        greedy: Take the likeliest, nothing else.
        top_k: Run top-k.
        top_p: Run top-p.
    """

    num_tokens: int
    greedy: bool = True
    top_k: bool = False
    top_p: bool = False


def attention_stages(shared_nbytes: int, tile: int, head_dim: int, *, pdl: bool) -> int:
    """Tiles of keys and values that attention has on the way.

    With pdl so many that a program takes more than half of a multiprocessor's shared memory, where
    it may: programs that begin before their predecessor has ended then do not gather on the
    multiprocessors that are free first (at 32,768 tokens a step took 1.75 ms instead of 2.05).
    Without it three at most, so that with fewer multiprocessors than programs some share one.

    Args:
        shared_nbytes: Shared memory that a program may have, in bytes.
        tile: Tokens of a tile.
        head_dim: Of a key.
        pdl: Whether programs begin early.
    """
    others = 8192  # queries and scores
    tile_nbytes = 2 * tile * head_dim * 2
    return min(max(1 + (shared_nbytes - others) // tile_nbytes, 2), 5 if pdl else 3)


def pieces(num_inputs: int, most: int) -> int:
    """Pieces of whole blocks of 64 into which inputs can be cut evenly, at most so many."""
    blocks = num_inputs // 64
    return max(p for p in range(1, most + 1) if blocks % p == 0)


def divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most so large."""
    return max(p for p in range(1, most + 1) if number % p == 0)


def parts_of(weight: QuantTensor) -> tuple[Tensor, Tensor]:
    """Codes as the kernels read them, and scales."""
    parts = list(weight.parts.values())
    codes = parts[0].view(torch.int32) if weight.format == "int8" else parts[0]
    return codes, parts[-1]
