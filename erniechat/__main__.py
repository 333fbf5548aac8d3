"""`python -m erniechat` and the `erniechat` command: runs the command line and leaves."""

import os
import sys
import threading
from typing import NoReturn

import erniechat.cli as cli


def main() -> NoReturn:
    """Run the command line; leave with its exit status.

    A thread that is stuck in a kernel or in a read of stdin would hold up, or crash, the
    interpreter's own end, so with one of those left the process ends on the spot.
    """
    status = cli.main()
    if any(thread.daemon for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            cli.flush_quietly(stream)
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
