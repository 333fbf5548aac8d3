"""The small kernels of a captured chunk of a prompt: norms, rotation, attention, routing.

``state`` is int64 on the device: the position of the chunk's first token, address and capacity of
the KV cache, and how many of the chunk's tokens are real; the rest fill it up to its fixed size.
"""

import triton
import triton.language as tl

from quant.kernels.triton.routing import choose_experts
from quant.kernels.triton.tiles import multiply, pointer_at


@triton.jit
def add_norm_kernel(
    x, delta, norm, normed, routed, eps,
    HIDDEN: tl.constexpr, PADDED: tl.constexpr, NUM_DELTAS: tl.constexpr, ROUTED: tl.constexpr,
):  # fmt: skip
    """A token's row: add NUM_DELTAS rows to the float32 residual stream, then norm it to bf16.

    ROUTED: the router is next, for which it is stored in float32 as well.
    """
    row = tl.program_id(0)
    k = tl.arange(0, PADDED)
    ok = k < HIDDEN
    value = tl.load(x + row * HIDDEN + k, mask=ok, other=0.0)
    for i in tl.static_range(NUM_DELTAS):
        at = delta + (row * NUM_DELTAS + i) * HIDDEN + k
        value += tl.load(at, mask=ok, other=0.0).to(tl.float32)
    if NUM_DELTAS:
        tl.store(x + row * HIDDEN + k, value, mask=ok)
    scale = 1.0 / tl.sqrt(tl.sum(value * value) / HIDDEN + eps)
    weight = tl.load(norm + k, mask=ok, other=0.0).to(tl.float32)
    value *= scale * weight
    tl.store(normed + row * HIDDEN + k, value.to(tl.bfloat16), mask=ok)
    if ROUTED:
        tl.store(routed + row * HIDDEN + k, value, mask=ok)


