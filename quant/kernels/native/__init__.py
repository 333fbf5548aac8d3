"""Native kernels for CPUs: C++ behind a plain C interface, called through ctypes.

``src/`` holds the C++, ``build.py`` compiles it, ``library.py`` loads it, ``buffers.py`` checks
what is handed over, ``backend.py`` is the backend, ``encode.py`` quantizes weights,
``step.py`` decodes a token in one call, ``attention.py`` is the attention of a prompt.
"""

from quant.kernels.native.attention import causal_attention
from quant.kernels.native.backend import NativeBackend, num_threads, read_probe, set_num_threads
from quant.kernels.native.encode import quantize_codebook
from quant.kernels.native.threads import default_num_threads

__all__ = [
    "NativeBackend",
    "causal_attention",
    "default_num_threads",
    "num_threads",
    "quantize_codebook",
    "read_probe",
    "set_num_threads",
]
