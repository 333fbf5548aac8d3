"""A quantized weight: its packed codes and scales, with the layout they are in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantError


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


def concat_rows(tensors: Sequence[QuantTensor]) -> QuantTensor:
    """One weight of several that share their input, such as q, k and v.

    Args:
        tensors: Of one format, in the layout in which ``quantize`` makes it, where every part
            has the output rows first.

    Raises:
        QuantError: If formats, layouts or in_features differ.
    """
    first = tensors[0]
    same = {(t.format, t.layout, t.shape[1]) for t in tensors}
    if len(same) > 1:
        raise QuantError(f"cannot join weights that differ in format, layout or width: {same}")
    if len(tensors) == 1:
        return first
    parts = {name: torch.cat([t.parts[name] for t in tensors]) for name in first.parts}
    shape = (sum(t.shape[0] for t in tensors), first.shape[1])
    return QuantTensor(first.format, first.layout, shape, parts)
