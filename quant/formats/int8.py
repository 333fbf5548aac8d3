"""int8: one scale a row, as bitsandbytes' vector-wise quantization of weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from quant.formats.base import PartSpec, check_finite, largest_of
from quant.tensor import QuantTensor


class RowwiseInt8:
    """Parts: ``codes`` int8 ``[out_features, in_features]``, ``absmax`` float32 ``[out_features]``.

    ``weight = codes · absmax / 127``. Source: Dettmers et al., "LLM.int8()", arXiv:2208.07339,
    vector-wise quantization; bitsandbytes' ``int8_vectorwise_quant`` without outliers.
    """

    name = "int8"
    layout = "rows"

    def check(self, shape: tuple[int, int]) -> None:
        """Every shape will do."""

    def part_specs(self, shape: tuple[int, int]) -> Mapping[str, PartSpec]:
        """Codes and one absmax a row."""
        return {
            "codes": PartSpec(shape, torch.int8),
            "absmax": PartSpec(shape[:1], torch.float32),
        }

    def quantize(self, weight: Tensor) -> QuantTensor:
        """Round each row to 127 steps of its largest magnitude."""
        tensor, largest = self.quantize_unchecked(weight)
        self.check_largest(float(largest))
        return tensor

    def quantize_unchecked(self, weight: Tensor) -> tuple[QuantTensor, Tensor]:
        """See `Format.quantize_unchecked`."""
        absmax = largest_of(weight, -1)  # [out_features]
        scale = 127.0 / absmax.clamp(min=1e-36)  # a row of zeros: 0 · inf would be NaN
        codes = (weight.float() * scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        out_features, in_features = weight.shape
        parts = {"codes": codes.contiguous(), "absmax": absmax}
        tensor = QuantTensor(self.name, self.layout, (out_features, in_features), parts)
        return tensor, absmax.max()

    def check_largest(self, largest: float) -> None:
        """It must be finite."""
        check_finite(largest)

    def dequantize(self, tensor: QuantTensor, dtype: torch.dtype) -> Tensor:
        """Codes times their row's scale, computed in float32."""
        scale = tensor.parts["absmax"] / 127.0
        return (tensor.parts["codes"].float() * scale[:, None]).to(dtype)

    def random(self, shape: tuple[int, int], generator: torch.Generator) -> QuantTensor:
        """Uniform codes; the scale gives them a standard deviation of 0.02."""
        codes = torch.empty(shape, dtype=torch.int8).random_(-127, 128, generator=generator)
        parts = {"codes": codes, "absmax": torch.full(shape[:1], 0.02 * 3**0.5)}
        return QuantTensor(self.name, self.layout, shape, parts)


INT8 = RowwiseInt8()
