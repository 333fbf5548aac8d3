"""Delivering the weights of a checkpoint to whoever keeps them: one by one, or through a GPU."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from erniechat.model.conversion import (
    Formats,
    Joint,
    check_format,
    damaged,
    make_unit,
    quantized_joints,
    rows_index,
)
from erniechat.model.readings import Reading, Unit, plan_units
from erniechat.model.stored import StoredTensor
from quant.copy import Weight
from quant.errors import DeviceError, QuantError
from quant.formats.base import Format
from quant.staging import RowSource, StagedQuantizer, StagedWeight

NUM_READ_AHEAD = 3  # units that are being read while one is quantized
NUM_LAUNCHED_AHEAD = 1  # units that are being quantized while one is delivered


class Sink(Protocol):
    """Takes finished weights, and knows which it has."""

    def __contains__(self, name: str) -> bool: ...

    def __setitem__(self, name: str, weight: Weight) -> None: ...


def convert(
    readings: list[Reading],
    formats: Formats,
    sink: Sink,
    progress: Callable[[int, int], None] | None = None,
    *,
    before: Callable[[Unit], None] | None = None,
    after: Callable[[Unit], None] | None = None,
    quantizer: StagedQuantizer | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Read, quantize and deliver every weight that the sink does not have yet.

    Args:
        readings: From `plan_readings`.
        formats: How weights are held.
        sink: Takes each finished weight; an expert's two matrices come one after the other.
        progress: Called with bytes read and bytes in all; what the sink has counts as read.
        before: Called before a unit is read; may wait for its shards.
        after: Called once it is delivered, or was there.
        quantizer: Quantizes several weights at a time on a device, as far as it can; without it,
            and from where it fails, the CPU makes one after the other.
        warn: Told, in one line, that the device has failed.

    Raises:
        CheckpointError: If a weight cannot be read or is not finite.
        UsageError: If the model's shape does not suit the format.
    """
    units = plan_units(readings)
    total, done, num_units = sum(unit.nbytes for unit in units), 0, 0

    def deliver(unit: Unit, weights: Sequence[tuple[str, Weight]]) -> None:
        nonlocal done, num_units
        for name, weight in weights:
            if name not in sink:  # of an expert one may be there: a start ended between the two
                sink[name] = weight
        if after:
            after(unit)
        done += unit.nbytes
        num_units += 1
        if progress:
            progress(done, total)

    if quantizer is not None:
        try:
            with quantizer:
                for unit, weights in _made_ahead(units, formats, sink, quantizer, before):
                    deliver(unit, weights)
        except DeviceError as exc:
            if warn:
                warn(f"the GPU cannot quantize ({exc}); the CPU does the rest")
    for unit in units[num_units:]:
        if _is_in(unit, sink):
            deliver(unit, ())
            continue
        if before:
            before(unit)
        deliver(unit, make_unit(unit, formats))


def _is_in(unit: Unit, sink: Sink) -> bool:
    return all(target in sink for target in unit.targets)


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A unit that is being made.

    Attributes:
        unit: Of the plan.
        staged: What of it goes through the device; if nothing does, finish makes it.
        is_here: Whether the sink has it.
    """

    unit: Unit
    staged: Sequence[tuple[Joint, StagedWeight]]
    is_here: bool

    def launch(self) -> "_UnderWay":
        """Have the device work on it."""
        for _, weight in self.staged:
            weight.launch()
        return self

    def finish(self, formats: Formats) -> tuple[Unit, list[tuple[str, Weight]]]:
        """The unit with its weights.

        Raises:
            CheckpointError: If one is not finite.
        """
        if self.is_here:
            return self.unit, []
        if not self.staged:
            return self.unit, make_unit(self.unit, formats)
        weights = []
        for joint, weight in self.staged:
            rows, largest = weight.result()
            for reading, value in zip(joint.readings, largest, strict=True):
                try:
                    joint.format.check_largest(value)
                except QuantError as exc:
                    raise damaged(reading, exc) from exc
            weights.append(joint.finish(rows))
        return self.unit, weights


def _made_ahead(
    units: Sequence[Unit],
    formats: Formats,
    sink: Sink,
    quantizer: StagedQuantizer,
    before: Callable[[Unit], None] | None,
) -> Iterator[tuple[Unit, list[tuple[str, Weight]]]]:
    """All units in order with their weights, none for those that the sink has.

    What is under way is delivered before a shard is waited for: while that takes minutes, what is
    done is kept, and the shard before it can be released.
    """
    waiting: deque[_UnderWay] = deque()
    launched: deque[_UnderWay] = deque()
    seen: set[Path] = set()
    for unit in units:
        is_here = _is_in(unit, sink)
        staged: list[tuple[Joint, StagedWeight]] = []
        if not is_here:
            if not unit.paths <= seen:
                yield from _rest(waiting, launched, formats)
                seen |= unit.paths
            if before:
                before(unit)
            staged = _start(unit, formats, quantizer)
        waiting.append(_UnderWay(unit, staged, is_here))
        if len(waiting) > NUM_READ_AHEAD:
            launched.append(waiting.popleft().launch())
        if len(launched) > NUM_LAUNCHED_AHEAD:
            yield launched.popleft().finish(formats)
    yield from _rest(waiting, launched, formats)


def _rest(
    waiting: "deque[_UnderWay]", launched: "deque[_UnderWay]", formats: Formats
) -> Iterator[tuple[Unit, list[tuple[str, Weight]]]]:
    """What is under way, until nothing is."""
    while waiting or launched:
        if waiting:
            launched.append(waiting.popleft().launch())
        if len(launched) > NUM_LAUNCHED_AHEAD or not waiting:
            yield launched.popleft().finish(formats)


def _start(
    unit: Unit, formats: Formats, quantizer: StagedQuantizer
) -> list[tuple[Joint, StagedWeight]]:
    """Begin to read a unit, if all its weights can go through the device."""
    joints = quantized_joints(unit, formats)
    started = []
    for joint in joints:
        sources = [_source(reading, joint.format) for reading in joint.readings]
        readable = [source for source in sources if source is not None and source.rows_at_once]
        if len(readable) < len(sources):
            return []
        started.append((joint, readable))
    return [(joint, quantizer.start(joint.format, rows)) for joint, rows in started]


def _source(reading: Reading, weight_format: Format) -> RowSource | None:
    """A matrix as rows to read; None if it is of a kind that is decoded as it is read.

    Raises:
        UsageError: If its shape does not suit the format.
    """
    check_format(reading, weight_format)
    stored = reading.stored
    if type(stored) is not StoredTensor:
        return None

    def fill(first: int, stop: int, memory: memoryview) -> None:
        stored.read_into(rows_index(reading, first, stop), memory)

    out_features, in_features = reading.slot.shape
    return RowSource((out_features, in_features), stored.dtype, fill)
