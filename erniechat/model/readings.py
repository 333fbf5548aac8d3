"""What is to be read of a checkpoint, from headers alone: every tensor is accounted for."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.checkpoint import Checkpoint, Stored, StoredQuantized
from erniechat.model.config import ModelConfig
from erniechat.model.family import Dense, Family, Piece, Slot, Unused, routed_name, shown
from erniechat.model.stored import StoredTensor

MAX_LISTED = 5


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
        check_shape(reading, reading.stored.shape)
        _check_dtype(reading.stored)
    return readings


def _refuse(names: list[str], singular: str, plural: str) -> None:
    if names:
        listed = ", ".join(shown(name)[1:-1] for name in names[:MAX_LISTED])
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        verb = singular if len(names) == 1 else plural
        raise CheckpointError(
            f"{len(names)} tensor{'s' * (len(names) > 1)} {verb}: {listed}{more}",
            "fetch the model again, or check that config.json belongs to it",
        )


def check_shape(reading: Reading, shape: tuple[int, ...] | None) -> None:
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


def _piece_nbytes(reading: Reading) -> int:
    """Bytes of the file that a reading takes; in blocks, a weight is less than its dtype."""
    if isinstance(reading.stored, StoredQuantized):
        return reading.stored.nbytes
    whole = torch.Size(reading.stored.shape).numel()
    return reading.stored.nbytes * torch.Size(reading.slot.shape).numel() // whole
