"""A quantized weight: its packed codes and scales, with the layout they are in."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class QuantTensor:
    """One weight matrix in one format. Never changed after it is made.

    Attributes:
        format: Name of the format, a key of ``quant.formats.FORMATS``.
        layout: How the parts are ordered. Each format names the layouts it can be in; its first
            is the one that ``quantize`` makes.
        shape: ``(out_features, in_features)`` of the weight that it stands for.
        parts: Named tensors, for instance ``codes`` and ``absmax``.
    """

    format: str
    layout: str
    shape: tuple[int, int]
    parts: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return next(iter(self.parts.values())).device

    def to(self, device: torch.device) -> "QuantTensor":
        """The same weight on another device; itself if it is there already."""
        if self.device == device:
            return self
        parts = {name: part.to(device) for name, part in self.parts.items()}
        return QuantTensor(self.format, self.layout, self.shape, parts)
