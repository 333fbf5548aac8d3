"""Sixteen dot products of one activation vector with packed weights, and what follows them.

An activation vector is int8 with one float32 scale for 16 values, or bfloat16 where the weights
are. Weights are held in 4 bits (layout ``x16``), int8 rows or bfloat16 rows; ``BITS`` says which.
"""

import triton
import triton.language as tl

from quant.kernels.triton.tables import LEVELS_PER_UNIT

UNIT = tl.constexpr(1.0 / LEVELS_PER_UNIT)

# Eight 4-bit codes of a word become eight int8 values of a table in four registers, and two
# products of four are added up. Selector nibbles of prmt are the codes as they stand: bits 0-2
# choose within a half of the table, bit 3 (moved to bit 2 of the last selector) the half.
_DOT_NIBBLES = tl.constexpr("""{
    .reg .b32 m, h, a, b, c;
    and.b32 m, $1, 0x77777777;
    shr.u32 h, $1, 1;
    lop3.b32 h, h, 0x44444444, 0x32103210, 0xEA;
    prmt.b32 a, $5, $6, m;
    prmt.b32 b, $7, $8, m;
    prmt.b32 a, a, b, h;
    dp4a.s32.s32 c, a, $2, $4;
    shr.u32 m, m, 16;
    shr.u32 h, h, 16;
    prmt.b32 a, $5, $6, m;
    prmt.b32 b, $7, $8, m;
    prmt.b32 a, a, b, h;
    dp4a.s32.s32 $0, a, $3, c;
}""")


@triton.jit
def byte_of(word, idx):
    """A signed byte of an int32, idx 0 to 3."""
    return (word << (24 - 8 * idx)) >> 24


