"""Asking the CPU for experts that the GPU does not have: requests and answers in pinned memory.

The router writes a request, one program fetches the answer beside the GPU's own experts, and
whoever completes the layer's sum waits for what was fetched. No host call is made.
"""

import triton
import triton.language as tl

NO_SLOT = tl.constexpr(-(2**62))  # of an expert that the GPU cannot address
# As in the native library's src/native.h, in words of 4 bytes.
_LAYER = tl.constexpr(1)
_COUNT = tl.constexpr(2)
_ROWS = tl.constexpr(3)
_IDS = tl.constexpr(4)
_WEIGHTS = tl.constexpr(20)
_VECTOR = tl.constexpr(64)
_MAX_POLLS = tl.constexpr(30_000_000)  # half a minute or more: the CPU is gone


@triton.jit
def _fence_system(word, PTX: tl.constexpr):
    """What this thread stored or saw before is seen by the host before what it stores now."""
    if PTX:
        word = tl.inline_asm_elementwise(
            "fence.acq_rel.sys; mov.b32 $0, $1;",
            "=r,r",
            [word],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    return word


@triton.jit
def choose_cpu_share(slot, chosen, ahead, num_slots, cpu_share):
    """Which of the chosen experts the CPU runs.

    Those that the GPU cannot address, and of the others outside its memory the likeliest, as many
    as cpu_share (by the number of all outside) says.

    Returns:
        Masks ``[experts]``: run by the CPU, and found in the GPU's memory.
    """
    resident = chosen & (slot >= 0) & (slot < num_slots)
    outside = chosen & ~resident
    bound = outside & (slot == NO_SLOT)
    free = outside & (slot != NO_SLOT)
    num_bound = tl.sum(bound.to(tl.int32))
    share = tl.load(cpu_share + tl.sum(outside.to(tl.int32)))
    place = tl.sum((ahead & free[None, :]).to(tl.int32), 1) + num_bound
    return bound | (free & (place < share)), resident


@triton.jit
def ask(
    asked, ahead, weight, vector, k, ok, layer_idx, request, number, num_asked,
    PADDED: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Write a request for the experts of a mask, if there are any; for one program.

    Args:
        asked: Mask ``[PADDED]`` of experts.
        ahead: ``[PADDED, PADDED]``, whether the second expert is likelier than the first.
        weight: float32 ``[PADDED]``.
        vector: float32 activations at k, where ok.
        layer_idx: For the host.
        request: Address of the request.
        number: int32 on the device, how many requests were made.
        num_asked: int32 on the device, gets how many experts this layer asks for.
    """
    count = tl.sum(asked.to(tl.int32))
    tl.store(num_asked, count)
    if count > 0:
        words = request.to(tl.pointer_type(tl.int32))
        floats = request.to(tl.pointer_type(tl.float32))
        place = tl.sum((ahead & asked[None, :]).to(tl.int32), 1)
        this = tl.load(number) + 1
        tl.store(words + _LAYER, layer_idx)
        tl.store(words + _COUNT, count)
        tl.store(words + _ROWS, 0)
        tl.store(words + _IDS + place, tl.arange(0, PADDED), mask=asked)
        tl.store(floats + _WEIGHTS + place, weight, mask=asked)
        tl.store(floats + _VECTOR + k, vector, mask=ok)
        tl.store(number, this)
        tl.debug_barrier()
        this = _fence_system(this, PTX)
        tl.store(words, this)


@triton.jit
def _await_answer(words, this, arrived, PTX: tl.constexpr):
    """Look until the answer has this number; says so where nobody came."""
    seen = tl.load(words, volatile=True)
    polls = 0
    while (seen != this) & (polls < _MAX_POLLS):
        seen = tl.load(words, volatile=True)
        polls += 1
    _fence_system(seen, PTX)
    if seen != this:
        tl.store(arrived + 1, 1)
    tl.debug_barrier()


@triton.jit
def fetch_kernel(
    answer, number, num_asked, fetched, arrived,
    HIDDEN: tl.constexpr, PADDED: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """One program: wait for the host's answer and bring it to the GPU's memory.

    Args:
        answer: Address of the host's answer.
        number: int32, the request to wait for.
        num_asked: int32, 0 if there is none.
        fetched: float32 ``[HIDDEN]``, gets the answer.
        arrived: int32 ``[2]``: gets the number when the answer is there; then 1 for one that never
            came.
    """
    if tl.load(num_asked) > 0:
        this = tl.load(number)
        words = answer.to(tl.pointer_type(tl.int32))
        _await_answer(words, this, arrived, PTX)
        k = tl.arange(0, PADDED)
        floats = answer.to(tl.pointer_type(tl.float32))
        value = tl.load(floats + _VECTOR + k, mask=k < HIDDEN, other=0.0, volatile=True)
        tl.store(fetched + k, value, mask=k < HIDDEN)
        tl.debug_barrier()
        tl.atomic_xchg(arrived, this, sem="release", scope="gpu")


@triton.jit
def fetched_rows(rows, number, num_asked, fetched, arrived):
    """What the CPU adds to some rows, once it has arrived; zeros if it was not asked."""
    count = tl.load(num_asked)
    if count > 0:
        this = tl.load(number)
        seen = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
        while seen != this:
            seen = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
    return tl.load(fetched + rows, mask=(rows >= 0) & (count > 0), other=0.0, cache_modifier=".cg")


@triton.jit
def send_rows_kernel(
    normed, pos_of, rows, HIDDEN: tl.constexpr, PADDED: tl.constexpr, CHOSEN: tl.constexpr
):  # fmt: skip
    """One pair of a token and an expert: bring the token's row to the host if the CPU runs it.

    Args:
        normed: bfloat16 ``[num_tokens, HIDDEN]``.
        pos_of: int32 ``[num_tokens · CHOSEN]``, the place among the host's rows or -1.
        rows: Address of the host's rows.
    """
    pair = tl.program_id(0)
    pos = tl.load(pos_of + pair)
    if pos >= 0:
        k = tl.arange(0, PADDED)
        value = tl.load(normed + (pair // CHOSEN) * HIDDEN + k, mask=k < HIDDEN, other=0.0)
        to = rows.to(tl.pointer_type(tl.bfloat16))
        tl.store(to + pos * HIDDEN + k, value, mask=k < HIDDEN)


@triton.jit
def ask_rows_kernel(
    num_rows, layer_idx, request, number, num_asked, MAX_ROWS: tl.constexpr, PTX: tl.constexpr
):  # fmt: skip
    """One program: write a request for all rows that were sent, if there are any."""
    count = tl.minimum(tl.load(num_rows), MAX_ROWS)
    tl.store(num_asked, count)
    if count > 0:
        words = request.to(tl.pointer_type(tl.int32))
        this = tl.load(number) + 1
        tl.store(words + _LAYER, layer_idx)
        tl.store(words + _ROWS, count)
        tl.store(number, this)
        tl.debug_barrier()
        this = _fence_system(this, PTX)
        tl.store(words, this)


@triton.jit
def await_rows_kernel(answer, number, num_asked, arrived, PTX: tl.constexpr):
    """One program: wait until the host has answered the last request for rows."""
    if tl.load(num_asked) > 0:
        words = answer.to(tl.pointer_type(tl.int32))
        _await_answer(words, tl.load(number), arrived, PTX)


@triton.jit
def take_rows_kernel(
    answers, pos_of, pairs, HIDDEN: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """One pair: its weighted result from the host, float32, if the CPU has run it."""
    pair = tl.program_id(0)
    pos = tl.load(pos_of + pair)
    if pos >= 0:
        k = tl.arange(0, PADDED)
        rows = answers.to(tl.pointer_type(tl.bfloat16))
        value = tl.load(rows + pos * HIDDEN + k, mask=k < HIDDEN, other=0.0, volatile=True)
        tl.store(pairs + pair.to(tl.int64) * HIDDEN + k, value.to(tl.float32), mask=k < HIDDEN)


@triton.jit
def stage_kernel(sources, targets, num_words, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Bring experts from pinned memory to the GPU's; PARTS programs for each.

    Args:
        sources: int64 ``[num_staged]``, addresses, 0 for none.
        targets: int64 ``[num_staged]``.
        num_words: Words of 4 bytes of an expert.
    """
    source = tl.load(sources + tl.program_id(0))
    if source != 0:
        here = source.to(tl.pointer_type(tl.int32))
        there = tl.load(targets + tl.program_id(0)).to(tl.pointer_type(tl.int32))
        for first in range(tl.program_id(1) * BLOCK, num_words, PARTS * BLOCK):
            at = first + tl.arange(0, BLOCK)
            ok = at < num_words
            tl.store(there + at, tl.load(here + at, mask=ok, other=0), mask=ok)
