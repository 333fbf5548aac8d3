"""Kernel backends by name, and which one serves a format on a device.

A new one is a file here, a line in BACKENDS and its place in PREFERENCE.
"""

from collections.abc import Callable, Mapping

import torch

from quant.errors import QuantError
from quant.kernels import native
from quant.kernels.base import ExpertWeights, KernelBackend
from quant.kernels.bnb import BnbBackend
from quant.kernels.native import NativeBackend
from quant.kernels.native.library import find_library
from quant.kernels.reference import ReferenceBackend
from quant.kernels.torch_ops import TorchBackend
from quant.kernels.triton.backend import TritonBackend

__all__ = [
    "BACKENDS",
    "PREFERENCE",
    "ExpertWeights",
    "KernelBackend",
    "backend_for",
    "library_nbytes",
    "set_num_threads",
    "unpacked_nbytes",
]

BACKENDS: Mapping[str, Callable[[], KernelBackend]] = {
    "triton": TritonBackend,
    "native": NativeBackend,
    "torch": TorchBackend,
    "bnb": BnbBackend,
    "reference": ReferenceBackend,
}
# Fastest first. reference is left out: it serves everything, slowly, and is taken only by name.
PREFERENCE = ("triton", "native", "torch", "bnb")

# Bytes a weight, at most, that a product holds beside its operands where it unpacks the whole
# matrix: measured with 1 and 512 rows, activations in bfloat16 and in float32.
_UNPACKED = {
    ("reference", "nf4"): (17.5, 17.5),
    ("reference", "fp4"): (17.5, 17.5),
    ("reference", "int8"): (8.5, 8.5),
    ("reference", "bf16"): (0.5, 4.5),
    ("bnb", "nf4"): (16.5, 16.5),
    ("bnb", "fp4"): (16.5, 16.5),
    ("bnb", "int8"): (3.0, 3.0),
    ("torch", "int8"): (2.5, 4.5),
    ("torch", "bf16"): (0.5, 4.5),
}
_READ_PACKED = ("native", "triton")  # these hold nothing beside the operands

# What a process comes to hold for the libraries behind a backend: bitsandbytes itself, and the code
# that oneDNN makes for each number of rows. Measured on mini: 103 to 143 MiB, bnb 230.
_LIBRARIES = {"torch": 160 << 20, "reference": 160 << 20, "bnb": 256 << 20}


def library_nbytes(backend: str) -> int:
    """What a process comes to hold for the libraries behind a backend."""
    return _LIBRARIES.get(backend, 0)


def unpacked_nbytes(
    backend: str, format_name: str, num_weights: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    """What a product with a matrix holds at most beside its operands.

    Args:
        backend: Its name.
        format_name: Of the matrix.
        num_weights: Of the matrix.
        dtype: Of the activations.

    Raises:
        KeyError: If that was not measured, or a plan would count it as nothing.
    """
    if backend in _READ_PACKED:
        return 0
    return int(num_weights * _UNPACKED[backend, format_name][dtype == torch.float32])


def set_num_threads(num_threads: int) -> None:
    """Let torch and the native kernels use that many cores from now on, the caller's included."""
    torch.set_num_threads(num_threads)
    if not isinstance(find_library(), str):
        native.set_num_threads(num_threads)


def backend_for(format_name: str, device: torch.device, name: str = "auto") -> KernelBackend:
    """The named backend, or the fastest that serves a format on a device.

    Raises:
        QuantError: If there is no such backend, or it does not serve the format there.
    """
    if name == "auto":
        candidates = [BACKENDS[candidate]() for candidate in PREFERENCE]
    elif name in BACKENDS:
        candidates = [BACKENDS[name]()]
    else:
        raise QuantError(f'no kernel backend "{name}"; there are auto, {", ".join(BACKENDS)}')
    reasons = []
    for backend in candidates:
        reason = backend.why_not(format_name, device)
        if not reason:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise QuantError(
        f"no kernel for {format_name} on {device.type} ({'; '.join(reasons)}); "
        "use --kernels reference or another --quant"
    )
