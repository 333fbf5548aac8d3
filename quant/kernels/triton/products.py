"""Launches of the tile kernel: a plain product, and a layer of experts."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import triton
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import ExpertWeights
from quant.kernels.triton.tables import BF16_FACTORS, BITS, bf16_tables
from quant.kernels.triton.tiles import tiles_kernel
from quant.tensor import QuantTensor


class HasFormat(Protocol):
    """Anything that has the name of a format."""

    @property
    def format(self) -> str:
        """A key of ``FORMATS``."""
        ...


ALIGNMENT = 16  # of weights, in bytes
STAGES = 3  # blocks of inputs on the way
INTERPRETED = bool(triton.knobs.runtime.interpret)


def _row_tile(rows: int) -> int:
    """Rows a tile has for that many rows of one weight."""
    return min(max(16, int(triton.next_power_of_2(rows))), 128)


def tile_options(
    weight: HasFormat, rows: int, *, gated: bool = False, grouped: bool = False
) -> dict[str, Any]:
    """How the tile kernel is cut for a product.

    Args:
        weight: In which format.
        rows: Rows that meet one weight, on average.
        gated: Whether a program holds two products.
        grouped: Whether rows are grouped by expert; tiles must then fit those of the gated one.
    """
    row_tile = _row_tile(rows)
    if gated or grouped:
        row_tile = min(row_tile, 64)
    bits = BITS[weight.format]
    names = ("U0", "U1", "U2", "U3", "L0", "L1", "L2", "L3")
    tables = dict(zip(names, bf16_tables(weight.format), strict=True))
    return {
        "BM": row_tile,
        "BN": 64,
        "BK": 128 if bits == 8 and row_tile <= 32 else 64,
        "BITS": bits,
        "PTX": not INTERPRETED,
        "num_warps": 4,
        "num_stages": STAGES,
        "STAGES": STAGES,
        "UNIT": 1 / BF16_FACTORS.get(weight.format, 1.0),
        **tables,
    }


def address_table(weights: Sequence[QuantTensor]) -> Tensor:
    """Where each weight's codes and scales are: int64 ``[2, num_weights]`` on their device.

    Raises:
        QuantError: If one does not begin at a multiple of 16 bytes, which kernels rely on.
    """
    parts = [list(weight.parts.values()) for weight in weights]
    table = [[p[0].data_ptr() for p in parts], [p[-1].data_ptr() for p in parts]]
    if any(address % ALIGNMENT for addresses in table for address in addresses):
        raise QuantError(f"a weight does not begin at a multiple of {ALIGNMENT} bytes; copy it")
    return torch.tensor(table, dtype=torch.int64).to(weights[0].device, non_blocking=True)


def matmul(hidden_states: Tensor, weight: QuantTensor, addresses: Tensor) -> Tensor:
    """See `KernelBackend.matmul`; addresses are ``[2, 1]`` of the weight."""
    x = hidden_states.to(torch.bfloat16).contiguous()
    out = torch.empty(
        len(x), weight.shape[0], dtype=hidden_states.dtype, device=hidden_states.device
    )
    options = tile_options(weight, len(x))
    grid = (
        triton.cdiv(weight.shape[0], options["BN"]),
        triton.cdiv(len(x), options["BM"]),
    )
    tiles_kernel[grid](
        x, x, x, addresses[0], addresses[1], x, out,
        len(x), 1, *weight.shape,
        GROUPED=False, GATED=False, WEIGHTED=False, ROWS_PER_X=1, **options,
    )  # fmt: skip
    return out


def group_rows(expert_ids: Tensor, num_experts: int, row_tile: int) -> tuple[Tensor, Tensor]:
    """Tiles of rows that have one expert each.

    Args:
        expert_ids: int64 ``[num_rows]``.
        num_experts: How many experts there are.
        row_tile: Rows a tile has.

    Returns:
        Rows int64 ``[num_tiles, row_tile]``, num_rows where there is none, and the experts int64
        ``[num_tiles]``, num_experts where there is no tile. num_tiles is the most that there can
        be, so that no count has to come back from the device.
    """
    num_rows = len(expert_ids)
    device = expert_ids.device
    num_tiles = min(num_rows, num_rows // row_tile + num_experts)
    ordered, order = expert_ids.sort(stable=True)
    ones = torch.ones_like(expert_ids)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
    counts.scatter_add_(0, expert_ids, ones)
    tiles = (counts + row_tile - 1).div(row_tile, rounding_mode="floor")
    tile_ends = tiles.cumsum(0)
    shift = (tile_ends - tiles) * row_tile - (counts.cumsum(0) - counts)
    places = shift[ordered] + torch.arange(num_rows, device=device)
    rows = torch.full((num_tiles * row_tile,), num_rows, device=device)
    rows.scatter_(0, places, order)
    experts = torch.searchsorted(tile_ends, torch.arange(num_tiles, device=device), right=True)
    return rows, experts


def routed_experts(
    hidden_states: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    example: ExpertWeights,
    gate_up_at: Tensor,
    down_at: Tensor,
) -> Tensor:
    """See `KernelBackend.routed_experts`.

    Args:
        hidden_states: ``[num_tokens, hidden_size]``.
        topk_ids: int64 ``[num_tokens, num_chosen]``.
        topk_weights: float32, the same shape.
        example: One of the experts, for shapes and format.
        gate_up_at: Addresses int64 ``[2, num_experts]``.
        down_at: As gate_up_at.
    """
    num_tokens, num_chosen = topk_ids.shape
    num_rows, num_experts = topk_ids.numel(), gate_up_at.shape[1]
    x = hidden_states.to(torch.bfloat16).contiguous()
    hidden_size, width = example.down.shape
    options = tile_options(example.gate_up, -(-num_rows // num_experts), gated=True)
    row_tile = options["BM"]
    rows, expert_of = group_rows(topk_ids.flatten(), num_experts, row_tile)
    num_tiles = len(expert_of)
    act = torch.empty(num_rows, width, dtype=torch.bfloat16, device=x.device)
    tiles_kernel[(triton.cdiv(width, options["BN"]), num_tiles)](
        x, rows, expert_of, gate_up_at[0], gate_up_at[1], topk_weights, act,
        num_rows, num_experts, width, hidden_size,
        GROUPED=True, GATED=True, WEIGHTED=False, ROWS_PER_X=num_chosen, **options,
    )  # fmt: skip
    out = torch.empty(num_rows, hidden_size, dtype=torch.float32, device=x.device)
    tiles_kernel[(triton.cdiv(hidden_size, options["BN"]), num_tiles)](
        act, rows, expert_of, down_at[0], down_at[1], topk_weights.contiguous(), out,
        num_rows, num_experts, hidden_size, width,
        GROUPED=True, GATED=False, WEIGHTED=True, ROWS_PER_X=1, **options,
    )  # fmt: skip
    return out.view(num_tokens, num_chosen, hidden_size).sum(1).to(hidden_states.dtype)
