"""Mapped files that can no longer be read: told instead of ending the process; see faults.cpp."""

import ctypes
import mmap
import weakref
from collections.abc import Callable

from quant.kernels.native.library import find_library


def watch(memory: mmap.mmap) -> Callable[[], bool]:
    """Watch a private mapping of a file for as long as it lives.

    Args:
        memory: Made with ACCESS_COPY.

    Returns:
        Says whether reading it has failed: from then on all of it is zeros. Without the native
        library never; there such a read ends the process.
    """
    found = find_library()
    if isinstance(found, str) or not len(memory):
        return lambda: False
    native = found.handle
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    address = ctypes.addressof(view)
    del view  # or the mapping could not be closed
    number = native.native_watch(address, len(memory))
    if number < 0:
        return lambda: False
    weakref.finalize(memory, native.native_unwatch, number)
    return lambda: bool(native.native_is_lost(number))
