"""Attention of a chunk of a prompt in one native call."""

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.native.backend import NativeBackend
from quant.kernels.native.buffers import DTYPES
from quant.kernels.native.library import Attend, check_status


def causal_attention(q: Tensor, k: Tensor, v: Tensor, backend: NativeBackend) -> Tensor:
    """Attention of the last tokens over all tokens up to their own, in float32 inside.

    Args:
        q: ``[num_heads, num_tokens, head_dim]``, float32 or bfloat16 on the CPU.
        k: ``[num_kv_heads, num_held, head_dim]`` of the same dtype, each head's part dense; the
            last num_tokens are q's own.
        v: As k.
        backend: Whose library and instruction set run it.

    Returns:
        ``[num_tokens, num_heads · head_dim]``.

    Raises:
        QuantError: If a tensor is not what it should be, or a score is not finite.
    """
    _check(q, k, v)
    native, path = backend.chosen()
    q = q.contiguous()
    num_heads, num_tokens, head_dim = q.shape
    out = torch.empty((num_tokens, num_heads * head_dim), dtype=q.dtype)
    call = Attend(
        *(q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()),
        *(num_heads, len(k), head_dim, num_tokens, k.shape[1], k.stride(0)),
        *(DTYPES[q.dtype], path),
    )
    check_status(native.handle.native_attend(call))
    return out


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise QuantError(f"attention needs q, k and v of [heads, tokens, head_dim], got {shapes}")
    if 0 in q.shape or 0 in k.shape or len(q) % len(k) or q.shape[1] > k.shape[1]:
        raise QuantError(
            f"query heads must share key heads evenly and no query lack its key, got {shapes}"
        )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES or x.dtype != q.dtype or x.device.type != "cpu":
            raise QuantError(
                f"{name} must be float32 or bfloat16 as q is, on the CPU, "
                f"got {x.dtype} on {x.device.type}"
            )
        last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
        end = (x.storage_offset() + last + 1) * x.itemsize
        if x.untyped_storage().nbytes() < end or x.data_ptr() % x.itemsize:
            raise QuantError(
                f"{name} needs {end} bytes of storage at a multiple of {x.itemsize} bytes, "
                f"it has {x.untyped_storage().nbytes()} at {x.data_ptr():#x}"
            )
    if k.stride() != v.stride() or k.stride()[1:] != (k.shape[2], 1):
        raise QuantError(
            f"k and v must lie alike, each head dense, got strides {k.stride()} and {v.stride()}"
        )
