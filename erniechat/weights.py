"""A model's finished weights: mapped from the copy, or made while the checkpoint arrives."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from erniechat.errors import DiskLimitError
from erniechat.events import Progress
from erniechat.hub.failures import FULL
from erniechat.hub.feed import ShardFeed
from erniechat.model.conversion import finished_nbytes
from erniechat.model.delivery import Sink, convert
from erniechat.model.gguf_checkpoint import loss_of
from erniechat.model.readings import Unit, plan_units
from erniechat.options import LoadOptions
from erniechat.planning import Plan, copy_folder
from erniechat.repair import repair
from quant.copy import MemoryWeights, QuantizedCopy, WeightSource
from quant.copy_writer import CopyWriter
from quant.memory import host_memory
from quant.staging import StagedQuantizer

# Norms, routers and biases: a start reads them anyway, so it may as well check them.
CHECKED_NBYTES = 1 << 20

Report = Callable[[Progress], None]
Warn = Callable[[str], None]


def finished_weights(
    plan: Plan, options: LoadOptions, report: Report | None, warn: Warn
) -> WeightSource:
    """Map the quantized copy, making it first if there is none; or quantize into memory.

    Two processes that need the same copy make it once: the second waits for the first.

    Raises:
        ModelError: If a shard cannot be had or read.
        DiskLimitError: If the disk is full and memory does not hold the weights.
        QuantError: If the copy is damaged and cannot be made whole.
    """
    report = report or (lambda progress: None)
    if not options.copy:
        _tell_loss(plan, warn)
        return _in_memory(plan, report, warn)
    folder = copy_folder(plan, options.model)
    try:
        copy = QuantizedCopy(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    else:
        damaged = copy.damaged(CHECKED_NBYTES)
        if damaged:
            warn(repair(copy, plan, damaged, offline=options.offline))
        return copy
    _tell_loss(plan, warn)
    try:
        _make_copy(plan, options, folder, report, warn)
        return QuantizedCopy(folder)
    except OSError as exc:
        _check_fallback(plan, folder, exc)
        warn(
            f"no quantized copy is kept: {folder.parent} cannot be written ({exc.strerror}); "
            "the next start quantizes again, or use --no-copy"
        )
    return _in_memory(plan, report, warn)


def _tell_loss(plan: Plan, warn: Warn) -> None:
    """Say so where weights that are quantized already are quantized once more."""
    if loss := loss_of(plan.checkpoint, plan.quant):
        warn(loss)


def _check_fallback(plan: Plan, folder: Path, exc: OSError) -> None:
    """Refuse to go on in memory where that would not hold the weights.

    Raises:
        DiskLimitError: If the disk is full and memory is too small.
    """
    needed = finished_nbytes(plan.readings, plan.formats)
    if exc.errno in FULL and needed > host_memory().free_nbytes / 2:
        raise DiskLimitError(
            f"the disk of {folder.parent} is full",
            "free some space and start again: what is done is kept",
        ) from exc


def _make_copy(plan: Plan, options: LoadOptions, folder: Path, report: Report, warn: Warn) -> None:
    total = finished_nbytes(plan.readings, plan.formats)

    def waiting(nbytes: int) -> None:
        report(Progress("wait", min(nbytes, total), total))

    with CopyWriter(folder, copy_meta(plan, options), waiting) as writer:
        if not writer.is_finished:
            discards = options.discard_originals and plan.hub is not None
            before_discard = writer.sync if discards else None
            _make(plan, writer, report, before_discard, warn, _quantizer(plan))
            writer.finish()


def copy_meta(plan: Plan, options: LoadOptions) -> dict[str, Any]:
    """What a copy says of itself: enough to make it, or a part of it, again."""
    return {
        "model": options.model,
        "revision": plan.hub.commit if plan.hub else None,
        "folder": None if plan.hub else str(plan.checkpoint.folder.resolve()),
        "quant": plan.quant,
        "device": str(plan.device.type),
        "kernels": options.kernels,
    }


def _in_memory(plan: Plan, report: Report, warn: Warn) -> MemoryWeights:
    weights = MemoryWeights()
    _make(plan, weights, report, None, warn, _quantizer(plan, is_kept=True))
    return weights


def _quantizer(plan: Plan, *, is_kept: bool = False) -> StagedQuantizer | None:
    """What quantizes on the GPU that the model will run on, if there is anything to quantize."""
    if plan.device.type != "cuda" or plan.quant == "bf16":
        return None
    return StagedQuantizer(plan.device, is_kept=is_kept)


def _make(
    plan: Plan,
    sink: Sink,
    report: Report,
    before_discard: Callable[[], None] | None,
    warn: Warn,
    quantizer: StagedQuantizer | None,
) -> None:
    """Fill a sink, right behind the download.

    Args:
        plan: What to make.
        sink: Takes the weights; has some already if an earlier start was broken off.
        report: Told how far it is.
        before_discard: Called before a shard is deleted that is not needed any more; None keeps
            all shards.
        warn: Told if the quantizer fails.
        quantizer: Makes what it can; without it the CPU makes all.
    """
    left: Counter[Path] = Counter()
    is_here = set()
    for unit in plan_units(plan.readings):
        if all(target in sink for target in unit.targets):
            is_here.add(unit.targets)
        else:
            left.update(unit.paths)
    feed = None
    if plan.hub is not None and (plan.hub.missing or before_discard):
        feed = ShardFeed(
            plan.hub,
            set(left),
            lambda done, total: report(Progress("download", done, total)),
            discards=before_discard is not None,
        )

    def before(unit: Unit) -> None:
        if feed is not None:
            feed.wait_for(unit.paths)

    def after(unit: Unit) -> None:
        if feed is None or before_discard is None or unit.targets in is_here:
            return
        for path in unit.paths:
            left[path] -= 1
            if not left[path]:
                before_discard()
                feed.release(path)

    with feed or nullcontext():
        convert(
            plan.readings,
            plan.formats,
            sink,
            lambda done, total: report(Progress("quantize", done, total)),
            before=before,
            after=after,
            quantizer=quantizer,
            warn=warn,
        )
