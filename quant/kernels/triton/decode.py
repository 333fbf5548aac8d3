"""The kernels of one decoded token, but for attention: products with what comes before and after.

The residual stream is float32 ``[hidden_size]``. Whoever completes 16 rows of it also stores them
multiplied by the next norm's weight and quantized, so no kernel is there for norms alone.
"""

import triton
import triton.language as tl

from quant.kernels.triton.asking import NO_SLOT, ask, choose_cpu_share, fetched_rows
from quant.kernels.triton.dots import (
    dot16,
    dot_bf16,
    dot_int8,
    publish,
    rms_scale,
    store_quantized,
)
from quant.kernels.triton.routing import choose_experts
from quant.kernels.triton.waiting import (
    await_predecessor,
    is_last,
    prefetch,
    start_successor,
)


@triton.jit
def embed_kernel(
    codes, absmax, token, state, inverse_frequencies, norm, x, squares, xq, xs, angles,
    HIDDEN: tl.constexpr, D: tl.constexpr, EMBED_BITS: tl.constexpr, BITS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The embedding row of ``token`` becomes the residual stream; a program for 16 rows.

    The first one also writes cosine and sine of the position's rotations, ``[2, D / 2]``.
    """
    group = tl.program_id(0)
    start_successor(PDL)
    await_predecessor(PDL)
    if group == 0:
        i = tl.arange(0, D // 2)
        angle = tl.load(state).to(tl.float32) * tl.load(inverse_frequencies + i)
        tl.store(angles + i, tl.cos(angle))
        tl.store(angles + D // 2 + i, tl.sin(angle))
    token_id = tl.load(token)
    at = token_id * HIDDEN + group * 16 + tl.arange(0, 16)
    if EMBED_BITS == 8:
        scale = tl.load(absmax + token_id) / 127.0
        values = tl.load(codes + at).to(tl.float32) * scale
    else:
        values = tl.load(codes + at).to(tl.float32)
    publish(x, values, norm, squares, xq, xs, group, BITS)


@triton.jit
def project_kernel(
    codes, scales, xq, xs, table, squares, out, eps,
    HIDDEN: tl.constexpr, PADDED_GROUPS: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr,
    WARPS: tl.constexpr, PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A product with the normed residual stream, float32 out; a program for 16 rows."""
    group = tl.program_id(0)
    start_successor(PDL)
    num_bytes: tl.constexpr = HIDDEN * 2 * BITS
    element: tl.constexpr = 1 if BITS == 16 else 32 // BITS  # weights in an element of codes
    first = codes + group.to(tl.int64) * (16 * HIDDEN // element)
    prefetch(first, num_bytes, triton.next_power_of_2(num_bytes // 128), PDL)
    await_predecessor(PDL)
    sums = dot16(codes, scales, group, 0, xq, xs, table, HIDDEN, HIDDEN, BITS, EXACT, WARPS, PTX)
    scale = rms_scale(squares, HIDDEN // 16, PADDED_GROUPS, HIDDEN, eps)
    tl.store(out + group * 16 + tl.arange(0, 16), sums * scale)


@triton.jit
def route_kernel(
    x, norm, squares, router, bias, logits, counter, slot_of, slots, weights, counts,
    eps, norm_min, layer_idx, num_slots, cpu_share, request, number, num_asked, hits,
    HIDDEN: tl.constexpr, PADDED_HIDDEN: tl.constexpr, PADDED_GROUPS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr, PADDED_EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
    ASKS: tl.constexpr, PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The router in float32: a program for an expert's logit, the last one chooses.

    Writes slots and weights of the chosen experts, likeliest first, and counts them. ASKS: some
    experts lie outside the GPU's memory, and those that the CPU runs get NO_SLOT here.
    """
    expert = tl.program_id(0)
    start_successor(PDL)
    k = tl.arange(0, PADDED_HIDDEN)
    ok = k < HIDDEN
    gate = tl.load(router + expert * HIDDEN + k, mask=ok, other=0.0)
    weight = tl.load(norm + k, mask=ok, other=0.0).to(tl.float32)
    await_predecessor(PDL)
    value = tl.load(x + k, mask=ok, other=0.0)
    scale = rms_scale(squares, HIDDEN // 16, PADDED_GROUPS, HIDDEN, eps)
    tl.store(logits + expert, tl.sum(value * weight * gate) * scale)
    if is_last(counter, NUM_EXPERTS):
        i = tl.arange(0, PADDED_EXPERTS)
        real = i < NUM_EXPERTS
        z = tl.load(logits + i, mask=real, other=-float("inf"), cache_modifier=".cg")
        chosen, rank, ahead, share = choose_experts(z, bias, i, real, norm_min, TOP_K)
        slot = tl.load(slot_of + i, mask=real, other=NO_SLOT)
        if ASKS:
            asked, resident = choose_cpu_share(slot, chosen, ahead, num_slots, cpu_share)
            slot = tl.where(asked, NO_SLOT, slot)
            vector = value * weight * scale
            ask(
                asked, ahead, share, vector, k, ok, layer_idx, request, number, num_asked,
                PADDED_EXPERTS, PTX,
            )  # fmt: skip
            num_resident = tl.sum(resident.to(tl.int32))
            tl.store(hits, tl.load(hits) + num_resident)
            num_streamed = TOP_K - num_resident - tl.sum(asked.to(tl.int32))
            tl.store(hits + 1, tl.load(hits + 1) + num_streamed)
        tl.store(slots + rank, slot, mask=chosen)
        tl.store(weights + rank, share, mask=chosen)
        count = tl.load(counts + i, mask=chosen, other=0)
        tl.store(counts + i, count + 1, mask=chosen)


@triton.jit
def gate_up_kernel(
    codes, scales, slots, code_stride, scale_stride, xq, xs, table, squares, aq, as_, eps,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, PADDED_GROUPS: tl.constexpr,
    FIRST_FIXED: tl.constexpr, ASKS: tl.constexpr, BITS: tl.constexpr, WARPS: tl.constexpr,
    PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``silu(gate(x)) * up(x)``, quantized; a program for 16 of WIDTH rows of one slot.

    From FIRST_FIXED on the slots are the same for every token, so their weights can be prefetched.
    """
    group = tl.program_id(0)
    which = tl.program_id(1)
    start_successor(PDL)
    element: tl.constexpr = 1 if BITS == 16 else 32 // BITS  # weights in an element of codes
    if which >= FIRST_FIXED:
        slot = tl.load(slots + which).to(tl.int64)
        first = codes + slot * code_stride + group.to(tl.int64) * (16 * HIDDEN // element)
        num_bytes: tl.constexpr = HIDDEN * 2 * BITS
        lines: tl.constexpr = triton.next_power_of_2(num_bytes // 128)
        prefetch(first, num_bytes, lines, PDL)
        prefetch(first + WIDTH * HIDDEN // element, num_bytes, lines, PDL)
    await_predecessor(PDL)
    slot = tl.load(slots + which).to(tl.int64)
    mine = True
    if ASKS:
        mine = slot != NO_SLOT
    if mine:
        codes += slot * code_stride
        scales += slot * scale_stride
        gate = dot16(
            codes, scales, group, 0, xq, xs, table, HIDDEN, HIDDEN, BITS, False, WARPS, PTX
        )
        up = dot16(
            codes, scales, WIDTH // 16 + group, 0, xq, xs, table, HIDDEN, HIDDEN, BITS, False,
            WARPS, PTX,
        )  # fmt: skip
        scale = rms_scale(squares, HIDDEN // 16, PADDED_GROUPS, HIDDEN, eps)
        gate *= scale
        out = gate * tl.sigmoid(gate) * up * scale
        store_quantized(out, aq, as_, which * (WIDTH // 16) + group, BITS)


@triton.jit
def add_kernel(
    codes, scales, slots, weights, code_stride, scale_stride, xq, xs, table,
    x, norm, squares, nq, ns, partial, counters, asked, num_asked, fetched, arrived,
    WIDTH: tl.constexpr, NUM_SLOTS: tl.constexpr, SPLIT: tl.constexpr, ROUTED: tl.constexpr,
    FIRST_FIXED: tl.constexpr, ASKS: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr,
    WARPS: tl.constexpr, PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Products added to the residual stream; SPLIT programs for 16 rows.

    ROUTED: slot s holds an expert's ``[hidden_size, WIDTH]`` and counts by its weight; ASKS: the
    CPU may bring more of them, see asking.py. Else the
    slots are pieces of WIDTH inputs of one weight ``[hidden_size, NUM_SLOTS · WIDTH]``. The
    programs' sums meet in a fixed order, so that a result does not depend on who is first.
    """
    group = tl.program_id(0)
    part = tl.program_id(1)
    row = tl.arange(0, 16)
    per_program: tl.constexpr = NUM_SLOTS // SPLIT
    inputs: tl.constexpr = WIDTH if ROUTED else NUM_SLOTS * WIDTH
    x_words: tl.constexpr = WIDTH if BITS == 16 else WIDTH // 4
    start_successor(PDL)
    element: tl.constexpr = 1 if BITS == 16 else 32 // BITS  # weights in an element of codes
    bytes_each: tl.constexpr = WIDTH * 2 * BITS
    lines: tl.constexpr = triton.next_power_of_2(bytes_each // 128)
    for i in tl.static_range(per_program):
        which = part * per_program + i
        if ROUTED:
            if which >= FIRST_FIXED:
                slot = tl.load(slots + which).to(tl.int64)
                first = codes + slot * code_stride + group.to(tl.int64) * (16 * WIDTH // element)
                prefetch(first, bytes_each, lines, PDL)
        elif BITS == 4 or NUM_SLOTS == 1:  # else the 16 rows' pieces lie apart
            piece = group.to(tl.int64) * (16 * inputs // element)
            piece += which * (16 * WIDTH // element)
            prefetch(codes + piece, bytes_each, lines, PDL)
    await_predecessor(PDL)
    total = tl.zeros((16,), tl.float32)
    for i in tl.static_range(per_program):
        which = part * per_program + i
        x_at = xq + which * x_words
        s_at = xs + which * (WIDTH // 16)
        if ROUTED:
            slot = tl.load(slots + which).to(tl.int64)
            mine = True
            if ASKS:
                mine = slot != NO_SLOT
            if mine:
                sums = dot16(
                    codes + slot * code_stride, scales + slot * scale_stride, group, 0, x_at, s_at,
                    table, inputs, WIDTH, BITS, EXACT, WARPS, PTX,
                )  # fmt: skip
                total += sums * tl.load(weights + which)
        else:
            total += dot16(
                codes, scales, group, which * WIDTH, x_at, s_at, table, inputs, WIDTH, BITS, EXACT,
                WARPS, PTX,
            )  # fmt: skip
    if SPLIT == 1:
        values = tl.load(x + group * 16 + row) + total
        if ASKS:
            values += fetched_rows(group * 16 + row, asked, num_asked, fetched, arrived)
        publish(x, values, norm, squares, nq, ns, group, BITS)
    else:
        tl.store(partial + (group * SPLIT + part) * 16 + row, total)
        if is_last(counters + group, SPLIT):
            values = tl.load(x + group * 16 + row)
            for i in tl.static_range(SPLIT):
                at = partial + (group * SPLIT + i) * 16 + row
                values += tl.load(at, cache_modifier=".cg")
            if ASKS:
                values += fetched_rows(group * 16 + row, asked, num_asked, fetched, arrived)
            publish(x, values, norm, squares, nq, ns, group, BITS)


@triton.jit
def store_logits(logit, at, ok, seen, penalty, logits, best, best_at, first):
    """Logits of a program under the repetition penalty, and the best of them; padding: -inf."""
    factor = tl.load(penalty)
    is_seen = tl.load(seen + at, mask=ok, other=0) != 0
    penalized = tl.where(logit > 0, logit / factor, logit * factor)
    logit = tl.where(is_seen, penalized, logit)
    logit = tl.where(ok, logit, -float("inf"))
    tl.store(logits + at, logit, mask=ok)
    tl.store(best + tl.program_id(0), tl.max(logit))
    tl.store(best_at + tl.program_id(0), first + tl.argmax(logit, 0))


@triton.jit
def head_kernel(
    codes, absmax, xq, xs, squares, seen, penalty, logits, best, best_at, eps, num_tokens,
    HIDDEN: tl.constexpr, PADDED_GROUPS: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    WARPS: tl.constexpr, PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Logits with the repetition penalty, and the best of each ROWS; padding rows get -inf."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    at = first + row
    ok = at < num_tokens
    start_successor(PDL)
    await_predecessor(PDL)
    if BITS == 8:
        start = codes + first * (HIDDEN // 4)
        sums = dot_int8(start, HIDDEN // 4, xq, xs, HIDDEN // 4, ROWS, 8 * WARPS, ok, PTX)
        sums *= tl.load(absmax + at, mask=ok, other=0.0) * (1.0 / 127.0)
    else:
        sums = dot_bf16(codes + first * HIDDEN, HIDDEN, xq, HIDDEN, ROWS, 16 * WARPS, ok)
    logit = sums * rms_scale(squares, HIDDEN // 16, PADDED_GROUPS, HIDDEN, eps)
    store_logits(logit, at, ok, seen, penalty, logits, best, best_at, first)


@triton.jit
def advance_kernel(token, state, seen, PDL: tl.constexpr):
    """One token further: remember it as seen and count the position up."""
    start_successor(PDL)
    await_predecessor(PDL)
    tl.store(seen + tl.load(token), 1)
    tl.store(state, tl.load(state) + 1)
