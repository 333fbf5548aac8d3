"""From a checkpoint to finished weights: account for every tensor, then stream and quantize."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


class Sink(Protocol):
    """Takes finished weights, and knows which it has."""

    def __contains__(self, name: str) -> bool: ...

    def __setitem__(self, name: str, weight: Weight) -> None: ...


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
        _check_shape(reading)
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


def _check_shape(reading: Reading) -> None:
    stored, slot = reading.stored, reading.slot
    shape = stored.shape
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


def convert(
    readings: list[Reading],
    formats: Formats,
    sink: Sink,
    progress: Callable[[int, int], None] | None = None,
    *,
    before: Callable[[Unit], None] | None = None,
    after: Callable[[Unit], None] | None = None,
) -> None:
    """Read, quantize and deliver every weight that the sink does not have yet.

    Args:
        readings: From `plan_readings`.
        formats: How weights are held.
        sink: Takes each finished weight; an expert's two matrices come one after the other.
        progress: Called with bytes read and bytes in all; what the sink has counts as read.
        before: Called before a unit is read; may wait for its shards.
        after: Called once it is delivered, or was there.

    Raises:
        CheckpointError: If a weight cannot be read or is not finite.
        UsageError: If the model's shape does not suit the format.
    """
    units = plan_units(readings)
    total, done = sum(unit.nbytes for unit in units), 0
    for unit in units:
        if not all(target in sink for target in unit.targets):
            if before:
                before(unit)
            for name, weight in make_unit(unit, formats):
                sink[name] = weight
        if after:
            after(unit)
        done += unit.nbytes
        if progress:
            progress(done, total)


def make_unit(unit: Unit, formats: Formats) -> list[tuple[str, Weight]]:
    """The finished weights of a unit, by name.

    Raises:
        CheckpointError: If a weight cannot be read or is not finite.
        UsageError: If the model's shape does not suit the format.
    """
    slot = unit.readings[0].slot
    if isinstance(slot, Routed):
        return _make_expert(unit, formats)
    ordered = sorted(unit.readings, key=lambda reading: _piece_of(reading.slot))
    if slot.role in ("linear", "embedding"):
        linear = slot.role == "linear"
        weight_format = formats.linear if linear else formats.embedding
        backend = formats.linear_backend if linear else formats.embedding_backend
        matrices = [_quantized(reading, weight_format) for reading in ordered]
        return [(slot.target, backend.prepare(concat_rows(matrices)))]
    return [(slot.target, torch.cat([_plain(reading) for reading in ordered]))]


def _piece_of(slot: Slot) -> int:
    return slot.piece if isinstance(slot, Dense) else 0


def _make_expert(unit: Unit, formats: Formats) -> list[tuple[str, Weight]]:
    parts = {
        reading.slot.part: _quantized(reading, formats.linear)
        for reading in unit.readings
        if isinstance(reading.slot, Routed)
    }
    joined = (concat_rows([parts["gate"], parts["up"]]), parts["down"])
    prepare = formats.linear_backend.prepare
    return [(name, prepare(w)) for name, w in zip(unit.targets, joined, strict=True)]


def _piece_nbytes(reading: Reading) -> int:
    """Bytes of the file that a reading takes; in blocks, a weight is less than its dtype."""
    if isinstance(reading.stored, StoredQuantized):
        return reading.stored.nbytes
    whole = torch.Size(reading.stored.shape).numel()
    return reading.stored.nbytes * torch.Size(reading.slot.shape).numel() // whole


def _quantized(reading: Reading, weight_format: Format) -> QuantTensor:
    """A matrix in its format; large ones are read and quantized by ranges of rows."""
    stored, name = reading.stored, reading.piece.name
    out_features, in_features = reading.slot.shape
    try:
        weight_format.check((out_features, in_features))
    except QuantError as exc:
        raise UsageError(f"{name}: {exc}") from exc
    try:
        if isinstance(stored, StoredQuantized):
            weight = stored.read()
            if isinstance(weight, QuantTensor) and weight.format == weight_format.name:
                return weight
            return quantize(weight_format, _floats(weight))
        rows = max(64, MAX_CHUNK_NUMEL // in_features // 64 * 64)
        first = reading.piece.index
        start, stop = 0, out_features
        if first and isinstance(first[-1], slice):
            start, stop, _ = first[-1].indices(2 * out_features)
            first = first[:-1]
        chunks = [
            quantize(weight_format, stored.read((*first, slice(at, min(at + rows, stop)))))
            for at in range(start, stop, rows)
        ]
        return concat_rows(chunks)
    except QuantError as exc:
        raise CheckpointError(
            f"{name}: {exc}", "fetch the file again, or choose another --quant"
        ) from exc


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
