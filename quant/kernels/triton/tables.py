"""Codebooks of the 4-bit formats as register tables; no Triton is needed for it."""

from functools import cache

import torch

from quant.formats import FORMATS
from quant.formats.codebook import Codebook4

BITS = {"nf4": 4, "fp4": 4, "int8": 8, "bf16": 16}


def _words(table: torch.Tensor) -> tuple[int, ...]:
    """Sixteen bytes as four int32."""
    return tuple(table.contiguous().view(torch.int32).tolist())


@cache
def int8_table(format_name: str) -> tuple[int, ...]:
    """``round(127 · value)`` of 16 codes as four int32; zeros for formats without a codebook."""
    found = FORMATS[format_name]
    if not isinstance(found, Codebook4):
        return (0, 0, 0, 0)
    return _words((found.codebook * 127).round().to(torch.int8))


@cache
def bf16_tables(format_name: str) -> tuple[int, ...]:
    """The high bytes of the 16 values in bfloat16 as four int32, then the low ones."""
    found = FORMATS[format_name]
    if not isinstance(found, Codebook4):
        return (0,) * 8
    halves = found.codebook.to(torch.bfloat16).view(torch.uint8).view(16, 2)  # low byte first
    return _words(halves[:, 1]) + _words(halves[:, 0])
