"""Quantizing a weight to a 4-bit codebook in C++, bit-equal to the format's own ``quantize``."""

import ctypes

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.formats.codebook import Codebook4
from quant.kernels.native.buffers import DTYPES
from quant.kernels.native.library import Encoding, Library, check_status, library
from quant.tensor import QuantTensor

NOT_FINITE = 1


def quantize_codebook(
    weight: Tensor, weight_format: Codebook4, *, path: str = "", native: Library | None = None
) -> QuantTensor:
    """Pack a weight into 4-bit codes with one float16 absmax a block of 64.

    Args:
        weight: bfloat16 or float32 ``[out_features, in_features]`` on the CPU.
        weight_format: ``NF4`` or ``FP4``.
        path: Instruction set; by default the fastest.
        native: A loaded library; by default the installed one.

    Returns:
        What ``weight_format.quantize(weight)`` returns, bit for bit.

    Raises:
        QuantError: If the shape or dtype does not suit, a value is not finite or a block's largest
            exceeds float16.
    """
    if weight.dtype not in DTYPES or weight.device.type != "cpu" or weight.dim() != 2:
        raise QuantError(
            "the native quantizer takes bfloat16 or float32 matrices on the CPU, "
            f"got {weight.dtype} {list(weight.shape)} on {weight.device}"
        )
    found = library() if native is None else native
    if path and path not in found.paths:
        raise QuantError(f'no instruction set "{path}" here; there are {", ".join(found.paths)}')
    rows = weight.contiguous()
    shape = (rows.shape[0], rows.shape[1])
    parts = {
        name: torch.empty(spec.shape, dtype=spec.dtype)
        for name, spec in weight_format.part_specs(shape).items()
    }
    values, order = weight_format.codebook.sort()
    bounds = ((values[:-1] + values[1:]) / 2).tolist()
    encoding = Encoding(
        *(rows.data_ptr(), parts["codes"].data_ptr(), parts["absmax"].data_ptr()),
        *(*shape, DTYPES[rows.dtype], found.paths.index(path) if path else -1),
        *((ctypes.c_float * 16)(*bounds), (ctypes.c_uint8 * 16)(*order.tolist())),
    )
    status = found.handle.native_encode(encoding)
    if status == NOT_FINITE:
        raise QuantError("the weight has values that are NaN or infinite; the file is damaged")
    check_status(status)
    return QuantTensor(weight_format.name, weight_format.layout, shape, parts)
