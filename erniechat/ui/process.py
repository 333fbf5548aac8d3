"""How the process begins and ends, where Python's own way takes long."""

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from erniechat.ui.failure import flush_or_silence


@contextmanager
def imports_that_stay() -> Iterator[None]:
    """Within: no garbage is looked for; what was made by then is never looked through again.

    torch's modules are most of all objects there ever are, and the collector would walk through
    them time and again while they are made: a quarter of the time of importing torch.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def leave(status: int) -> NoReturn:
    """End the process, without taking apart what ends with it.

    Unloading torch takes half as long as importing it, and a daemon thread that is stuck in a
    kernel or in a read of stdin would hold up, or crash, the interpreter's own end. What was
    registered to run at the end runs.
    """
    others = [thread for thread in threading.enumerate() if thread != threading.current_thread()]
    if others and not any(thread.daemon for thread in others):
        sys.exit(status)  # they are waited for
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        flush_or_silence(stream)
    os._exit(status)
