"""From what is stored to finished weights: read, quantize, and lay out as the kernels want it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erniechat.errors import CheckpointError, UsageError
from erniechat.model.checkpoint import StoredQuantized
from erniechat.model.family import Dense, Routed
from erniechat.model.readings import Reading, Unit, check_shape
from erniechat.model.stored import StoredTensor
from quant.copy import Weight
from quant.errors import QuantError
from quant.formats import FORMATS
from quant.formats.base import Format, format_nbytes
from quant.kernels.base import KernelBackend
from quant.kernels.quantize import quantize
from quant.tensor import QuantTensor, concat_rows

MAX_CHUNK_NUMEL = 16 << 20  # weights quantized at once: 64 MiB in float32


@dataclass(frozen=True, slots=True)
class Formats:
    """How weights are held and which backend's layout they get.

    Attributes:
        linear: Format of linear maps and experts.
        embedding: Format of the embedding and the head, whose rows are looked up.
        linear_backend: Runs linear.
        embedding_backend: Runs embedding.
    """

    linear: Format
    embedding: Format
    linear_backend: KernelBackend
    embedding_backend: KernelBackend


def finished_nbytes(readings: list[Reading], formats: Formats) -> int:
    """Bytes of all weights once they are quantized, known before one is read.

    Raises:
        UsageError: If the model's shape does not suit the format.
    """
    total = 0
    for reading in readings:
        slot = reading.slot
        role = "linear" if isinstance(slot, Routed) else slot.role
        if role in ("linear", "embedding"):
            weight_format = formats.linear if role == "linear" else formats.embedding
            out_features, in_features = slot.shape
            try:
                total += format_nbytes(weight_format, (out_features, in_features))
            except QuantError as exc:
                raise UsageError(f"{reading.piece.name}: {exc}") from exc
        else:
            total += 4 * torch.Size(slot.shape).numel()
    return total


def make_unit(unit: Unit, formats: Formats) -> list[tuple[str, Weight]]:
    """The finished weights of a unit, by name.

    Raises:
        CheckpointError: If a weight cannot be read or is not finite.
        UsageError: If the model's shape does not suit the format.
    """
    joints = quantized_joints(unit, formats)
    if joints:
        return [
            joint.finish(concat_rows([_quantized(r, joint.format) for r in joint.readings]))
            for joint in joints
        ]
    return [(unit.targets[0], torch.cat([_plain(reading) for reading in _in_order(unit)]))]


@dataclass(frozen=True, slots=True)
class Joint:
    """A quantized weight and what it is made of.

    Attributes:
        target: Its name.
        readings: One below the other.
        format: That it gets.
        backend: Whose layout it gets.
    """

    target: str
    readings: tuple[Reading, ...]
    format: Format
    backend: KernelBackend

    def finish(self, rows: QuantTensor) -> tuple[str, Weight]:
        """Its name, and the quantized rows of all readings as the backend wants them."""
        return self.target, self.backend.prepare(rows)


def quantized_joints(unit: Unit, formats: Formats) -> list[Joint]:
    """The quantized weights of a unit; none if what it makes is not quantized."""
    slot = unit.readings[0].slot
    if isinstance(slot, Routed):
        parts = {r.slot.part: r for r in unit.readings if isinstance(r.slot, Routed)}
        rows = ((parts["gate"], parts["up"]), (parts["down"],))
        kind = (formats.linear, formats.linear_backend)
        return [Joint(t, r, *kind) for t, r in zip(unit.targets, rows, strict=True)]
    if slot.role == "linear":
        return [Joint(slot.target, _in_order(unit), formats.linear, formats.linear_backend)]
    if slot.role == "embedding":
        return [Joint(slot.target, _in_order(unit), formats.embedding, formats.embedding_backend)]
    return []


def _in_order(unit: Unit) -> tuple[Reading, ...]:
    def piece(reading: Reading) -> int:
        return reading.slot.piece if isinstance(reading.slot, Dense) else 0

    return tuple(sorted(unit.readings, key=piece))


def _quantized(reading: Reading, weight_format: Format) -> QuantTensor:
    """A matrix in its format; large ones are read and quantized by ranges of rows."""
    stored = reading.stored
    check_format(reading, weight_format)
    try:
        if isinstance(stored, StoredQuantized):
            weight = stored.read()
            check_shape(reading, tuple(weight.shape))
            if isinstance(weight, QuantTensor) and weight.format == weight_format.name:
                return weight
            return quantize(weight_format, _floats(weight))
        num_rows, width = reading.slot.shape
        step = max(64, MAX_CHUNK_NUMEL // width // 64 * 64)
        indices = [
            rows_index(reading, first, min(first + step, num_rows))
            for first in range(0, num_rows, step)
        ]
        return concat_rows([quantize(weight_format, stored.read(index)) for index in indices])
    except QuantError as exc:
        raise damaged(reading, exc) from exc


def check_format(reading: Reading, weight_format: Format) -> None:
    """Refuse a format that cannot hold a matrix.

    Raises:
        UsageError: Naming it.
    """
    out_features, in_features = reading.slot.shape
    try:
        weight_format.check((out_features, in_features))
    except QuantError as exc:
        raise UsageError(f"{reading.piece.name}: {exc}") from exc


def rows_index(reading: Reading, first: int, stop: int) -> tuple[int | slice, ...]:
    """Where a range of a matrix' rows is in the stored tensor."""
    index, start = reading.piece.index, 0
    if index and isinstance(index[-1], slice):
        start = index[-1].indices(2 * reading.slot.shape[0])[0]
        index = index[:-1]
    return (*index, slice(start + first, start + stop))


def damaged(reading: Reading, exc: QuantError) -> CheckpointError:
    """What to say of a matrix whose values cannot be quantized."""
    return CheckpointError(
        f"{reading.piece.name}: {exc}", "fetch the file again, or choose another --quant"
    )


def _floats(weight: QuantTensor | Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    return FORMATS[weight.format].dequantize(weight, torch.float32)


def _plain(reading: Reading) -> Tensor:
    """A tensor that is not quantized; what belongs to the router is float32 for good."""
    stored, slot = reading.stored, reading.slot
    role = "expert" if isinstance(slot, Routed) else slot.role
    if not isinstance(stored, StoredTensor):
        raise CheckpointError(
            f"{stored.name} is quantized, and a {role} must not be",
            "use a checkpoint that keeps it in full precision",
        )
    tensor = stored.read(reading.piece.index)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{stored.name} has values that are NaN or infinite", "fetch the file again"
        )
    if role in ("router", "correction_bias"):
        tensor = tensor.float()
    return tensor.reshape(slot.shape)
