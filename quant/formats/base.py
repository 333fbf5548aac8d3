"""What a format is: how a weight becomes codes and scales, and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.tensor import QuantTensor


@dataclass(frozen=True, slots=True)
class PartSpec:
    """Shape and dtype of one part of a QuantTensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the part."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Format(Protocol):
    """A way to hold a weight in few bits. Stateless."""

    @property
    def name(self) -> str:
        """The key in ``FORMATS``."""
        ...

    @property
    def layout(self) -> str:
        """The layout that ``quantize`` makes."""
        ...

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse a shape that the format cannot hold.

        Raises:
            QuantError: With the size, the rule and a way out.
        """
        ...

    def part_specs(self, shape: tuple[int, int]) -> Mapping[str, PartSpec]:
        """The parts of a weight of this shape, in the layout of ``quantize``."""
        ...

    def quantize(self, weight: Tensor) -> QuantTensor:
        """Quantize a float weight ``[out_features, in_features]`` of any float dtype.

        Raises:
            QuantError: If the shape does not suit or a value is not finite.
        """
        ...

    def quantize_unchecked(self, weight: Tensor) -> tuple[QuantTensor, Tensor]:
        """As quantize, but never waits for the weight's device: whoever does looks at the values.

        Returns:
            The weight in its format, and its largest magnitude, float32 ``[]``, for
            `check_largest`.

        Raises:
            QuantError: If the shape does not suit.
        """
        ...

    def check_largest(self, largest: float) -> None:
        """Refuse a weight by its largest magnitude; NaN if one of its values is that.

        Raises:
            QuantError: If the weight is not finite, or too large for the format.
        """
        ...

    def dequantize(self, tensor: QuantTensor, dtype: torch.dtype) -> Tensor:
        """The weight that the codes stand for, ``[out_features, in_features]``."""
        ...

    def random(self, shape: tuple[int, int], generator: torch.Generator) -> QuantTensor:
        """A random weight, about normal with a standard deviation of 0.02, made of codes directly.

        Costs the bytes of the result and no float weight, for measuring speed.
        """
        ...


def format_nbytes(weight_format: Format, shape: tuple[int, int]) -> int:
    """Bytes of a weight of this shape in this format."""
    return sum(spec.nbytes for spec in weight_format.part_specs(shape).values())


def largest_of(weight: Tensor, dim: int) -> Tensor:
    """Largest magnitude along a dimension, float32; NaN where a value is that."""
    return weight.abs().amax(dim).float()


def check_finite(largest: float) -> None:
    """Refuse a weight whose largest magnitude is not a number.

    Raises:
        QuantError: If it is NaN or infinite.
    """
    if not math.isfinite(largest):
        raise QuantError("the weight has values that are NaN or infinite; the file is damaged")
