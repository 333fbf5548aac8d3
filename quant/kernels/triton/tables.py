"""Codebooks of the 4-bit formats as register tables; no Triton is needed for it."""

from functools import cache

import torch

from quant.formats import FORMATS
from quant.formats.codebook import Codebook4

# As nearest multiples of 1/127 the 16 values of nf4 are off by 0.59 %, and by 0.15 % too small on
# the whole, which no sum over inputs evens out; with this unit by 0.47 %, 0.01 % and least of all
# units to one side, for weights that are distributed normally. fp4 has 0.66 % and 0.06 % (127:
# 0.63 % and 0.22 %).
LEVELS_PER_UNIT = 112.05

# What 4-bit values are multiplied with before they are rounded to bfloat16: nf4 then is off by
# 0.078 % and 0.001 % too large on the whole, instead of by 0.136 % and 0.044 % too small; fp4 not
# at all.
BF16_FACTORS = {"nf4": 1.4367, "fp4": 1.5}

BITS = {"nf4": 4, "fp4": 4, "int8": 8, "bf16": 16}


def _words(table: torch.Tensor) -> tuple[int, ...]:
    """Sixteen bytes as four int32."""
    return tuple(table.contiguous().view(torch.int32).tolist())


@cache
def int8_table(format_name: str) -> tuple[int, ...]:
    """16 codes' values in int8 levels as four int32; zeros for formats without a codebook."""
    found = FORMATS[format_name]
    if not isinstance(found, Codebook4):
        return (0, 0, 0, 0)
    return _words((found.codebook * LEVELS_PER_UNIT).round().to(torch.int8))


@cache
def bf16_tables(format_name: str) -> tuple[int, ...]:
    """The high bytes of the 16 values in bfloat16 as four int32, then the low ones.

    The values are those of the codebook, multiplied by the format's factor.
    """
    found = FORMATS[format_name]
    if not isinstance(found, Codebook4):
        return (0,) * 8
    values = found.codebook * BF16_FACTORS[format_name]
    halves = values.to(torch.bfloat16).view(torch.uint8).view(16, 2)  # low byte first
    return _words(halves[:, 1]) + _words(halves[:, 0])
