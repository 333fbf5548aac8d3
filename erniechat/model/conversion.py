"""From a checkpoint to finished weights: account for every tensor, then read and quantize."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erniechat.errors import CheckpointError, UnsupportedModelError, UsageError
from erniechat.model.checkpoint import Checkpoint, Stored, StoredQuantized
from erniechat.model.config import ModelConfig
from erniechat.model.family import Dense, Family, Piece, Routed, Slot, Unused, routed_name, shown
from erniechat.model.stored import StoredTensor
from quant.copy import Weight
from quant.errors import QuantError
from quant.formats import FORMATS
from quant.formats.base import Format, format_nbytes
from quant.kernels.base import KernelBackend
from quant.kernels.quantize import quantize
from quant.tensor import QuantTensor, concat_rows

MAX_CHUNK_NUMEL = 16 << 20  # weights quantized at once: 64 MiB in float32
MAX_LISTED = 5


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


@dataclass(frozen=True, slots=True)
class Reading:
    """One step of the plan: a stored tensor's piece and the slot it fills."""

    stored: Stored
    piece: Piece
    slot: Slot


def plan_readings(checkpoint: Checkpoint, family: Family, config: ModelConfig) -> list[Reading]:
    """Give every stored tensor its slot, from headers alone.

    Raises:
        CheckpointError: Listing tensors that are missing, unexpected or of the wrong shape.
    """
    slots = family.tensors(config)
    readings: list[Reading] = []
    unexpected = []
    for stored in checkpoint:
        pieces = (Piece(stored.name),) if stored.name in slots else None
        found = pieces or family.pieces(config, stored.name)
        if isinstance(found, Unused):
            continue
        if found and all(piece.name in slots for piece in found):
            readings += [Reading(stored, piece, slots[piece.name]) for piece in found]
        else:
            unexpected.append(stored.name)
    filled = Counter(reading.piece.name for reading in readings)
    missing = [
        name
        for name, slot in slots.items()
        if name not in filled and not (isinstance(slot, Dense) and slot.optional)
    ]
    twice = [name for name, count in filled.items() if count > 1]
    _refuse(unexpected, "is not part of this model", "are not part of this model")
    _refuse(missing, "is missing", "are missing")
    _refuse(twice, "is stored twice", "are stored twice")
    for reading in readings:
        _check_shape(reading, reading.stored.shape)
        _check_dtype(reading.stored)
    return readings


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


def _refuse(names: list[str], singular: str, plural: str) -> None:
    if names:
        listed = ", ".join(shown(name)[1:-1] for name in names[:MAX_LISTED])
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        verb = singular if len(names) == 1 else plural
        raise CheckpointError(
            f"{len(names)} tensor{'s' * (len(names) > 1)} {verb}: {listed}{more}",
            "fetch the model again, or check that config.json belongs to it",
        )


def _check_shape(reading: Reading, shape: tuple[int, ...] | None) -> None:
    """Refuse a shape that config.json does not say; None is one that is not known yet."""
    stored, slot = reading.stored, reading.slot
    if shape is None:
        return
    wanted = reading.piece.stored_shape or slot.shape
    if isinstance(slot, Dense) and slot.role == "correction_bias" and shape == (1, *wanted):
        return  # as the hub has it; [num_experts] elsewhere
    if shape != wanted:
        raise CheckpointError(
            f"{stored.name} has shape {_times(shape)}, config.json says {_times(wanted)}",
            "fetch the model again, or check that config.json belongs to it",
        )


def _check_dtype(stored: Stored) -> None:
    if isinstance(stored, StoredTensor) and not stored.dtype.is_floating_point:
        kind = str(stored.dtype).removeprefix("torch.")
        raise UnsupportedModelError(
            f"{stored.name} is stored as {kind} without the scales that bitsandbytes would save",
            "use a checkpoint in bfloat16, or one quantized with bitsandbytes",
        )


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "none"


@dataclass(frozen=True, slots=True)
class Unit:
    """What is made at once: a weight, or the two matrices of an expert; and all it is made of."""

    targets: tuple[str, ...]
    readings: tuple[Reading, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        return sum(_piece_nbytes(reading) for reading in self.readings)

    @property
    def paths(self) -> set[Path]:
        """The shards that it is in."""
        return {path for reading in self.readings for path in reading.stored.paths}


def plan_units(readings: list[Reading]) -> list[Unit]:
    """Put readings together by what they make, in the order in which that can be made.

    A unit comes where the last of its tensors lies on disk: none waits in memory for another.
    """
    units: dict[tuple[str, ...], list[Reading]] = {}
    for reading in readings:
        targets = _targets(reading.slot)
        found = units.pop(targets, [])
        units[targets] = [*found, reading]
    return [Unit(targets, tuple(found)) for targets, found in units.items()]


def _targets(slot: Slot) -> tuple[str, ...]:
    if isinstance(slot, Dense):
        return (slot.target,)
    at = (slot.layer_idx, slot.expert_idx)
    return routed_name(*at, "gate_up"), routed_name(*at, "down")


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


def _piece_nbytes(reading: Reading) -> int:
    """Bytes of the file that a reading takes; in blocks, a weight is less than its dtype."""
    if isinstance(reading.stored, StoredQuantized):
        return reading.stored.nbytes
    whole = torch.Size(reading.stored.shape).numel()
    return reading.stored.nbytes * torch.Size(reading.slot.shape).numel() // whole


def _quantized(reading: Reading, weight_format: Format) -> QuantTensor:
    """A matrix in its format; large ones are read and quantized by ranges of rows."""
    stored = reading.stored
    check_format(reading, weight_format)
    try:
        if isinstance(stored, StoredQuantized):
            weight = stored.read()
            _check_shape(reading, tuple(weight.shape))
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
