"""Codebooks of the 4-bit formats as register tables; no Triton is needed for it."""

from functools import cache

import torch

from quant.formats import FORMATS
from quant.formats.codebook import Codebook4

# A codebook's first eight values have one sign and the last eight one. How many integers of seven
# bits a unit of either half has: nf4 is off by 0.29 % then, and by less than 0.001 % too large or
# small on the whole, for weights that are distributed normally; fp4 by 0.33 %. With one step for
# both halves nf4 is off by 0.47 % at best.
STEPS_PER_UNIT = {"nf4": (108.914, 124.703), "fp4": (120.003, 120.003)}
REST_STEPS = 128  # of a second integer, for what the first one leaves

# What 4-bit values are multiplied with before they are rounded to bfloat16: nf4 then is off by
# 0.078 % and 0.001 % too large on the whole, instead of by 0.136 % and 0.044 % too small; fp4 not
# at all.
BF16_FACTORS = {"nf4": 1.4367, "fp4": 1.5}

BITS = {"nf4": 4, "fp4": 4, "int8": 8, "bf16": 16}


def _words(table: torch.Tensor) -> tuple[int, ...]:
    """Sixteen bytes as four int32."""
    return tuple(table.contiguous().view(torch.int32).tolist())


def level_tables(format_name: str, exact: bool) -> torch.Tensor:
    """A codebook as two halves of integers with a step each.

    Args:
        format_name: Of the weights.
        exact: Take the integers below and a second one each, for the rest; else the nearest.

    Returns:
        int32 ``[10]``: the bits of a float32 step for either half, 16 integers from 0 to 127 as
        bytes, and 16 for the rest in steps of 1 / REST_STEPS. Zeros for formats without a codebook.
    """
    found = FORMATS[format_name]
    if not isinstance(found, Codebook4):
        return torch.zeros(10, dtype=torch.int32)
    halves = found.codebook.double().view(2, 8)
    per_unit = torch.tensor(STEPS_PER_UNIT[format_name], dtype=torch.float64)
    levels = halves.abs() * per_unit[:, None]
    first = levels.floor() if exact else levels.round()
    rest = ((levels - first) * REST_STEPS).round().clamp(max=127) * exact
    steps = (halves.sum(1).sign() / per_unit).float()
    integers = torch.stack((first, rest)).to(torch.int8).flatten()
    return torch.cat((steps.view(torch.int32), integers.view(torch.int32)))


def level_values(format_name: str, exact: bool) -> torch.Tensor:
    """The 16 values that `level_tables` stand for; float32."""
    table = level_tables(format_name, exact)
    integers = table[2:].view(torch.int8).view(2, 2, 8).double()
    steps = table[:2].view(torch.float32).double()
    values = (integers[0] + integers[1] / REST_STEPS) * steps[:, None]
    return values.flatten().float()


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
