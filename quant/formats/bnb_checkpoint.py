"""Weights as bitsandbytes stores them in a checkpoint: what Linear4bit and Linear8bitLt save."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.formats.codebook import BLOCK_SIZE, Codebook4
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
        state = json.loads(bytes(packed_json.to(torch.uint8).tolist()))
        out_features, in_features = (int(size) for size in state["shape"])
        state["shape"] = (out_features, in_features)
        if state["quant_type"] not in CODEBOOKS or int(state["blocksize"]) < 1:
            raise ValueError
    except (ValueError, KeyError, TypeError) as exc:
        raise QuantError("its quant_state is not one of bitsandbytes' nf4 or fp4") from exc
    return dict(state)


def _block_scales(parts: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensor:
    """One absmax a block, float32; nested ones are themselves quantized to 8 bits."""
    absmax = parts["absmax"]
    if "nested_absmax" not in parts:
        return absmax.float().flatten()
    values = parts["nested_quant_map"].float()[absmax.flatten().int()]
    size = int(state["nested_blocksize"])
    outer = parts["nested_absmax"].float().flatten().repeat_interleave(size)[: len(values)]
    return values * outer + float(state["nested_offset"])


def read_4bit(
    packed: Tensor, parts: Mapping[str, Tensor], state: Mapping[str, Any]
) -> QuantTensor | Tensor:
    """A 4-bit weight: its codes as they are if its blocks are of 64, else the floats they mean.

    Args:
        packed: uint8, the even k in the high nibble.
        parts: ``absmax``, ``quant_map`` and, for nested scales, ``nested_absmax`` and
            ``nested_quant_map``.
        state: From `parse_state`.

    Raises:
        QuantError: If sizes contradict each other or the codebook is not bitsandbytes'.
    """
    codebook = CODEBOOKS[state["quant_type"]]
    if not torch.allclose(parts["quant_map"].float().flatten(), codebook.codebook, atol=1e-6):
        raise QuantError(f"its codebook is not that of {codebook.name}")
    out_features, in_features = state["shape"]
    block_size = int(state["blocksize"])
    absmax = _block_scales(parts, state)
    packed = packed.contiguous().view(torch.uint8).flatten()
    if 2 * len(packed) != out_features * in_features or in_features % block_size:
        raise QuantError(
            f"{len(packed)} bytes of codes do not make {out_features} × {in_features} weights in "
            f"blocks of {block_size}"
        )
    if len(absmax) * block_size != out_features * in_features:
        raise QuantError(f"{len(absmax)} scales are not one for every {block_size} weights")
    codes = torch.stack((packed >> 4, packed & 15), -1).view(out_features, in_features)
    absmax = absmax.view(out_features, -1)
    if block_size == BLOCK_SIZE:
        return codebook.from_rows(codes, absmax)
    values = codebook.codebook[codes.int()].view(*absmax.shape, block_size)
    return (values * absmax[..., None]).view(out_features, in_features)


def read_8bit(codes: Tensor, scale: Tensor) -> QuantTensor:
    """An int8 weight ``[N, K]`` with its row scales ``SCB`` ``[N]``."""
    out_features, in_features = codes.shape
    parts = {"codes": codes, "absmax": scale.float().flatten()}
    if len(parts["absmax"]) != out_features:
        raise QuantError(f"{len(parts['absmax'])} row scales for {out_features} rows")
    return QuantTensor("int8", "rows", (out_features, in_features), parts)
