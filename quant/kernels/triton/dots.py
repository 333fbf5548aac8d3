"""Sixteen dot products of one activation vector with packed weights.

An activation vector is int16 with one float32 scale for 16 values, or bfloat16 where the weights
are. Weights are held in 4 bits (layout ``x16``), int8 rows or bfloat16 rows; ``BITS`` says which.
"""

import triton
import triton.language as tl

from quant.kernels.triton.holding import load_rows, load_x16, places_x16, rows_at
from quant.kernels.triton.tables import REST_STEPS

REST_SHARE = tl.constexpr(1.0 / REST_STEPS)

# Eight 4-bit codes of a word select bytes of two tables, one for codes below 8 and one for the
# others, and each table's are multiplied with activations, two int16 a register. Selector nibbles
# of prmt are the codes as they stand: bits 0-2 choose a byte, and bit 3 asks for eight times its
# sign instead. As no byte is above 127, the codes of one table get 0 from the other.
_DOT_NIBBLES = tl.constexpr("""{
    .reg .b32 a, h, low, high, x0, x1, x2, x3;
    mov.b64 {x0, x1}, $3;
    mov.b64 {x2, x3}, $4;
    xor.b32 h, $2, 0x88888888;
    prmt.b32 a, $7, $8, $2;
    dp2a.lo.s32.u32 low, x0, a, $5;
    dp2a.hi.s32.u32 low, x1, a, low;
    prmt.b32 a, $9, $10, h;
    dp2a.lo.s32.u32 high, x0, a, $6;
    dp2a.hi.s32.u32 high, x1, a, high;
    shr.u32 a, $2, 16;
    shr.u32 h, h, 16;
    prmt.b32 a, $7, $8, a;
    dp2a.lo.s32.u32 low, x2, a, low;
    dp2a.hi.s32.u32 $0, x3, a, low;
    prmt.b32 a, $9, $10, h;
    dp2a.lo.s32.u32 high, x2, a, high;
    dp2a.hi.s32.u32 $1, x3, a, high;
}""")


@triton.jit
def byte_of(word, idx):
    """A signed byte of an int32, idx 0 to 3."""
    return (word << (24 - 8 * idx)) >> 24


@triton.jit
def half_of(words, idx):
    """A signed int16 of int64, idx 0 to 3; int32."""
    return ((words << (48 - 16 * idx)) >> 48).to(tl.int32)


