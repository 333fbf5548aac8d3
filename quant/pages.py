"""Pages of a mapped file: large ones, and brought into memory before they are asked for."""

import ctypes
import mmap
import sys
from contextlib import suppress

MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it


def ask_for_large_pages(memory: mmap.mmap) -> None:
    """Let what is read of a file be in pages of 2 MB, where the system has such.

    A disk is then asked for 2 MB at a time, whatever its read-ahead, and a page fault maps as much.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)


def read_pages(memory: mmap.mmap, begin: int, nbytes: int) -> bool:
    """Bring a part of a private mapping into memory while Python goes on; whether it is there.

    Args:
        memory: Made with ACCESS_COPY.
        begin: A multiple of the size of a page.
        nbytes: As much of it as there is.
    """
    nbytes = min(nbytes, len(memory) - begin)
    if sys.platform != "linux" or nbytes < 1:
        return False
    view = ctypes.c_char.from_buffer(memory, begin)
    library = ctypes.CDLL(None)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    status: int = library.madvise(ctypes.addressof(view), nbytes, MADV_POPULATE_READ)
    return status == 0
