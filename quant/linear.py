"""Layers that hold a quantized weight: a linear map and an embedding."""

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import KernelBackend
from quant.tensor import QuantTensor


class QuantLinear:
    """``y = x @ weight.T``, without bias unless given.

    Args:
        weight: Prepared by the backend.
        backend: Multiplies.
        bias: Float ``[out_features]`` or None.
    """

    def __init__(
        self, weight: QuantTensor, backend: KernelBackend, bias: Tensor | None = None
    ) -> None:
        self.weight = weight
        self.backend = backend
        self.bias = bias

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """``[num_tokens, in_features]`` to ``[num_tokens, out_features]``."""
        out = self.backend.matmul(hidden_states, self.weight)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def embed(weight: QuantTensor, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of an embedding, dequantized.

    Args:
        weight: ``[vocab_size, hidden_size]`` in bf16 or int8, layout ``rows``.
        input_ids: int64 ``[num_tokens]``.
        dtype: Of the result.

    Returns:
        ``[num_tokens, hidden_size]``.

    Raises:
        QuantError: If the weight is in a format whose rows cannot be looked up.
    """
    if weight.layout != "rows":
        raise QuantError(f"an embedding must be in bf16 or int8, got {weight.format}")
    if weight.format == "bf16":
        return weight.parts["weight"][input_ids].to(dtype)
    scale = weight.parts["absmax"][input_ids] / 127.0
    return (weight.parts["codes"][input_ids].float() * scale[:, None]).to(dtype)
