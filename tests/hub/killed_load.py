"""A program that loads a model and is killed, as by kill -9, at a point that its arguments name.

python -m tests.hub.killed_load MODEL STAGE BYTES

STAGE is download or quantize, and BYTES how far that is; or finish (all weights are written, the
copy has no name yet) or never.
"""

import os
import signal
import sys

from erniechat.events import Progress
from erniechat.loader import load_engine
from erniechat.options import LoadOptions
from quant.copy_writer import CopyWriter


def die(*args: object) -> None:
    """End this process without a chance to clean up."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Load, and perhaps die."""
    model, stage, nbytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    discards = len(sys.argv) > 4
    if stage == "finish":
        CopyWriter.finish = die  # type: ignore[method-assign]  # dies there

    def report(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= nbytes:
            die()

    load_engine(LoadOptions(model=model, quant="int8", discard_originals=discards), report)


if __name__ == "__main__":
    main()
