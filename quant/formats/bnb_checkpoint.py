"""Weights as bitsandbytes stores them in a checkpoint: what Linear4bit and Linear8bitLt save."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.formats.codebook import BLOCK_SIZE, Codebook4
from quant.formats.codebook import NUM_INTERLEAVED_ROWS as NUM_ROWS
from quant.formats.fp4 import FP4
from quant.formats.nf4 import NF4
from quant.tensor import QuantTensor

CODEBOOKS: Mapping[str, Codebook4] = {"nf4": NF4, "fp4": FP4}
STATE_PREFIX = "quant_state.bitsandbytes__"


def parse_state(packed_json: Tensor) -> dict[str, Any]:
    """The ``quant_state.bitsandbytes__*`` tensor: JSON as uint8.

    Raises:
        QuantError: If it is not that.
    """
    try:
        state = json.loads(bytes(packed_json.flatten().to(torch.uint8).tolist()))
        out_features, in_features = (int(size) for size in state["shape"])
        state["shape"] = (out_features, in_features)
        state["blocksize"] = int(state["blocksize"])
        if "nested_blocksize" in state:
            state["nested_blocksize"] = int(state["nested_blocksize"])
            state["nested_offset"] = float(state["nested_offset"])
        sizes = (out_features, in_features, state["blocksize"], state.get("nested_blocksize", 1))
        if state["quant_type"] not in CODEBOOKS or min(sizes) < 1:
            raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
        raise QuantError("its quant_state is not one of bitsandbytes' nf4 or fp4") from exc
    return dict(state)


def _part(parts: Mapping[str, Tensor], name: str, numel: int) -> Tensor:
    """A part as float32 ``[numel]``."""
    if name not in parts:
        raise QuantError(f"its {name} is missing")
    part = parts[name].float().flatten()
    if len(part) != numel:
        raise QuantError(f"its {name} has {len(part)} values instead of {numel}")
    if not bool(torch.isfinite(part).all()):
        raise QuantError(f"its {name} has values that are NaN or infinite")
    return part


def _block_scales(parts: Mapping[str, Tensor], state: Mapping[str, Any], num_blocks: int) -> Tensor:
    """One absmax a block, float32; nested ones are themselves quantized to 8 bits."""
    absmax = _part(parts, "absmax", num_blocks)
    if "nested_blocksize" not in state:
        if "nested_absmax" in parts:
            raise QuantError("it has nested scales that its quant_state does not mention")
        return absmax
    size: int = state["nested_blocksize"]
    outer = _part(parts, "nested_absmax", -(-num_blocks // size))
    values = _part(parts, "nested_quant_map", 256)
    if parts["absmax"].dtype != torch.uint8:
        raise QuantError("its nested absmax is not stored as uint8")
    scales = values[absmax.int()] * outer.repeat_interleave(size)[:num_blocks]
    return scales + float(state["nested_offset"])


def read_4bit(
    packed: Tensor, parts: Mapping[str, Tensor], state: Mapping[str, Any]
) -> QuantTensor | Tensor:
    """A 4-bit weight: its codes as they are if they suit our layout, else the floats they mean.

    Args:
        packed: uint8, the even k in the high nibble; blocks follow one another row by row.
        parts: ``absmax``, ``quant_map`` and, for nested scales, ``nested_absmax`` and
            ``nested_quant_map``.
        state: From `parse_state`.

    Raises:
        QuantError: If sizes contradict each other or the codebook is not bitsandbytes'.
    """
    codebook = CODEBOOKS[state["quant_type"]]
    quant_map = _part(parts, "quant_map", len(codebook.codebook))
    if not torch.allclose(quant_map, codebook.codebook, atol=1e-6):
        raise QuantError(f"its codebook is not that of {codebook.name}")
    out_features, in_features = state["shape"]
    block_size: int = state["blocksize"]
    numel = out_features * in_features
    packed = packed.contiguous().flatten().view(torch.uint8)
    if 2 * len(packed) != numel + numel % 2:
        raise QuantError(
            f"{len(packed)} bytes of codes do not make {out_features} × {in_features} weights"
        )
    absmax = _block_scales(parts, state, -(-numel // block_size))
    codes = torch.stack((packed >> 4, packed & 15), -1).flatten()[:numel]
    if block_size == BLOCK_SIZE and not (in_features % BLOCK_SIZE or out_features % NUM_ROWS):
        return codebook.from_rows(codes.view(state["shape"]), absmax.view(out_features, -1))
    values = codebook.codebook[codes.int()]
    values *= absmax.repeat_interleave(block_size)[:numel]
    return values.view(state["shape"])


def read_8bit(codes: Tensor, scale: Tensor, weight_format: Tensor | None = None) -> QuantTensor:
    """An int8 weight ``[N, K]`` with its row scales ``SCB`` ``[N]``.

    Args:
        codes: int8.
        scale: What a row's 127 stands for.
        weight_format: Of old checkpoints: 0 if the codes are in rows.

    Raises:
        QuantError: If they contradict each other, or are in an order made for one kind of GPU.
    """
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise QuantError("its codes are not an int8 matrix")
    if weight_format is not None and bool(weight_format.any()):
        raise QuantError("its codes are not in rows but in an order for one kind of GPU")
    out_features, in_features = codes.shape
    absmax = _part({"SCB": scale}, "SCB", out_features)
    return QuantTensor(
        "int8", "rows", (out_features, in_features), {"codes": codes, "absmax": absmax}
    )
