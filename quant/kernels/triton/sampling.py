"""Kernels that choose the next token on the device: greedy, or drawn after top-k, top-p and min-p.

A filter keeps the tokens above a threshold, which is found by radix: four rounds, in each of
which all programs add up, for every value of eight more bits of a logit, what the tokens with it
weigh, and the last program takes the value in which the threshold lies. Weights are integers, so
no sum depends on who adds first. What is drawn depends on seed, position and token id alone.
"""

import triton
import triton.language as tl

from quant.kernels.triton.decode import store_logits
from quant.kernels.triton.tiles import multiply
from quant.kernels.triton.waiting import await_predecessor, is_last

BLOCK = 512  # tokens of a program
PIECE = tl.constexpr(128)  # of them, those that one product adds up


@triton.jit
def ordered(logit):
    """int32 whose order, read as unsigned, is that of float32; of both zeros one value."""
    bits = tl.where(logit == 0, 0.0, logit).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, ~bits, bits ^ -2147483648)


@triton.jit
def is_above(key, threshold):
    """Whether an `ordered` key is greater than another one."""
    return (key ^ -2147483648) > (threshold ^ -2147483648)


@triton.jit
def distance(logit, largest, temperature):
    """How far a token is below the likeliest, in units of the temperature."""
    return (largest - logit) / temperature


@triton.jit
def allowed(logit, at, num_tokens, found, K: tl.constexpr):
    """Tokens that exist, are possible and, with K, were kept by top-k."""
    ok = (at < num_tokens) & (logit > -float("inf"))
    if K:
        ok = ok & ~is_above(tl.load(found).to(tl.int32), ordered(logit))
    return ok


