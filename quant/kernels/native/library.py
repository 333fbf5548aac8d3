"""The compiled library: loading it, and its C interface as ctypes sees it (src/native.h)."""

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_float,
    c_int8,
    c_int32,
    c_int64,
    c_uint8,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quant.errors import QuantError
from quant.kernels.native.build import LIBRARY
from quant.kernels.native.threads import default_num_threads

ABI = 6
NOT_HERE = 8  # the status of a step that can go on
CODEBOOK, INT8 = 0, 1
FLOAT32, BFLOAT16 = 0, 1

MESSAGES = {
    1: "the activations have values that are NaN or infinite; the weights may be damaged",
    2: "there is no memory left for the native kernels' scratch",
    3: "a block's largest weight does not fit float16; keep this model in bf16 or int8",
    4: "one layer mixes int8 and 4-bit experts; quantize them all in one format",
    5: "the native library does not hold this instruction set",
    6: "the GPU asked the CPU for an expert that it does not have",
    7: "an expert that the GPU asked for cannot be brought from the disk",
    NOT_HERE: "a token chose an expert that is not in memory",
}


class Matrix(Structure):
    """A weight; see src/native.h."""

    _fields_ = (
        ("codes", c_void_p),
        ("absmax", c_void_p),
        ("num_rows", c_int64),
        ("num_cols", c_int64),
        ("kind", c_int32),
        ("unit", c_float),
        ("levels", c_int8 * 16),
    )


class Expert(Structure):
    """Two weights; see src/native.h."""

    _fields_ = (("gate_up", Matrix), ("down", Matrix))


class Layer(Structure):
    """The arguments of one layer of experts; see src/native.h."""

    _fields_ = (
        ("hidden_states", c_void_p),
        ("out", c_void_p),
        ("topk_ids", c_void_p),
        ("topk_weights", c_void_p),
        ("experts", c_void_p),
        ("shared", c_void_p),
        ("num_tokens", c_int64),
        ("hidden_size", c_int64),
        ("num_experts_per_tok", c_int64),
        ("num_experts", c_int64),
        ("num_shared", c_int64),
        ("dtype", c_int32),
        ("path", c_int32),
    )


class Attend(Structure):
    """The arguments of a prompt's attention; see src/native.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("queries", "keys", "values", "out")),
        *((name, c_int64) for name in ("num_heads", "num_kv_heads", "head_dim")),
        *((name, c_int64) for name in ("num_tokens", "num_held", "kv_step")),
        *(("dtype", c_int32), ("path", c_int32)),
    )


class StepLayer(Structure):
    """One block of a decoding step; see src/native.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "post_norm", "router", "correction_bias")),
        *((name, c_void_p) for name in ("experts", "shared", "counts")),
        *(("qkv", Matrix), ("o", Matrix)),
    )


class Step(Structure):
    """The arguments of one decoded token; see src/native.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("layers", "norm", "inverse_frequencies")),
        *((name, c_void_p) for name in ("embedding", "embedding_absmax", "kv_cache", "logits")),
        *((name, c_void_p) for name in ("hidden", "wanted")),
        ("head", Matrix),
        *((name, c_int64) for name in ("num_layers", "hidden_size", "num_heads")),
        *((name, c_int64) for name in ("num_kv_heads", "head_dim", "num_experts")),
        *((name, c_int64) for name in ("num_experts_per_tok", "routed_width", "gated_width")),
        *((name, c_int64) for name in ("capacity", "position", "token_id", "begin_layer")),
        *(("eps", c_float), ("norm_min", c_float), ("dtype", c_int32), ("path", c_int32)),
    )


class Encoding(Structure):
    """A float weight to be quantized; see src/native.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("codes", c_void_p),
        ("absmax", c_void_p),
        ("num_rows", c_int64),
        ("num_cols", c_int64),
        ("dtype", c_int32),
        ("path", c_int32),
        ("bounds", c_float * 16),
        ("code_of_rank", c_uint8 * 16),
    )


