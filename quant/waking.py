"""Making a GPU ready on another thread while the program does something else."""

import ctypes
import threading
from contextlib import suppress

import torch

DRIVER = "libcuda.so.1"


def wake_gpu() -> None:
    """Open the GPU's context, which takes some tenths of a second, if there is a GPU.

    Returns at once. Whoever uses the GPU meanwhile waits, and gets the error if there is one.
    """

    def run() -> None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(DRIVER).cuInit(0)  # torch would hold Python's lock while the driver starts
        with suppress(Exception):
            if torch.cuda.is_available():
                torch.zeros(1, device="cuda")

    threading.Thread(target=run, name="wake-gpu", daemon=True).start()
