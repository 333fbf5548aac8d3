"""torch's own packed operators: bf16 and int8 weights without a dequantized copy of the weight."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.kernels.base import MatmulBackend
from quant.tensor import QuantTensor

# Above this many rows one conversion of the weight costs less than the packed operator does
# (2 cores, [3072, 2560]: 8 rows 0.75 ms packed, 512 rows 37 ms packed against 14 ms converted).
MAX_PACKED_ROWS = 16
# The packed operator reads 16 inputs at a time and past the end of the weight where that does not
# divide (torch 2.13: wrong numbers or a crash).
PACKED_INPUT_STEP = 16


class TorchBackend(MatmulBackend):
    """bf16 through linear; int8 through ``_weight_int8pack_mm`` or a scaled bf16 product."""

    name = "torch"

    def why_not(self, format_name: str, device: torch.device) -> str:
        """It serves bf16 and int8 on any device."""
        if format_name in ("bf16", "int8"):
            return ""
        return f"torch has no operator for {format_name} weights"

    def prepare(self, tensor: QuantTensor) -> QuantTensor:
        """Rows, as the formats make them."""
        return tensor

    def matmul(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        """See `KernelBackend.matmul`."""
        dtype = hidden_states.dtype
        if weight.format == "bf16":
            return F.linear(hidden_states, weight.parts["weight"].to(dtype))
        codes, scale = weight.parts["codes"], weight.parts["absmax"] / 127.0
        if _suits_packed(hidden_states, codes):
            ones = torch.ones_like(scale, dtype=dtype)  # a bf16 scale would round each row's own
            out = torch._weight_int8pack_mm(hidden_states.contiguous(), codes, ones)
            return (out.float() * scale).to(dtype)
        return (F.linear(hidden_states, codes.to(dtype)).float() * scale).to(dtype)


def _suits_packed(hidden_states: Tensor, codes: Tensor) -> bool:
    few_rows = len(hidden_states) <= MAX_PACKED_ROWS
    aligned = codes.shape[1] % PACKED_INPUT_STEP == 0
    return hidden_states.dtype == torch.bfloat16 and codes.is_cpu and few_rows and aligned
