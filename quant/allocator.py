"""What the C library's allocator does with freed memory."""

import ctypes
import os
from typing import Any

KEPT_NBYTES = 64 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_THEIRS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep up to 64 MiB that was freed, and whether it will.

    It gives freed memory back at once, at first from 128 KiB on, and takes up to 64 MiB to learn
    better, as programs free more. A vocabulary's logits are 400 KB, a prompt's hidden states
    5 MB: each operation on them would then touch new pages, 2 µs each, longer than it computes.
    Other allocators, and users who have set theirs, are left alone.
    """
    mallopt = _function("mallopt")
    if mallopt is None or any(name in os.environ for name in _THEIRS):
        return False
    trims = mallopt(_M_TRIM_THRESHOLD, KEPT_NBYTES)
    return bool(trims and mallopt(_M_MMAP_THRESHOLD, KEPT_NBYTES // 2))


def give_back_freed_memory() -> None:
    """Give the system what glibc's malloc has kept, where it is that one."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    """A function of the C library; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
