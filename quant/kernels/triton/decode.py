"""The kernels of one decoded token, but for attention: products with what comes before and after.

The residual stream is float32 ``[hidden_size]``. Whoever completes 16 rows of it also stores them
multiplied by the next norm's weight and quantized, so no kernel is there for norms alone.
"""

import triton
import triton.language as tl

from quant.kernels.triton.asking import NO_SLOT, ask, choose_cpu_share, fetched_rows
from quant.kernels.triton.dots import dot16, dot_bf16, dot_int8
from quant.kernels.triton.holding import hold16
from quant.kernels.triton.routing import choose_experts
from quant.kernels.triton.stream import load_squares, publish, rms_scale, store_quantized
from quant.kernels.triton.waiting import await_predecessor, is_last, prefetch


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
    weight = tl.load(norm + group * 16 + tl.arange(0, 16)).to(tl.float32)
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
    publish(x, values, weight, squares, xq, xs, group, BITS)


@triton.jit
def project_kernel(
    codes, scales, xq, xs, table, squares, out, eps,
    HIDDEN: tl.constexpr, PADDED_GROUPS: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr,
    WARPS: tl.constexpr, PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A product with the normed residual stream, float32 out; a program for 16 rows."""
    group = tl.program_id(0)
    held = hold16(codes, scales, group, 0, HIDDEN, HIDDEN, BITS, WARPS)
    await_predecessor(PDL)
    squares = load_squares(squares, HIDDEN // 16, PADDED_GROUPS)
    sums = dot16(
        codes, scales, group, 0, held, xq, xs, table, HIDDEN, HIDDEN, BITS, EXACT, WARPS, PTX
    )
    tl.store(out + group * 16 + tl.arange(0, 16), sums * rms_scale(squares, HIDDEN, eps))


@triton.jit
def _store_logit_parts(
    values, gate, parts, group, NUM_EXPERTS: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """What 16 normed rows of the residual stream add to the router's logits, but for the scale."""
    expert = tl.arange(0, PADDED)
    logits = tl.sum(gate * values[None, :], 1)
    tl.store(parts + group * NUM_EXPERTS + expert, logits, mask=expert < NUM_EXPERTS)


@triton.jit
def route_kernel(
    logit_parts, x, norm, squares, bias, slot_of, slots, weights, counts,
    eps, norm_min, layer_idx, num_slots, cpu_share, request, number, num_asked, hits,
    HIDDEN: tl.constexpr, PADDED_HIDDEN: tl.constexpr, PADDED_GROUPS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr, PADDED_EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
    ASKS: tl.constexpr, PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The router in float32, one program: adds up its logits, float32 ``[HIDDEN / 16, experts]``.

    Writes slots and weights of the chosen experts, likeliest first, and counts them. ASKS: some
    experts lie outside the GPU's memory, and those that the CPU runs get NO_SLOT here.
    """
    i = tl.arange(0, PADDED_EXPERTS)
    real = i < NUM_EXPERTS
    correction = tl.load(bias + i, mask=real, other=0.0)
    slot = tl.load(slot_of + i, mask=real, other=NO_SLOT)
    count = tl.load(counts + i, mask=real, other=0)
    await_predecessor(PDL)
    group = tl.arange(0, PADDED_GROUPS)
    at = group[:, None] * NUM_EXPERTS + i[None, :]
    ok = (group < HIDDEN // 16)[:, None] & real[None, :]
    z = tl.sum(tl.load(logit_parts + at, mask=ok, other=0.0), 0)
    scale = rms_scale(load_squares(squares, HIDDEN // 16, PADDED_GROUPS), HIDDEN, eps)
    z = tl.where(real, z * scale, -float("inf"))
    chosen, rank, ahead, share = choose_experts(z, correction, i, real, norm_min, TOP_K)
    if ASKS:
        asked, resident = choose_cpu_share(slot, chosen, ahead, num_slots, cpu_share)
        slot = tl.where(asked, NO_SLOT, slot)
        k = tl.arange(0, PADDED_HIDDEN)
        weight = tl.load(norm + k, mask=k < HIDDEN, other=0.0).to(tl.float32)
        vector = tl.load(x + k, mask=k < HIDDEN, other=0.0) * weight * scale
        ask(
            asked, ahead, share, vector, k, k < HIDDEN, layer_idx, request, number, num_asked,
            PADDED_EXPERTS, PTX,
        )  # fmt: skip
        num_resident = tl.sum(resident.to(tl.int32))
        tl.store(hits, tl.load(hits) + num_resident)
        num_streamed = TOP_K - num_resident - tl.sum(asked.to(tl.int32))
        tl.store(hits + 1, tl.load(hits + 1) + num_streamed)
    tl.store(slots + rank, slot, mask=chosen)
    tl.store(weights + rank, share, mask=chosen)
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
    element: tl.constexpr = 1 if BITS == 16 else 32 // BITS  # weights in an element of codes
    if which >= FIRST_FIXED:  # past the first-level cache: the router may be writing beside it
        slot = tl.load(slots + which, cache_modifier=".cg").to(tl.int64)
        first = codes + slot * code_stride + group.to(tl.int64) * (16 * HIDDEN // element)
        num_bytes: tl.constexpr = HIDDEN * 2 * BITS
        lines: tl.constexpr = triton.next_power_of_2(num_bytes // 128)
        prefetch(first, num_bytes, lines, PDL)
        prefetch(first + WIDTH * HIDDEN // element, num_bytes, lines, PDL)
    await_predecessor(PDL)
    slot = tl.load(slots + which).to(tl.int64)
    squares = load_squares(squares, HIDDEN // 16, PADDED_GROUPS)
    mine = True
    if ASKS:
        mine = slot != NO_SLOT
    if mine:
        codes += slot * code_stride
        scales += slot * scale_stride
        gate = dot16(
            codes, scales, group, 0, None, xq, xs, table, HIDDEN, HIDDEN, BITS, False, WARPS, PTX
        )
        up = dot16(
            codes, scales, WIDTH // 16 + group, 0, None, xq, xs, table, HIDDEN, HIDDEN, BITS,
            False, WARPS, PTX,
        )  # fmt: skip
        scale = rms_scale(squares, HIDDEN, eps)
        gate *= scale
        out = gate * tl.sigmoid(gate) * up * scale
        store_quantized(out, aq, as_, which * (WIDTH // 16) + group, BITS)


@triton.jit
def _piece(
    codes, scales, slots, which, code_stride, scale_stride, WIDTH: tl.constexpr,
    ROUTED: tl.constexpr,
):  # fmt: skip
    """Where `add_kernel` finds the weights of a slot, and from which of their inputs on."""
    first = which * WIDTH
    if ROUTED:  # past the first-level cache: this may be before the wait for the predecessor
        slot = tl.load(slots + which, cache_modifier=".cg").to(tl.int64)
        codes += slot * code_stride
        scales += slot * scale_stride
        first = 0
    return codes, scales, first


@triton.jit
def add_kernel(
    codes, scales, slots, weights, code_stride, scale_stride, xq, xs, table,
    x, norm, squares, nq, ns, partial, counters, router, logit_parts,
    asked, num_asked, fetched, arrived,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, NUM_SLOTS: tl.constexpr, SPLIT: tl.constexpr,
    ROUTED: tl.constexpr, NUM_EXPERTS: tl.constexpr, PADDED_EXPERTS: tl.constexpr,
    ASKS: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, WARPS: tl.constexpr,
    PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Products added to the residual stream; SPLIT programs for 16 rows.

    ROUTED: slot s holds an expert's ``[HIDDEN, WIDTH]`` and counts by its weight; ASKS: the CPU may
    bring more of them, see asking.py. Else the slots are pieces of WIDTH inputs of one weight
    ``[HIDDEN, NUM_SLOTS · WIDTH]``. The programs' sums meet in a fixed order, so that a result does
    not depend on who is first. NUM_EXPERTS: how many there are where the router, float32
    ``[experts, HIDDEN]``, is next.
    """
    group = tl.program_id(0)
    part = tl.program_id(1)
    row = tl.arange(0, 16)
    per_program: tl.constexpr = NUM_SLOTS // SPLIT
    inputs: tl.constexpr = WIDTH if ROUTED else NUM_SLOTS * WIDTH
    x_words: tl.constexpr = WIDTH if BITS == 16 else WIDTH // 4
    held = ()
    if not ASKS:
        for i in tl.static_range(per_program):
            which = part * per_program + i
            theirs, factors, first = _piece(
                codes, scales, slots, which, code_stride, scale_stride, WIDTH, ROUTED
            )
            held += (hold16(theirs, factors, group, first, inputs, WIDTH, BITS, WARPS),)
    weight = tl.load(norm + group * 16 + row).to(tl.float32)
    if NUM_EXPERTS:
        expert = tl.arange(0, PADDED_EXPERTS)
        gate = tl.load(
            router + expert[:, None] * HIDDEN + group * 16 + row[None, :],
            mask=(expert < NUM_EXPERTS)[:, None], other=0.0,
        )  # fmt: skip
    await_predecessor(PDL)
    before = tl.load(x + group * 16 + row)
    total = tl.zeros((16,), tl.float32)
    for i in tl.static_range(per_program):
        which = part * per_program + i
        mine = True
        loaded = None
        if ASKS:
            mine = tl.load(slots + which) != NO_SLOT
        else:
            loaded = held[i]
        if mine:
            theirs, factors, first = _piece(
                codes, scales, slots, which, code_stride, scale_stride, WIDTH, ROUTED
            )
            factor = tl.load(weights + which) if ROUTED else 1.0
            sums = dot16(
                theirs, factors, group, first, loaded, xq + which * x_words,
                xs + which * (WIDTH // 16), table, inputs, WIDTH, BITS, EXACT, WARPS, PTX,
            )  # fmt: skip
            total += sums * factor
    is_mine = True
    if SPLIT > 1:
        tl.store(partial + (group * SPLIT + part) * 16 + row, total)
        is_mine = is_last(counters + group, SPLIT)
    if is_mine:
        values = before
        if SPLIT > 1:
            for i in tl.static_range(SPLIT):
                at = partial + (group * SPLIT + i) * 16 + row
                values += tl.load(at, cache_modifier=".cg")
        else:
            values += total
        if ASKS:
            values += fetched_rows(group * 16 + row, asked, num_asked, fetched, arrived)
        publish(x, values, weight, squares, nq, ns, group, BITS)
        if NUM_EXPERTS:
            _store_logit_parts(
                values * weight, gate, logit_parts, group, NUM_EXPERTS, PADDED_EXPERTS
            )  # fmt: skip


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
    await_predecessor(PDL)
    squares = load_squares(squares, HIDDEN // 16, PADDED_GROUPS)
    if BITS == 8:
        start = codes + first * (HIDDEN // 4)
        sums = dot_int8(start, HIDDEN // 4, None, xq, xs, HIDDEN // 4, ROWS, 8 * WARPS, ok, PTX)
        sums *= tl.load(absmax + at, mask=ok, other=0.0) * (1.0 / 127.0)
    else:
        sums = dot_bf16(codes + first * HIDDEN, HIDDEN, None, xq, HIDDEN, ROWS, 16 * WARPS, ok)
    logit = sums * rms_scale(squares, HIDDEN, eps)
    store_logits(logit, at, ok, seen, penalty, logits, best, best_at, first)


@triton.jit
def advance_kernel(token, state, seen, PDL: tl.constexpr):
    """One token further: remember it as seen and count the position up."""
    await_predecessor(PDL)
    tl.store(seen + tl.load(token), 1)
    tl.store(state, tl.load(state) + 1)