FETCH = ctypes.CFUNCTYPE(c_int32, c_int32, POINTER(c_int64), c_int64)  # see src/native.h


class Service(Structure):
    """A thread that answers a GPU's requests; see src/native.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("request", "answer", "experts")),
        *((name, c_void_p) for name in ("rows", "row_answers", "row_ids", "row_weights")),
        *(("uses", c_void_p), ("fetch", FETCH)),
        *((name, c_int64) for name in ("num_layers", "hidden_size", "num_experts", "max_rows")),
        ("path", c_int32),
    )


class ServiceUse(Structure):
    """What a service has done; see src/native.h."""

    _fields_ = (
        *((name, c_int64) for name in ("num_requests", "num_experts", "busy_ns")),
        *((name, c_int64) for name in ("num_rows", "rows_ns")),
    )


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library.

    Attributes:
        handle: Its functions; a call lets other Python threads run.
        paths: Instruction sets that this CPU and this build have, fastest first.
    """

    handle: ctypes.CDLL
    paths: tuple[str, ...]


def open_library(path: Path) -> Library:
    """Load a library from a file.

    Raises:
        OSError: If it cannot be loaded.
        QuantError: If it was built from other sources than this package.
    """
    handle = ctypes.CDLL(str(path))
    handle.native_abi.restype = c_int32
    if handle.native_abi() != ABI:
        raise QuantError(f"{path.name} is of another version; install the package again")
    handle.native_path_name.argtypes = (c_int32,)
    handle.native_path_name.restype = ctypes.c_char_p
    handle.native_set_num_threads.argtypes = (c_int32,)
    handle.native_set_num_threads.restype = None
    handle.native_num_threads.restype = c_int32
    handle.native_matmul.argtypes = (
        *(c_int32, POINTER(Matrix), c_void_p),
        *(c_int32, c_int64, c_void_p),
    )
    handle.native_layer.argtypes = (POINTER(Layer),)
    handle.native_attend.argtypes = (POINTER(Attend),)
    handle.native_step.argtypes = (POINTER(Step),)
    handle.native_encode.argtypes = (POINTER(Encoding),)
    handle.native_serve.argtypes = (POINTER(Service),)
    handle.native_serve.restype = c_void_p
    handle.native_serve_wake.argtypes = (c_void_p,)
    handle.native_serve_wake.restype = None
    handle.native_serve_use.argtypes = (c_void_p, POINTER(ServiceUse))
    handle.native_serve_use.restype = None
    handle.native_serve_stop.argtypes = (c_void_p,)
    handle.native_serve_stop.restype = None
    handle.native_watch.argtypes = (c_void_p, c_int64)
    handle.native_watch.restype = c_int32
    handle.native_unwatch.argtypes = (c_int32,)
    handle.native_unwatch.restype = None
    handle.native_is_lost.argtypes = (c_int32,)
    handle.native_is_lost.restype = c_int32
    handle.native_read.argtypes = (c_void_p, c_int64)
    handle.native_read.restype = c_uint64
    paths: list[str] = []
    while name := handle.native_path_name(len(paths)):
        paths.append(name.decode())
    return Library(handle, tuple(paths))


@cache
def find_library() -> Library | str:
    """The installed library with its threads set, or why there is none."""
    if not LIBRARY.exists():
        return (
            "the native kernels were not compiled when this package was installed; "
            "install a C++17 compiler (g++ or clang++) and then the package again"
        )
    try:
        library = open_library(LIBRARY)
    except (OSError, AttributeError, QuantError) as exc:
        return f"the native kernels cannot be loaded: {exc}"
    library.handle.native_set_num_threads(default_num_threads())
    return library


def library() -> Library:
    """The installed library.

    Raises:
        QuantError: If there is none.
    """
    found = find_library()
    if isinstance(found, str):
        raise QuantError(found)
    return found


def check_status(status: int) -> None:
    """Raise what a native call reported.

    Raises:
        QuantError: If the status is not 0.
    """
    if status:
        raise QuantError(MESSAGES.get(status, f"the native kernels failed with status {status}"))
