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
    "set_num_threads",
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
