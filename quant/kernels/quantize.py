"""Quantizing at the speed of the machine: the native quantizer where it serves, else the format."""

import torch
from torch import Tensor

from quant.formats.base import Format
from quant.formats.codebook import Codebook4
from quant.kernels.native import quantize_codebook
from quant.kernels.native.library import Library, find_library
from quant.tensor import QuantTensor


def quantize(weight_format: Format, weight: Tensor) -> QuantTensor:
    """What ``weight_format.quantize(weight)`` returns, bit for bit, and up to thirty times as fast.

    Raises:
        QuantError: As ``Format.quantize``.
    """
    if isinstance(weight_format, Codebook4) and weight.device.type == "cpu":
        found = find_library()
        if isinstance(found, Library):
            weight = weight.float() if weight.dtype == torch.float16 else weight
            if weight.dtype in (torch.bfloat16, torch.float32):
                return quantize_codebook(weight, weight_format, native=found)
    return weight_format.quantize(weight)