@triton.jit
def begin_kernel(
    given, seen, penalty, logits, best, best_at, num_tokens,
    ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What the head would have left, from logits that came another way: with the penalty."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    await_predecessor(PDL)
    at = first + tl.arange(0, ROWS)
    ok = at < num_tokens
    logit = tl.load(given + at, mask=ok, other=0.0)
    store_logits(logit, at, ok, seen, penalty, logits, best, best_at, first)


@triton.jit
def pick_kernel(
    best, best_at, token, largest, NUM: tl.constexpr, PADDED: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """The likeliest token of all programs of the head; of equals the lowest id."""
    await_predecessor(PDL)
    i = tl.arange(0, PADDED)
    value = tl.load(best + i, mask=i < NUM, other=-float("inf"))
    winner = tl.argmax(value, 0, tie_break_left=True)
    tl.store(token, tl.load(best_at + winner))
    tl.store(largest, tl.max(value))


@triton.jit
def _add_buckets(
    logits, first, num_tokens, largest, temperature, found, prefix, counts, masses,
    SHIFT: tl.constexpr, MASS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Add a program's tokens to 256 counts and, with MASS, to 256 masses of ``2^33 · exp``.

    A bucket is a row and a column of 16: the sums are products of ones on the tensor cores. A
    mass is in three parts of 11 bits, which float16 holds exactly; so is every sum.
    """
    nibble = tl.arange(0, 16)
    count = tl.zeros((16, 16), tl.float32)
    high, middle, low = count, count, count
    for i in tl.static_range(BLOCK // PIECE):
        at = first + i * PIECE + tl.arange(0, PIECE)
        logit = tl.load(logits + at, mask=at < num_tokens, other=-float("inf"))
        key = ordered(logit)
        ok = allowed(logit, at, num_tokens, found, K)
        if SHIFT < 24:
            ok = ok & (((key ^ prefix) >> (SHIFT + 8)) == 0)
        row = (key >> (SHIFT + 4)) & 15
        rows = ((row[None, :] == nibble[:, None]) & ok[None, :]).to(tl.float16)
        column = ((key >> SHIFT) & 15)[:, None] == nibble[None, :]
        count = multiply(rows, column.to(tl.float16), count, PTX)
        if MASS:
            weight = tl.exp(-distance(logit, largest, temperature)) * 4194304.0
            whole = tl.where(ok, weight, 0.0).to(tl.int32)
            rest = ((tl.where(ok, weight, 0.0) - whole.to(tl.float32)) * 2048.0).to(tl.int32)
            part = tl.where(column, (whole >> 11)[:, None], 0).to(tl.float16)
            high = multiply(rows, part, high, PTX)
            part = tl.where(column, (whole & 2047)[:, None], 0).to(tl.float16)
            middle = multiply(rows, part, middle, PTX)
            part = tl.where(column, rest[:, None], 0).to(tl.float16)
            low = multiply(rows, part, low, PTX)
    bucket = nibble[:, None] * 16 + nibble[None, :]
    tl.atomic_add(counts + bucket, count.to(tl.int64), mask=count > 0, sem="relaxed")
    if MASS:
        mass = high.to(tl.int64) * 4194304 + middle.to(tl.int64) * 2048 + low.to(tl.int64)
        tl.atomic_add(masses + bucket, mass, mask=mass > 0, sem="relaxed")


@triton.jit
def _last_tie(
    logits, num_tokens, found, threshold, wanted, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Id of the wanted-th of the tokens whose logit is the threshold."""
    before = wanted * 0
    result = before
    for first in range(0, num_tokens, BLOCK):
        at = first + tl.arange(0, BLOCK)
        logit = tl.load(logits + at, mask=at < num_tokens, other=-float("inf"))
        tie = allowed(logit, at, num_tokens, found, K) & (ordered(logit) == threshold)
        ties = tie.to(tl.int64)
        rank = before + tl.cumsum(ties, 0)
        result += tl.sum(tl.where(tie & (rank == wanted), at, 0).to(tl.int64))
        before += tl.sum(ties)
    return result


@triton.jit
def round_kernel(
    logits, largest, controls, choice, found, counts, masses, counter, num_tokens,
    SHIFT: tl.constexpr, MASS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Eight bits of the threshold of top-k, or with MASS of top-p, from bit SHIFT on.

    A token is kept if those before it weigh less than the target: K tokens, or P of the mass
    that top-k left (K: there was one). Of tokens with equal logits top-k keeps all, top-p those
    of the lowest ids that it needs.

    Args:
        logits: float32 ``[num_tokens]``.
        largest: float32, the largest of them.
        controls: float64: temperature, top-p, min-p.
        choice: int64: seed, top-k.
        found: int64: top-k's threshold and what is above it; top-p's, the mass of all, and the
            last id that is kept of those at its threshold.
        counts: int64 ``[256]``, zeros before and after, as masses.
        masses: int64 ``[256]``.
        counter: int32, zero.
        num_tokens: Tokens that may be chosen.
    """
    first = tl.program_id(0) * BLOCK
    await_predecessor(PDL)
    mine = found + 2 if MASS else found
    prefix = tl.load(mine).to(tl.int32)
    at = first + tl.arange(0, BLOCK)
    logit = tl.load(logits + at, mask=at < num_tokens, other=-float("inf"))
    ok = allowed(logit, at, num_tokens, found, K)
    if SHIFT < 24:
        ok = ok & (((ordered(logit) ^ prefix) >> (SHIFT + 8)) == 0)
    if tl.sum(ok.to(tl.int32)) > 0:
        temperature = tl.load(controls).to(tl.float32)
        _add_buckets(
            logits, first, num_tokens, tl.load(largest), temperature, found, prefix,
            counts, masses, SHIFT, MASS, K, BLOCK, PTX,
        )  # fmt: skip
    if is_last(counter, tl.num_programs(0)):
        bucket = tl.arange(0, 256)
        count = tl.load(counts + bucket, cache_modifier=".cg")
        weight = tl.load(masses + bucket, cache_modifier=".cg") if MASS else count
        total = tl.sum(weight)
        above = total - tl.cumsum(weight, 0)
        if SHIFT < 24:
            above += tl.load(mine + 1)
            total = tl.load(found + 4)
        else:
            prefix = prefix * 0
        if MASS:
            target = tl.load(controls + 1) * total.to(tl.float64)
            if SHIFT == 24:
                tl.store(found + 4, total)
        else:
            target = tl.load(choice + 1).to(tl.float64)
        holds = (count > 0) & (above.to(tl.float64) < target)
        chosen = tl.min(tl.where(holds, bucket, 255))
        is_chosen = bucket == chosen
        now_above = tl.sum(tl.where(is_chosen, above, 0))
        prefix = prefix | (chosen << SHIFT)
        tl.store(mine, prefix.to(tl.int64))
        tl.store(mine + 1, now_above)
        tl.store(counts + bucket, tl.zeros((256,), tl.int64))
        tl.store(masses + bucket, tl.zeros((256,), tl.int64))
        if MASS and SHIFT == 0:
            ties = tl.sum(tl.where(is_chosen, count, 0))
            each = tl.sum(tl.where(is_chosen, weight, 0)) // tl.maximum(ties, 1)
            left = target - now_above.to(tl.float64)
            wanted = tl.ceil(left / tl.maximum(each, 1).to(tl.float64)).to(tl.int64)
            if wanted < ties:
                last = _last_tie(logits, num_tokens, found, prefix, wanted, K, BLOCK)
                tl.store(found + 5, last)
            else:
                tl.store(found + 5, num_tokens)


@triton.jit
def race(seed, position, token_id):
    """An exponential variate's logarithm for every token.

    Whoever has the smallest variate over its weight wins with a probability that is its share of
    all weights. What decides among many is how small a variate can be told from another: 64
    random bits make it, so that its relative error is that of float32 down to 2^-64.
    """
    offset = (position.to(tl.int64) << 32) + token_id.to(tl.int64)
    high, low, _, _ = tl.randint4x(seed, offset)
    high = high.to(tl.uint32, bitcast=True).to(tl.float32)
    low = low.to(tl.uint32, bitcast=True).to(tl.float32)
    u = (high + low * 2.3283064365386963e-10) * 2.3283064365386963e-10
    u = tl.minimum(tl.maximum(u, 5.421010862427522e-20), 0.99999994)
    small = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * 0.25)))  # of -log(1 - u)
    return tl.log(tl.where(u < 0.01, small, -tl.log(1.0 - u)))


@triton.jit
def draw_kernel(
    logits, largest, controls, choice, found, state, scores, winners, counter, token, num_tokens,
    K: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Draw a token of those that were kept; K and P say whether top-k and top-p were run.

    Args:
        logits: As in `round_kernel`, and so on to found.
        state: int64: the position, which makes every draw another one.
        scores: float32, one for each program.
        winners: int64, as scores.
        counter: int32, zero.
        token: int64, gets the id.
        num_tokens: Tokens that may be chosen.
    """
    first = tl.program_id(0) * BLOCK
    await_predecessor(PDL)
    at = first + tl.arange(0, BLOCK)
    logit = tl.load(logits + at, mask=at < num_tokens, other=-float("inf"))
    kept = allowed(logit, at, num_tokens, found, K)
    if P:
        key, threshold = ordered(logit), tl.load(found + 2).to(tl.int32)
        tie = (key == threshold) & (at <= tl.load(found + 5))
        kept = kept & (is_above(key, threshold) | tie)
    z = distance(logit, tl.load(largest), tl.load(controls).to(tl.float32))
    kept = kept & (tl.exp(-z) >= tl.load(controls + 2).to(tl.float32))
    score = tl.where(kept, -z - race(tl.load(choice), tl.load(state), at), -float("inf"))
    tl.store(scores + tl.program_id(0), tl.max(score))
    tl.store(winners + tl.program_id(0), (first + tl.argmax(score, 0)).to(tl.int64))
    if is_last(counter, tl.num_programs(0)):
        i = tl.arange(0, PADDED)
        best = tl.load(
            scores + i, mask=i < tl.num_programs(0), other=-float("inf"), cache_modifier=".cg"
        )
        winner = tl.load(winners + tl.argmax(best, 0), cache_modifier=".cg")
        tl.store(token, tl.minimum(winner, num_tokens - 1))