@triton.jit
def dot_bytes(w, x, PTX: tl.constexpr):
    """Four signed bytes of int32 times four int16 of int64, added up; int32."""
    if PTX:
        return tl.inline_asm_elementwise(
            """{
                .reg .b32 low, high, sum;
                mov.b64 {low, high}, $2;
                mov.b32 sum, 0;
                dp2a.lo.s32.s32 sum, low, $1, sum;
                dp2a.hi.s32.s32 $0, high, $1, sum;
            }""",
            "=r,r,l",
            [w, x],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    total = byte_of(w, 0) * half_of(x, 0)
    for i in tl.static_range(1, 4):
        total += byte_of(w, i) * half_of(x, i)
    return total


@triton.jit
def dot_nibbles(w, first, second, low, high, t0, t1, t2, t3, PTX: tl.constexpr):
    """Eight codes of a word times eight int16 activations, four of them an int64.

    Returns:
        int32: low, plus products of codes below 8 by the table's first half (t0 and t1); high,
        plus those of the others by the second half.
    """
    zero = w * 0
    if PTX:
        return tl.inline_asm_elementwise(
            _DOT_NIBBLES,
            "=&r,=&r,r,l,l,r,r,r,r,r,r",
            [w, first, second, low, high, zero + t0, zero + t1, zero + t2, zero + t3],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    for j in tl.static_range(8):
        code = (w >> (4 * j)) & 15
        word = tl.where(code < 8, tl.where(code < 4, t0, t1), tl.where(code < 12, t2, t3))
        product = byte_of(word, code & 3) * half_of(first if j < 4 else second, j % 4)
        low += tl.where(code < 8, product, 0)
        high += tl.where(code < 8, 0, product)
    return low, high


@triton.jit
def _each_row(x, BG: tl.constexpr):
    return tl.broadcast_to(x[:, :, None], (BG, 4, 16))


@triton.jit
def half_at(word, i: tl.constexpr):
    """One of the two float16 of int32."""
    return ((word >> (16 * i)) & 65535).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _table_at(table, FIRST: tl.constexpr, pair):
    """Four words of a table from FIRST on, each from four places."""
    t0 = tl.load(table + 4 * FIRST + pair)[None, :, None]
    t1 = tl.load(table + (4 * FIRST + 4) + pair)[None, :, None]
    t2 = tl.load(table + (4 * FIRST + 8) + pair)[None, :, None]
    t3 = tl.load(table + (4 * FIRST + 12) + pair)[None, :, None]
    return t0, t1, t2, t3


@triton.jit
def dot_x16(
    codes, absmax, held, xq, xs, table, NUM_BLOCKS: tl.constexpr, BG: tl.constexpr,
    EXACT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """4-bit weights of one row group: float32 ``[16]``.

    Args are those of `dot16`, but absmax, which is read two float16 a word, and xq, four int16 an
    int64.

    Two words of a row at a time, which share a scale of the activations, become one integer for
    either half of the table. BG is twice the number of warps: then a thread reads 16 bytes of codes
    a load and the tensors of activations have fewer elements than threads, so that Triton loads
    them where they are used instead of passing them through shared memory.

    The table is loaded from four places: what is the same for all threads the compiler would keep
    in uniform registers and copy at each use.
    """
    pair = tl.arange(0, 4)
    t0, t1, t2, t3 = _table_at(table, 2, pair)
    r0, r1, r2, r3 = t0, t1, t2, t3
    if EXACT:
        r0, r1, r2, r3 = _table_at(table, 6, pair)
    low_step = tl.load(table).to(tl.float32, bitcast=True)
    high_step = tl.load(table + 4).to(tl.float32, bitcast=True)
    words, scales, block = places_x16(codes, absmax, BG)
    x = xq + (block[:, None] * 16 + pair[None, :] * 4)
    xscales = xs + (block[:, None] * 4 + pair[None, :])
    acc_low = tl.zeros((BG, 4, 16), tl.float32)
    acc_high = tl.zeros((BG, 4, 16), tl.float32)
    none = tl.zeros((BG, 4, 16), tl.int32)
    for first in tl.static_range(0, NUM_BLOCKS, BG):
        ok = (first + block < NUM_BLOCKS)[:, None]
        if held is None:
            even, odd, scale = load_x16(words, scales, block, first, NUM_BLOCKS)
        else:
            even, odd, scale = held[first // BG]
        scale = tl.reshape(tl.join(half_at(scale, 0), half_at(scale, 1)), (BG, 16))
        xscale = tl.load(xscales + first * 4, mask=ok, other=0.0)
        x0 = _each_row(tl.load(x + first * 16, mask=ok, other=0), BG)
        x1 = _each_row(tl.load(x + (first * 16 + 1), mask=ok, other=0), BG)
        x2 = _each_row(tl.load(x + (first * 16 + 2), mask=ok, other=0), BG)
        x3 = _each_row(tl.load(x + (first * 16 + 3), mask=ok, other=0), BG)
        low, high = dot_nibbles(even, x0, x1, none, none, t0, t1, t2, t3, PTX)
        low, high = dot_nibbles(odd, x2, x3, low, high, t0, t1, t2, t3, PTX)
        low, high = low.to(tl.float32), high.to(tl.float32)
        if EXACT:
            low_rest, high_rest = dot_nibbles(even, x0, x1, none, none, r0, r1, r2, r3, PTX)
            low_rest, high_rest = dot_nibbles(
                odd, x2, x3, low_rest, high_rest, r0, r1, r2, r3, PTX
            )  # fmt: skip
            low += low_rest.to(tl.float32) * REST_SHARE
            high += high_rest.to(tl.float32) * REST_SHARE
        factor = xscale[:, :, None] * scale.to(tl.float32)[:, None, :]
        acc_low += low * factor
        acc_high += high * factor
    return tl.sum(tl.sum(acc_low * low_step + acc_high * high_step, 0), 0)


@triton.jit
def dot_int8(
    codes, row_words, held, xq, xs, NUM_WORDS: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr,
    row_ok, PTX: tl.constexpr,
):  # fmt: skip
    """int8 rows, row_words int32 words apart: float32 ``[ROWS]``, without the rows' scales.

    Four words, which share a scale of the activations, become one integer.
    """
    word = tl.arange(0, BW)
    group = tl.arange(0, BW // 4)
    places = codes + (tl.arange(0, ROWS).to(tl.int64)[:, None] * row_words + word[None, :])
    acc = tl.zeros((ROWS, BW // 4), tl.float32)
    for first in tl.static_range(0, NUM_WORDS, BW):
        w = (
            held[first // BW]
            if held is not None
            else load_rows(places, row_ok, word, first, NUM_WORDS)
        )
        x = tl.load(xq + first + word, mask=first + word < NUM_WORDS, other=0)
        scale = tl.load(xs + first // 4 + group, mask=first + 4 * group < NUM_WORDS, other=0.0)
        products = dot_bytes(w, tl.broadcast_to(x[None, :], (ROWS, BW)), PTX)
        sums = tl.sum(tl.reshape(products, (ROWS, BW // 4, 4)), 2)
        acc += sums.to(tl.float32) * scale[None, :]
    return tl.sum(acc, 1)


@triton.jit
def dot_bf16(
    weight, row_stride, held, x, NUM_INPUTS: tl.constexpr, ROWS: tl.constexpr, BK: tl.constexpr,
    row_ok,
):  # fmt: skip
    """bfloat16 rows, row_stride values apart: float32 ``[ROWS]``."""
    lane = tl.arange(0, BK)
    places = weight + (tl.arange(0, ROWS).to(tl.int64)[:, None] * row_stride + lane[None, :])
    acc = tl.zeros((ROWS, BK), tl.float32)
    for first in tl.static_range(0, NUM_INPUTS, BK):
        w = (
            held[first // BK]
            if held is not None
            else load_rows(places, row_ok, lane, first, NUM_INPUTS)
        )
        value = tl.load(x + first + lane, mask=first + lane < NUM_INPUTS, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * value[None, :]
    return tl.sum(acc, 1)


@triton.jit
def dot16(
    codes, scales, group, first_input, held, xq, xs, table, IN_FEATURES: tl.constexpr,
    NUM_INPUTS: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, WARPS: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Rows 16·group … of a weight times NUM_INPUTS activations from first_input on.

    Args:
        codes: int32 pointer (bfloat16 where BITS is 16) to the weight's codes.
        scales: float16 absmax a block (4 bits) or float32 absmax a row (8 bits).
        group: Which 16 rows.
        first_input: Where in the row to begin, a multiple of 64. xq and xs point there already.
        held: What `hold16` loaded of the weight; None to load it here.
        xq: int64 pointer to int16 activations, four each, or to bfloat16 ones.
        xs: Their float32 scales, one for 16.
        table: 4 bits: int32 ``[10, 4]``, `level_tables` four times.
        EXACT: 4 bits: whether the table has rests.

    Returns:
        float32 ``[16]``.
    """
    row = tl.arange(0, 16)
    codes, scales = rows_at(codes, scales, group, first_input, IN_FEATURES, BITS)
    if BITS == 4:
        sums = dot_x16(codes, scales, held, xq, xs, table, NUM_INPUTS // 64, 2 * WARPS, EXACT, PTX)
    elif BITS == 8:
        absmax = tl.load(scales + row)
        sums = dot_int8(
            codes, IN_FEATURES // 4, held, xq, xs, NUM_INPUTS // 4, 16, 8 * WARPS, row < 16, PTX
        )
        sums *= absmax * (1.0 / 127.0)
    else:
        sums = dot_bf16(codes, IN_FEATURES, held, xq, NUM_INPUTS, 16, 16 * WARPS, row < 16)
    return sums
