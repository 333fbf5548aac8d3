"""Products of many rows: weights become bfloat16 in the kernel and go through the tensor cores.

One kernel serves plain products and layers of experts. Rows are grouped into tiles of one expert
each; where a tile's rows lie and whose they are is worked out on the device, without a look at it
from the host.
"""

import triton
import triton.language as tl

from quant.kernels.triton.dots import half_at

# Eight 4-bit codes to eight bfloat16 values, two a register: their high and their low bytes are
# looked up in a table each (see dots.py) and then interleaved.
_EXPAND = tl.constexpr("""{
    .reg .b32 m, h, a, b, u, l;
    and.b32 m, $4, 0x77777777;
    shr.u32 h, $4, 1;
    lop3.b32 h, h, 0x44444444, 0x32103210, 0xEA;
    prmt.b32 a, $5, $6, m;
    prmt.b32 b, $7, $8, m;
    prmt.b32 u, a, b, h;
    prmt.b32 a, $9, $10, m;
    prmt.b32 b, $11, $12, m;
    prmt.b32 l, a, b, h;
    prmt.b32 $0, l, u, 0x5140;
    prmt.b32 $1, l, u, 0x7362;
    shr.u32 m, m, 16;
    shr.u32 h, h, 16;
    prmt.b32 a, $5, $6, m;
    prmt.b32 b, $7, $8, m;
    prmt.b32 u, a, b, h;
    prmt.b32 a, $9, $10, m;
    prmt.b32 b, $11, $12, m;
    prmt.b32 l, a, b, h;
    prmt.b32 $2, l, u, 0x5140;
    prmt.b32 $3, l, u, 0x7362;
}""")


@triton.jit
def _byte_at(code, T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr):
    """One byte of a table of 16, as int32."""
    word = tl.where(code < 8, tl.where(code < 4, T0, T1), tl.where(code < 12, T2, T3))
    return (word >> (8 * (code & 3))) & 255