@triton.jit
def rotate_kernel(
    qkv, q, inverse_frequencies, state, layer_idx,
    NUM_LAYERS: tl.constexpr, NUM_HEADS: tl.constexpr, NUM_KV: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One head of one token: rotate q and k, and write k and v to the cache."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    pos = tl.load(state) + token
    cache = pointer_at(state + 1, tl.bfloat16)
    capacity = tl.load(state + 2)
    is_real = token < tl.load(state + 3)
    start = qkv + (token * (NUM_HEADS + 2 * NUM_KV) + head) * D
    value = tl.load(start + d)
    if head < NUM_HEADS + NUM_KV:
        angle = pos.to(tl.float32) * tl.load(inverse_frequencies + d // 2)
        other = tl.load(start + (d ^ 1)).to(tl.float32)
        signed = tl.where((d & 1) == 0, -tl.sin(angle), tl.sin(angle))
        value = (value.to(tl.float32) * tl.cos(angle) + other * signed).to(tl.bfloat16)
    if head < NUM_HEADS:
        tl.store(q + (token * NUM_HEADS + head) * D + d, value)
    elif is_real:
        kv = head - NUM_HEADS
        row = layer_idx * NUM_KV + kv
        if kv >= NUM_KV:
            row = (NUM_LAYERS + layer_idx) * NUM_KV + kv - NUM_KV
        tl.store(cache + (row * capacity + pos) * D + d, value)


@triton.jit
def chunk_attention_kernel(
    q, out, state, layer_idx, scale,
    NUM_LAYERS: tl.constexpr, NUM_HEADS: tl.constexpr, NUM_KV: tl.constexpr, D: tl.constexpr,
    BQ: tl.constexpr, BT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Causal attention of BQ tokens of the chunk over the cache, for one query head."""
    head = tl.program_id(1)
    begin = tl.load(state).to(tl.int32)
    cache = pointer_at(state + 1, tl.bfloat16)
    capacity = tl.load(state + 2)
    num_real = tl.load(state + 3).to(tl.int32)
    first = tl.program_id(0) * BQ
    if first < num_real:
        kv = head // (NUM_HEADS // NUM_KV)
        keys = cache + (layer_idx * NUM_KV + kv) * capacity * D
        values = cache + ((NUM_LAYERS + layer_idx) * NUM_KV + kv) * capacity * D
        d = tl.arange(0, D)
        row = first + tl.arange(0, BQ)
        at = (row * NUM_HEADS + head)[:, None] * D + d[None, :]
        real = row < num_real
        query = tl.load(q + at, mask=real[:, None], other=0.0)
        largest = tl.full((BQ,), -1e30, tl.float32)
        total = tl.zeros((BQ,), tl.float32)
        acc = tl.zeros((BQ, D), tl.float32)
        end = begin + tl.minimum(first + BQ, num_real)
        for t0 in range(0, end, BT):
            token = t0 + tl.arange(0, BT)
            held = token < end
            place = token.to(tl.int64)[:, None] * D + d[None, :]
            k_tile = tl.load(keys + place, mask=held[:, None], other=0.0)
            v_tile = tl.load(values + place, mask=held[:, None], other=0.0)
            score = multiply(query, tl.trans(k_tile), tl.zeros((BQ, BT), tl.float32), PTX) * scale
            score = tl.where(token[None, :] <= begin + row[:, None], score, -1e30)
            new = tl.maximum(largest, tl.max(score, 1))
            shrink = tl.exp(largest - new)
            p = tl.exp(score - new[:, None])
            total = total * shrink + tl.sum(p, 1)
            acc = multiply(p.to(tl.bfloat16), v_tile, acc * shrink[:, None], PTX)
            largest = new
        tl.store(out + at, (acc / total[:, None]).to(tl.bfloat16), mask=real[:, None])


@triton.jit
def route_rows_kernel(
    logits, bias, state, ids, weights, ranks, fill, counts, norm_min,
    on_cpu, pos_of, row_ids, row_weights,
    NUM_EXPERTS: tl.constexpr, PADDED: tl.constexpr, TOP_K: tl.constexpr, SHARED: tl.constexpr,
    ASKS: tl.constexpr, MAX_ROWS: tl.constexpr,
):  # fmt: skip
    """Choose a token's experts, shared ones last, and give each pair a place among its expert's.

    Padding tokens go to no expert: their ids are NUM_EXPERTS + SHARED. ASKS: so do the pairs whose
    expert the CPU runs (on_cpu, int8 ``[NUM_EXPERTS]``), as far as it has rows for them; they get
    a row of the host in pos_of, all others -1. How many there are is in ``fill`` behind the rest.
    """
    token = tl.program_id(0)
    is_real = token < tl.load(state + 3)
    chosen_each: tl.constexpr = TOP_K + SHARED
    i = tl.arange(0, PADDED)
    real = i < NUM_EXPERTS
    z = tl.load(logits + token * NUM_EXPERTS + i, mask=real, other=-float("inf"))
    bias = tl.load(bias + i, mask=real, other=0.0)
    chosen, rank, _, share = choose_experts(z, bias, i, real, norm_min, TOP_K)
    shared = (i >= NUM_EXPERTS) & (i < NUM_EXPERTS + SHARED)
    column = tl.where(shared, TOP_K + i - NUM_EXPERTS, rank)
    share = tl.where(shared, 1.0, share)
    taken = chosen | shared
    at = token * chosen_each + column
    nobody: tl.constexpr = NUM_EXPERTS + SHARED
    mine = taken & is_real
    if ASKS:
        wanted = chosen & is_real & (tl.load(on_cpu + i, mask=real, other=0) != 0)
        pos = tl.atomic_add(fill + nobody + i * 0, 1, mask=wanted, sem="relaxed")
        sent = wanted & (pos < MAX_ROWS)
        tl.store(pos_of + at, tl.where(sent, pos, -1), mask=taken)
        host_ids = row_ids.to(tl.pointer_type(tl.int64))
        tl.store(host_ids + pos, i.to(tl.int64), mask=sent)
        tl.store(row_weights.to(tl.pointer_type(tl.float32)) + pos, share, mask=sent)
        mine = mine & (sent == 0)
    tl.store(ids + at, tl.where(mine, i, nobody), mask=taken)
    tl.store(weights + at, share, mask=taken)
    place = tl.atomic_add(fill + i, 1, mask=mine, sem="relaxed")
    tl.store(ranks + at, place, mask=mine)
    one = tl.full((PADDED,), 1, tl.int64)
    tl.atomic_add(counts + i, one, mask=chosen & is_real, sem="relaxed")


@triton.jit
def place_rows_kernel(
    ids, ranks, fill, rows, expert_of, num_pairs, num_tiles,
    NUM_SLOTS: tl.constexpr, PADDED: tl.constexpr, ROW_TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Give each expert whole tiles, and write its pairs there and whose each tile is.

    In what order an expert's pairs come is left to chance: no result depends on it.
    """
    i = tl.arange(0, PADDED)
    count = tl.load(fill + i, mask=i < NUM_SLOTS, other=0)
    tiles = (count + ROW_TILE - 1) // ROW_TILE
    ends = tl.cumsum(tiles, 0)
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = pair < num_pairs
    expert = tl.load(ids + pair, mask=ok, other=NUM_SLOTS)
    there = ok & (expert < NUM_SLOTS)
    is_mine = expert[:, None] == i[None, :]
    first = tl.sum(tl.where(is_mine, (ends - tiles)[None, :], 0), 1)
    rank = tl.load(ranks + pair, mask=there, other=0)
    tl.store(rows + first * ROW_TILE + rank, pair.to(tl.int64), mask=there)
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    owner = tl.sum((ends[None, :] <= tile[:, None]).to(tl.int32), 1)
    tl.store(expert_of + tile, owner.to(tl.int64), mask=tile < num_tiles)
