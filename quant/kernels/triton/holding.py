"""Weights of a product on their way into registers, as `quant.kernels.triton.dots` takes them."""

import triton
import triton.language as tl


@triton.jit
def load_x16(words, scales, block, first: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """BG blocks from `first` on: two words of codes a row, and two scales a word."""
    ok = (first + block < NUM_BLOCKS)[:, None]
    even = tl.load(words + first * 128, mask=ok[:, :, None], other=0)
    odd = tl.load(words + (first * 128 + 16), mask=ok[:, :, None], other=0)
    return even, odd, tl.load(scales + first * 8, mask=ok, other=0)


@triton.jit
def places_x16(codes, absmax, BG: tl.constexpr):
    """Pointers to the first BG blocks' codes and scales, and the blocks' numbers.

    The loop adds constants to them, which load instructions take as they are.
    """
    block = tl.arange(0, BG)
    pair = tl.arange(0, 4)
    row = tl.arange(0, 16)
    words = codes + (block[:, None, None] * 128 + pair[None, :, None] * 32 + row[None, None, :])
    scales = absmax + (block[:, None] * 8 + tl.arange(0, 8)[None, :])
    return words, scales, block


@triton.jit
def load_rows(places, row_ok, lane, first: tl.constexpr, NUM: tl.constexpr):
    """Elements of rows from `first` on, of NUM that a row has."""
    return tl.load(places + first, mask=row_ok[:, None] & (first + lane < NUM)[None, :], other=0)


@triton.jit
def rows_at(
    codes, scales, group, first_input, IN_FEATURES: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    """Where 16 rows' codes and scales begin at an input."""
    group = group.to(tl.int64)
    if BITS == 4:
        block = group * (IN_FEATURES // 64) + first_input // 64
        codes += block * 128
        scales = (scales + block * 16).to(tl.pointer_type(tl.int32))
    else:
        size: tl.constexpr = 4 if BITS == 8 else 1  # weights in an element of codes
        codes += (group * 16 * IN_FEATURES + first_input) // size
        scales += group * 16
    return codes, scales


@triton.jit
def hold16(
    codes, scales, group, first_input, IN_FEATURES: tl.constexpr, NUM_INPUTS: tl.constexpr,
    BITS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """The weights of `dot16`, whose args these are, in registers: a tuple for its loop."""
    codes, scales = rows_at(codes, scales, group, first_input, IN_FEATURES, BITS)
    row = tl.arange(0, 16)
    held = ()
    if BITS == 4:
        words, places, block = places_x16(codes, scales, 2 * WARPS)
        for first in tl.static_range(0, NUM_INPUTS // 64, 2 * WARPS):
            held += (load_x16(words, places, block, first, NUM_INPUTS // 64),)
    else:
        size: tl.constexpr = 4 if BITS == 8 else 1
        step: tl.constexpr = (8 if BITS == 8 else 16) * WARPS
        lane = tl.arange(0, step)
        places = codes + (row.to(tl.int64)[:, None] * (IN_FEATURES // size) + lane[None, :])
        for first in tl.static_range(0, NUM_INPUTS // size, step):
            held += (load_rows(places, row < 16, lane, first, NUM_INPUTS // size),)
    return held