@triton.jit
def _expand(
    w, U0: tl.constexpr, U1: tl.constexpr, U2: tl.constexpr, U3: tl.constexpr,
    L0: tl.constexpr, L1: tl.constexpr, L2: tl.constexpr, L3: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Words of eight codes to four int32 of two bfloat16 each, the lower code in the low half."""
    zero = w * 0
    if PTX:
        return tl.inline_asm_elementwise(
            _EXPAND,
            "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r",
            [
                w, zero + U0, zero + U1, zero + U2, zero + U3,
                zero + L0, zero + L1, zero + L2, zero + L3,
            ],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )  # fmt: skip
    p0, p1, p2, p3 = zero, zero, zero, zero
    for j in tl.static_range(8):
        code = (w >> (4 * j)) & 15
        value = (_byte_at(code, U0, U1, U2, U3) << 8) | _byte_at(code, L0, L1, L2, L3)
        value = value << (16 * (j % 2))
        if j // 2 == 0:
            p0 |= value
        elif j // 2 == 1:
            p1 |= value
        elif j // 2 == 2:
            p2 |= value
        else:
            p3 |= value
    return p0, p1, p2, p3


@triton.jit
def _halves(p):
    """The two bfloat16 of an int32 as a new last dimension."""
    low = (p & 65535).to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = ((p >> 16) & 65535).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high)


@triton.jit
def _tile_x16(
    codes, group, block, num_blocks, num_groups, G: tl.constexpr,
    U0: tl.constexpr, U1: tl.constexpr, U2: tl.constexpr, U3: tl.constexpr,
    L0: tl.constexpr, L1: tl.constexpr, L2: tl.constexpr, L3: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Codebook values of one block of 64 inputs of G row groups, bfloat16 ``[64, 16 · G]``.

    Row ``4·q + j`` of group g is column ``(j · G + g) · 4 + q``: a thread reads four rows at once,
    and so neighbouring threads write neighbouring columns to different banks of shared memory.
    """
    t = tl.arange(0, 8)
    r = tl.arange(0, 16)
    at = (group.to(tl.int64) * num_blocks + block)[:, None, None] * 128
    at = at + t[None, :, None] * 16 + r[None, None, :]
    w = tl.load(codes + at, mask=(group < num_groups)[:, None, None], other=0)
    w = tl.reshape(w, (G, 8, 4, 4))
    p0, p1, p2, p3 = _expand(w, U0, U1, U2, U3, L0, L1, L2, L3, PTX)
    # [g, t, q, j, half, i0, i1]: code 4·i1 + 2·i0 + half of word t is input 8t + that
    values = tl.join(tl.join(_halves(p0), _halves(p1)), tl.join(_halves(p2), _halves(p3)))
    return tl.reshape(tl.permute(values, (1, 6, 5, 4, 3, 0, 2)), (64, 16 * G))


@triton.jit
def _absmax_x16(absmax, group, block, num_blocks, num_groups, G: tl.constexpr):
    """The scales of one block of 64 inputs, float32 ``[16 · G]``, in the order of `_tile_x16`.

    They are read two a word: less than four bytes cannot be brought ahead of time.
    """
    at = (group.to(tl.int64) * num_blocks + block)[:, None] * 8 + tl.arange(0, 8)[None, :]
    w = tl.load(absmax + at, mask=(group < num_groups)[:, None], other=0)
    scale = tl.reshape(tl.join(half_at(w, 0), half_at(w, 1)).to(tl.float32), (G, 4, 4))
    return tl.reshape(tl.permute(scale, (2, 0, 1)), (16 * G,))


@triton.jit
def _in_row_order(acc, BM: tl.constexpr, G: tl.constexpr):
    """Columns of `_tile_x16` in the order of the rows that they came from."""
    columns = tl.permute(tl.reshape(acc, (BM, 4, G, 4)), (0, 2, 3, 1))
    return tl.reshape(columns, (BM, 16 * G))


@triton.jit
def _tile_int8(words, row, first_input, num_rows, num_inputs, W: tl.constexpr, BK: tl.constexpr):
    """int8 rows ``[W]``, read four codes a word, as bfloat16 ``[BK, W]``."""
    k = first_input // 4 + tl.arange(0, BK // 4)
    at = row.to(tl.int64)[:, None] * (num_inputs // 4) + k[None, :]
    ok = (row < num_rows)[:, None] & (k < num_inputs // 4)[None, :]
    w = tl.load(words + at, mask=ok, other=0) ^ -2139062144  # 0x80808080: codes plus 128
    low = tl.join(_from_byte(w, 0), _from_byte(w, 1))
    high = tl.join(_from_byte(w, 2), _from_byte(w, 3))
    # [row, word, i0, i1]: code 2·i1 + i0 of the word
    values = tl.permute(tl.join(low, high), (0, 1, 3, 2))
    return tl.trans(tl.reshape(values, (W, BK)))


@triton.jit
def _from_byte(w, i: tl.constexpr):
    """A byte of int32 less 128, as bfloat16.

    It is put into the lowest bits of a float, since instructions that convert integers are slow.
    """
    bits = ((w >> (8 * i)) & 255) | 0x4B000000  # 2^23 plus the byte
    return (bits.to(tl.float32, bitcast=True) - 8388736.0).to(tl.bfloat16)


@triton.jit
def _tile_bf16(codes, row, first_input, num_rows, num_inputs, BK: tl.constexpr):
    """bfloat16 rows ``[W]``, as ``[BK, W]``."""
    k = first_input + tl.arange(0, BK)
    at = row.to(tl.int64)[None, :] * num_inputs + k[:, None]
    ok = (row < num_rows)[None, :] & (k < num_inputs)[:, None]
    return tl.load(codes + at, mask=ok, other=0.0)


@triton.jit
def pointer_at(place, TYPE: tl.constexpr):
    """An address that is held at a place; it must be a multiple of 16.

    Kernels know that of their arguments. Of what they load they must be told, or they would read
    element by element.
    """
    return tl.multiple_of(tl.load(place).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def multiply(a, b, acc, PTX: tl.constexpr):
    """``acc + a @ b``; Triton's interpreter knows no product of bfloat16."""
    if PTX:
        return tl.dot(a, b, acc)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")


@triton.jit
def tiles_kernel(
    x, rows_of, expert_of, codes_at, scales_at, weights, out,
    num_rows, num_experts, num_out, num_inputs,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BITS: tl.constexpr,
    GROUPED: tl.constexpr, GATED: tl.constexpr, WEIGHTED: tl.constexpr, ROWS_PER_X: tl.constexpr,
    STAGES: tl.constexpr, UNIT: tl.constexpr,
    U0: tl.constexpr, U1: tl.constexpr, U2: tl.constexpr, U3: tl.constexpr,
    L0: tl.constexpr, L1: tl.constexpr, L2: tl.constexpr, L3: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """A tile of BM rows by BN outputs.

    Args:
        x: bfloat16 ``[num_rows / ROWS_PER_X, num_inputs]``.
        rows_of: GROUPED: int64, BM rows a tile; num_rows or more where there is none.
        expert_of: GROUPED: int64, the expert of each tile; num_experts or more for no tile.
        codes_at: int64, address of each expert's codes.
        scales_at: int64, address of its scales.
        weights: WEIGHTED: float32 ``[num_rows]``, factors of the results.
        out: ``[num_rows, num_out]``.
        num_out: Outputs; GATED: half the weight's rows, the gate's first.
        UNIT: 4 bits: what one is in the table, see tables.py.
    """
    tile = tl.program_id(1)
    expert = 0
    if GROUPED:
        expert = tl.load(expert_of + tile).to(tl.int32)
    if expert < num_experts:
        row = tile * BM + tl.arange(0, BM)
        if GROUPED:
            row = tl.load(rows_of + row).to(tl.int32)
        ok = row < num_rows
        first = tl.program_id(0) * BN
        W: tl.constexpr = 2 * BN if GATED else BN
        if BITS == 4:
            codes = pointer_at(codes_at + expert, tl.int32)
            scales = pointer_at(scales_at + expert, tl.int32)
        elif BITS == 8:
            codes = pointer_at(codes_at + expert, tl.int32)
            scales = pointer_at(scales_at + expert, tl.float32)
        else:
            codes = pointer_at(codes_at + expert, tl.bfloat16)
            scales = codes
        all_out = num_out * 2 if GATED else num_out
        G: tl.constexpr = W // 16
        # GATED: the second half of a program's columns are the up rows of its gate rows
        i = tl.arange(0, G)
        group = first // 16 + i + tl.where(i < BN // 16, 0, num_out // 16 - BN // 16)
        c = tl.arange(0, W)
        weight_row = first + c + tl.where(c < BN, 0, num_out - BN)
        groups, blocks = all_out // 16, num_inputs // 64
        k = tl.arange(0, BK)
        x_rows = x + (row // ROWS_PER_X).to(tl.int64)[:, None] * num_inputs
        acc = tl.zeros((BM, W), tl.float32)
        nothing = tl.zeros((BM, W), tl.float32)
        for begin in tl.range(0, num_inputs, BK, num_stages=STAGES):
            inside = (begin + k) < num_inputs
            a = tl.load(x_rows + begin + k[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
            if BITS == 4:
                block = begin // 64
                b = _tile_x16(codes, group, block, blocks, groups, G,
                              U0, U1, U2, U3, L0, L1, L2, L3, PTX)  # fmt: skip
                scale = _absmax_x16(scales, group, block, blocks, groups, G)
                acc += multiply(a, b, nothing, PTX) * scale[None, :]
            elif BITS == 8:
                b = _tile_int8(codes, weight_row, begin, all_out, num_inputs, W, BK)
                acc = multiply(a, b, acc, PTX)
            else:
                b = _tile_bf16(codes, weight_row, begin, all_out, num_inputs, BK)
                acc = multiply(a, b, acc, PTX)
        if BITS == 4:
            acc = _in_row_order(acc, BM, G) * UNIT
        if BITS == 8:
            scale = tl.load(scales + weight_row, mask=weight_row < all_out, other=0.0)
            acc *= (scale * (1.0 / 127.0))[None, :]
        n = first + tl.arange(0, BN)
        if GATED:
            gate, up = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN)), (0, 2, 1)))
            acc = gate * tl.sigmoid(gate) * up
        if WEIGHTED:
            acc *= tl.load(weights + row, mask=ok, other=0.0)[:, None]
        at = row.to(tl.int64)[:, None] * num_out + n[None, :]
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=ok[:, None] & (n < num_out)[None, :])
