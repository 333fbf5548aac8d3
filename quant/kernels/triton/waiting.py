"""How kernels and their programs wait for each other.

Kernels are launched so that one may begin before its predecessor has ended (PDL, from compute
capability 9.0 on). Each waits for it before it reads or writes what another one touches, and lets
its successor begin only then, so that before its wait a kernel may read what those before its
predecessor wrote, past the first-level cache where that was in the same graph, and no more than two
are there at a time.
"""

import triton
import triton.language as tl


@triton.jit
def await_predecessor(PDL: tl.constexpr):
    """Wait until all that earlier kernels wrote can be read; the successor may begin then."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(start, NUM_BYTES: tl.constexpr, PADDED_LINES: tl.constexpr, PDL: tl.constexpr):
    """Ask for bytes from memory into the L2 cache, without waiting for them.

    Weights that no kernel writes may be asked for before the predecessor has ended, whose last
    programs seldom keep the memory busy.
    """
    if PDL:
        line = tl.minimum(tl.arange(0, PADDED_LINES) * 128, NUM_BYTES - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [start.to(tl.int64) + line],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def is_last(counter, num_programs):
    """Whether this program is the last of num_programs to come here; the counter then is 0 again.

    What the others stored before they came can then be read.
    """
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    last = before == num_programs - 1
    if last:
        tl.atomic_xchg(counter, 0, sem="relaxed")
    return last
