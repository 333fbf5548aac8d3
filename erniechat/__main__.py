"""`python -m erniechat` and the `erniechat` command: runs the command line and leaves."""

import os
import sys
import threading
from typing import NoReturn

import erniechat.cli as cli
from erniechat.ui.failure import fill_descriptors, flush_or_silence


def main() -> NoReturn:
    """Run the command line; leave with its exit status.

    A thread that is stuck in a kernel or in a read of stdin would hold up, or crash, the
    interpreter's own end, so with one of those left the process ends on the spot.
    """
    fill_descriptors()
    status = cli.main()
    for stream in (sys.stdout, sys.stderr):
        flush_or_silence(stream)
    if any(thread.daemon for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
