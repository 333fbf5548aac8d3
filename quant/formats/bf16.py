"""bfloat16: the weight as checkpoints store it, for comparison and for what must stay exact."""

from collections.abc import Mapping

import torch
from torch import Tensor

from quant.formats.base import PartSpec, check_finite, largest_of
from quant.tensor import QuantTensor


class BFloat16:
    """No quantization: one part, ``weight``, bfloat16 ``[out_features, in_features]``."""

    name = "bf16"
    layout = "rows"

    def check(self, shape: tuple[int, int]) -> None:
        """Every shape will do."""

    def part_specs(self, shape: tuple[int, int]) -> Mapping[str, PartSpec]:
        """The weight itself."""
        return {"weight": PartSpec(shape, torch.bfloat16)}

    def quantize(self, weight: Tensor) -> QuantTensor:
        """Round a weight to bfloat16, which is exact for nearly every checkpoint."""
        tensor, largest = self.quantize_unchecked(weight)
        self.check_largest(float(largest))
        return tensor

    def quantize_unchecked(self, weight: Tensor) -> tuple[QuantTensor, Tensor]:
        """See `Format.quantize_unchecked`."""
        out_features, in_features = weight.shape
        parts = {"weight": weight.to(torch.bfloat16).contiguous()}
        tensor = QuantTensor(self.name, self.layout, (out_features, in_features), parts)
        return tensor, largest_of(weight, -1).max()

    def check_largest(self, largest: float) -> None:
        """It must be finite."""
        check_finite(largest)

    def dequantize(self, tensor: QuantTensor, dtype: torch.dtype) -> Tensor:
        """The weight in another dtype."""
        return tensor.parts["weight"].to(dtype)

    def random(self, shape: tuple[int, int], generator: torch.Generator) -> QuantTensor:
        """Normal values."""
        weight = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        return QuantTensor(self.name, self.layout, shape, {"weight": weight})


BF16 = BFloat16()