@triton.jit
def dot_bytes(a, b, PTX: tl.constexpr):
    """Four products of signed bytes, added up; all int32."""
    if PTX:
        return tl.inline_asm_elementwise(
            "{.reg .b32 z; mov.b32 z, 0; dp4a.s32.s32 $0, $1, $2, z;}",
            "=r,r,r",
            [a, b],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    total = byte_of(a, 0) * byte_of(b, 0)
    for i in tl.static_range(1, 4):
        total += byte_of(a, i) * byte_of(b, i)
    return total


@triton.jit
def dot_nibbles(w, low, high, total, t0, t1, t2, t3, PTX: tl.constexpr):
    """Eight codes of a word times eight int8 activations, low ones first, and total; int32."""
    zero = w * 0
    if PTX:
        return tl.inline_asm_elementwise(
            _DOT_NIBBLES,
            "=r,r,r,r,r,r,r,r,r",
            [w, low, high, total, zero + t0, zero + t1, zero + t2, zero + t3],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    for j in tl.static_range(8):
        code = (w >> (4 * j)) & 15
        word = tl.where(code < 8, tl.where(code < 4, t0, t1), tl.where(code < 12, t2, t3))
        x = byte_of(low if j < 4 else high, j % 4)
        total += byte_of(word, code & 3) * x
    return total


@triton.jit
def _each_row(x, BG: tl.constexpr):
    return tl.broadcast_to(x[:, :, None], (BG, 4, 16))


@triton.jit
def half_at(word, i: tl.constexpr):
    """One of the two float16 of int32."""
    return ((word >> (16 * i)) & 65535).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def dot_x16(
    codes, absmax, xq, xs, table, NUM_BLOCKS: tl.constexpr, BG: tl.constexpr, PTX: tl.constexpr
):  # fmt: skip
    """4-bit weights of one row group: float32 ``[16]``, in units of the table.

    Args are those of `dot16`, but absmax, which is read two float16 a word.

    Two words of a row at a time, which share a scale of the activations, become one integer. BG is
    twice the number of warps: then a thread reads 16 bytes of codes a load and the tensors of
    activations have fewer elements than threads, so that Triton loads them where they are used
    instead of passing them through shared memory.

    The table is loaded from four places: what is the same for all threads the compiler would keep
    in uniform registers and copy at each use.
    """
    block = tl.arange(0, BG)
    pair = tl.arange(0, 4)
    row = tl.arange(0, 16)
    t0 = tl.load(table + pair)[None, :, None]
    t1 = tl.load(table + 4 + pair)[None, :, None]
    t2 = tl.load(table + 8 + pair)[None, :, None]
    t3 = tl.load(table + 12 + pair)[None, :, None]
    acc = tl.zeros((BG, 4, 16), tl.float32)
    nothing = tl.zeros((BG, 4, 16), tl.int32)
    for first in tl.static_range(0, NUM_BLOCKS, BG):
        g = first + block
        ok = (g < NUM_BLOCKS)[:, None]
        words = codes + g[:, None, None] * 128 + pair[None, :, None] * 32 + row[None, None, :]
        even = tl.load(words, mask=ok[:, :, None], other=0)
        odd = tl.load(words + 16, mask=ok[:, :, None], other=0)
        scale = tl.load(absmax + g[:, None] * 8 + tl.arange(0, 8)[None, :], mask=ok, other=0)
        scale = tl.reshape(tl.join(half_at(scale, 0), half_at(scale, 1)), (BG, 16))
        x = xq + g[:, None] * 16 + 4 * pair[None, :]
        xscale = tl.load(xs + g[:, None] * 4 + pair[None, :], mask=ok, other=0.0)
        low = _each_row(tl.load(x, mask=ok, other=0), BG)
        high = _each_row(tl.load(x + 1, mask=ok, other=0), BG)
        sums = dot_nibbles(even, low, high, nothing, t0, t1, t2, t3, PTX)
        low = _each_row(tl.load(x + 2, mask=ok, other=0), BG)
        high = _each_row(tl.load(x + 3, mask=ok, other=0), BG)
        sums = dot_nibbles(odd, low, high, sums, t0, t1, t2, t3, PTX)
        acc += sums.to(tl.float32) * (xscale[:, :, None] * scale.to(tl.float32)[:, None, :])
    return tl.sum(tl.sum(acc, 0), 0)


@triton.jit
def dot_int8(
    codes, row_words, xq, xs, NUM_WORDS: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr,
    row_ok, PTX: tl.constexpr,
):  # fmt: skip
    """int8 rows, row_words int32 words apart: float32 ``[ROWS]``, without the rows' scales."""
    word = tl.arange(0, BW)
    row = tl.arange(0, ROWS).to(tl.int64)
    acc = tl.zeros((ROWS, BW), tl.float32)
    for first in tl.static_range(0, NUM_WORDS, BW):
        k = first + word
        ok = k < NUM_WORDS
        at = row[:, None] * row_words + k[None, :]
        w = tl.load(codes + at, mask=row_ok[:, None] & ok[None, :], other=0)
        x = tl.load(xq + k, mask=ok, other=0)
        scale = tl.load(xs + k // 4, mask=ok, other=0.0)
        sums = dot_bytes(w, tl.broadcast_to(x[None, :], (ROWS, BW)), PTX)
        acc += sums.to(tl.float32) * scale[None, :]
    return tl.sum(acc, 1)


@triton.jit
def dot_bf16(
    weight, row_stride, x, NUM_INPUTS: tl.constexpr, ROWS: tl.constexpr, BK: tl.constexpr, row_ok
):  # fmt: skip
    """bfloat16 rows, row_stride values apart: float32 ``[ROWS]``."""
    lane = tl.arange(0, BK)
    row = tl.arange(0, ROWS).to(tl.int64)
    acc = tl.zeros((ROWS, BK), tl.float32)
    for first in tl.static_range(0, NUM_INPUTS, BK):
        k = first + lane
        ok = k < NUM_INPUTS
        at = row[:, None] * row_stride + k[None, :]
        w = tl.load(weight + at, mask=row_ok[:, None] & ok[None, :], other=0.0)
        value = tl.load(x + k, mask=ok, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * value[None, :]
    return tl.sum(acc, 1)


@triton.jit
def dot16(
    codes, scales, group, first_input, xq, xs, table, IN_FEATURES: tl.constexpr,
    NUM_INPUTS: tl.constexpr, BITS: tl.constexpr, WARPS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Rows 16·group … of a weight times NUM_INPUTS activations from first_input on.

    Args:
        codes: int32 pointer (bfloat16 where BITS is 16) to the weight's codes.
        scales: float16 absmax a block (4 bits) or float32 absmax a row (8 bits).
        group: Which 16 rows.
        first_input: Where in the row to begin, a multiple of 64. xq and xs point there already.
        xq: int32 pointer to int8 activations, or to bfloat16 ones.
        xs: Their float32 scales, one for 16.
        table: 4 bits: int32 ``[4]``, see tables.py.

    Returns:
        float32 ``[16]``.
    """
    row = tl.arange(0, 16)
    group = group.to(tl.int64)
    if BITS == 4:
        block = group * (IN_FEATURES // 64) + first_input // 64
        sums = dot_x16(
            codes + block * 128, (scales + block * 16).to(tl.pointer_type(tl.int32)), xq, xs, table,
            NUM_INPUTS // 64, 2 * WARPS, PTX,
        )  # fmt: skip
        return sums * UNIT
    if BITS == 8:
        first = codes + (group * 16 * IN_FEATURES + first_input) // 4
        sums = dot_int8(
            first, IN_FEATURES // 4, xq, xs, NUM_INPUTS // 4, 16, 8 * WARPS, row < 16, PTX
        )
        return sums * tl.load(scales + group * 16 + row) * (1.0 / 127.0)
    first = codes + group * 16 * IN_FEATURES + first_input
    return dot_bf16(first, IN_FEATURES, xq, NUM_INPUTS, 16, 16 * WARPS, row < 16)


@triton.jit
def rms_scale(squares, NUM_GROUPS: tl.constexpr, PADDED: tl.constexpr, hidden_size, eps):
    """What a norm multiplies by, from the sums of squares that `publish` left for 16 rows each."""
    i = tl.arange(0, PADDED)
    part = tl.load(squares + i, mask=i < NUM_GROUPS, other=0.0)
    return 1.0 / tl.sqrt(tl.sum(part) / hidden_size + eps)


@triton.jit
def store_quantized(values, xq8, xs, group, BITS: tl.constexpr):
    """Sixteen activations as int8 with their scale, or as bfloat16 where the weights are."""
    i = tl.arange(0, 16)
    if BITS == 16:
        tl.store(xq8 + group * 16 + i, values.to(tl.bfloat16))
    else:
        largest = tl.max(tl.abs(values))
        inverse = tl.where(largest > 0, 127.0 / tl.maximum(largest, 1e-30), 0.0)
        tl.store(xq8 + group * 16 + i, tl.floor(values * inverse + 0.5).to(tl.int8))
        tl.store(xs + group, largest * (1.0 / 127.0))


@triton.jit
def publish(x, values, norm, squares, xq8, xs, group, BITS: tl.constexpr):
    """Sixteen rows of the residual stream: as they are, and prepared for the next product.

    The norm's scalar is not known before all rows are; being one factor for the whole vector it
    is left to the reader, who multiplies its result with `rms_scale`.
    """
    rows = group * 16 + tl.arange(0, 16)
    tl.store(x + rows, values)
    tl.store(squares + group, tl.sum(values * values))
    weighted = values * tl.load(norm + rows).to(tl.float32)
    store_quantized(weighted, xq8, xs, group, BITS)
