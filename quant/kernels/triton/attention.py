"""Attention of one new token: rotation, cache write and a read split over the context in parts.

The number of tokens lives on the device, so one captured launch serves every length.
"""

import triton
import triton.language as tl

from quant.kernels.triton.tiles import multiply, pointer_at
from quant.kernels.triton.waiting import await_predecessor


@triton.jit
def _rotated(heads, d, ok, cos, sin):
    """Neighbouring pairs rotated: ``[rows, D]`` from float32 heads at pointers of their starts."""
    value = tl.load(heads[:, None] + d[None, :], mask=ok[:, None], other=0.0)
    other = tl.load(heads[:, None] + (d ^ 1)[None, :], mask=ok[:, None], other=0.0)
    signed = tl.where((d & 1) == 0, -sin, sin)
    return value * cos[None, :] + other * signed[None, :]


@triton.jit
def _store_out(out, head, ok, oq, os, D: tl.constexpr, RP: tl.constexpr, BITS: tl.constexpr):
    """Attended heads ``[RP, D]``, quantized by 16 for the output projection."""
    d = tl.arange(0, D)
    at = (head * D)[:, None] + d[None, :]
    if BITS == 16:
        tl.store(oq + at, out.to(tl.bfloat16), mask=ok[:, None])
    else:
        grouped = tl.reshape(out, (RP, D // 16, 16))
        largest = tl.max(tl.abs(grouped), 2)
        inverse = tl.where(largest > 0, 32767.0 / tl.maximum(largest, 1e-30), 0.0)
        codes = tl.floor(grouped * inverse[:, :, None] + 0.5).to(tl.int16)
        tl.store(oq + at, tl.reshape(codes, (RP, D)), mask=ok[:, None])
        group = (head * (D // 16))[:, None] + tl.arange(0, D // 16)[None, :]
        tl.store(os + group, largest * (1.0 / 32767.0), mask=ok[:, None])


@triton.jit
def _part_length(length, SPLITS: tl.constexpr, BT: tl.constexpr):
    """Tokens of a part, whole tiles of BT, so that at most SPLITS parts hold the context."""
    return tl.cdiv(tl.cdiv(length, SPLITS), BT) * BT


@triton.jit
def attention_kernel(
    qkv, angles, state, layer_idx, scale, partial, maxima, sums, oq, os,
    NUM_LAYERS: tl.constexpr, NUM_KV: tl.constexpr, REP: tl.constexpr, RP: tl.constexpr,
    D: tl.constexpr, BT: tl.constexpr, SPLITS: tl.constexpr, BITS: tl.constexpr,
    PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One of SPLITS parts of the context for the query heads of one key and value head.

    Where one part holds all of it the result is final, else `combine_kernel` makes it.

    Args:
        qkv: float32, heads of q, k and v after each other.
        angles: float32 ``[2, D / 2]``, cosine and sine of this position's rotations.
        state: int64: position, address and capacity in tokens of the bfloat16 cache
            ``[2, NUM_LAYERS, NUM_KV, capacity, D]``.
        layer_idx: Layer of the model.
        scale: Of the scores.
        partial: float32 ``[NUM_KV, SPLITS, RP, D]``, with maxima and sums ``[NUM_KV, SPLITS, RP]``.
        oq: Attended heads for the output projection, with their scales os.
    """
    kv = tl.program_id(0)
    split = tl.program_id(1)
    pos = tl.load(state).to(tl.int32)
    cache = pointer_at(state + 1, tl.bfloat16)
    capacity = tl.load(state + 2)
    d = tl.arange(0, D)
    cos = tl.load(angles + d // 2, cache_modifier=".cg")
    sin = tl.load(angles + D // 2 + d // 2, cache_modifier=".cg")
    await_predecessor(PDL)
    length = pos + 1
    chunk = _part_length(length, SPLITS, BT)
    num_active = tl.cdiv(length, chunk)
    if split < num_active:
        i = tl.arange(0, RP)
        ok = i < REP
        keys = cache + (layer_idx * NUM_KV + kv) * capacity * D
        values = cache + ((NUM_LAYERS + layer_idx) * NUM_KV + kv) * capacity * D
        if split == num_active - 1:
            k_head = qkv + (NUM_KV * REP + kv) * D + i * 0
            one = i < 1
            k = _rotated(k_head, d, one, cos, sin)
            v = tl.load((k_head + NUM_KV * D)[:, None] + d[None, :], mask=one[:, None], other=0.0)
            at = pos.to(tl.int64) * D + i[:, None] * D + d[None, :]
            tl.store(keys + at, k.to(tl.bfloat16), mask=one[:, None])
            tl.store(values + at, v.to(tl.bfloat16), mask=one[:, None])
            tl.debug_barrier()
        q = _rotated(qkv + (kv * REP + i) * D, d, ok, cos, sin).to(tl.bfloat16)
        largest = tl.full((RP,), -1e30, tl.float32)
        total = tl.zeros((RP,), tl.float32)
        acc = tl.zeros((RP, D), tl.float32)
        t = tl.arange(0, BT)
        first = split * chunk
        for begin in range(first, tl.minimum(first + chunk, length), BT):
            token = begin + t
            held = token < length
            at = token.to(tl.int64)[:, None] * D + d[None, :]
            k_tile = tl.load(keys + at, mask=held[:, None], other=0.0)
            v_tile = tl.load(values + at, mask=held[:, None], other=0.0)
            score = multiply(q, tl.trans(k_tile), tl.zeros((RP, BT), tl.float32), PTX) * scale
            score = tl.where(held[None, :], score, -1e30)
            new = tl.maximum(largest, tl.max(score, 1))
            shrink = tl.exp(largest - new)
            p = tl.exp(score - new[:, None])
            total = total * shrink + tl.sum(p, 1)
            acc = multiply(p.to(tl.bfloat16), v_tile, acc * shrink[:, None], PTX)
            largest = new
        head = kv * REP + i
        if num_active == 1:
            _store_out(acc / total[:, None], head, ok, oq, os, D, RP, BITS)
        else:
            mine = (kv * SPLITS + split) * RP + i
            tl.store(partial + mine[:, None] * D + d[None, :], acc, mask=ok[:, None])
            tl.store(maxima + mine, largest, mask=ok)
            tl.store(sums + mine, total, mask=ok)


@triton.jit
def combine_kernel(
    state, partial, maxima, sums, oq, os,
    REP: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, BT: tl.constexpr,
    SPLITS: tl.constexpr, PADDED_SPLITS: tl.constexpr, BITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The parts' results of one query head, weighted by their shares of the softmax.

    A launch of its own, since the last program of a key and value head would do it alone, after a
    barrier: that took half of attention's time at 4,096 tokens.
    """
    head = tl.program_id(0)
    length = tl.load(state).to(tl.int32) + 1
    num_active = tl.cdiv(length, _part_length(length, SPLITS, BT))
    await_predecessor(PDL)
    if num_active > 1:
        part = tl.arange(0, PADDED_SPLITS)
        d = tl.arange(0, D)
        there = part < num_active
        row = (head // REP * SPLITS + part) * RP + head % REP
        theirs = tl.load(maxima + row, mask=there, other=-1e30)
        their_sums = tl.load(sums + row, mask=there, other=0.0)
        values = tl.load(partial + row[:, None] * D + d[None, :], mask=there[:, None], other=0.0)
        share = tl.exp(theirs - tl.max(theirs, 0))
        out = tl.sum(values * share[:, None], 0) / tl.sum(share * their_sums, 0)
        one = tl.arange(0, 1)
        _store_out(out[None, :], head + one, one == 0, oq, os, D, 1, BITS)
