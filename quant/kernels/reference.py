"""The definition of every product: dequantize the whole weight, then multiply. Slow and exact."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.formats import FORMATS
from quant.kernels.base import MatmulBackend
from quant.tensor import QuantTensor


class ReferenceBackend(MatmulBackend):
    """Plain torch, any format in its own layout, any device."""

    name = "reference"

    def why_not(self, format_name: str, device: torch.device) -> str:
        """It can do everything."""
        return ""

    def prepare(self, tensor: QuantTensor) -> QuantTensor:
        """Formats come in the layout that this backend reads."""
        return tensor

    def matmul(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        """See `KernelBackend.matmul`."""
        dense = FORMATS[weight.format].dequantize(weight, hidden_states.dtype)
        return F.linear(hidden_states, dense)
