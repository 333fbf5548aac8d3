"""What a start will fetch, keep and use on this machine, and what fits where that does not."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from erniechat.errors import DiskLimitError, ErnieChatError, MemoryLimitError
from erniechat.fetch_plan import Disk, FetchPlan, plan_fetch
from erniechat.hub.feed import check_online, missing_nbytes
from erniechat.memory_plan import MemoryPlan
from erniechat.model.conversion import finished_nbytes
from erniechat.options import LoadOptions
from erniechat.planning import Plan, choose_formats, context_length, copy_folder
from erniechat.sizes import shown_file_size, shown_size
from quant.copy_names import DATA_FILE, INDEX_FILE
from quant.copy_writer import partial_folder

SHORTEST_OFFERED_CTX = 2048
SMALLER_FORMATS = {"bf16": ("int8", "nf4"), "int8": ("nf4",)}
FLAGS = {"int8": "--8bit", "nf4": "--4bit"}

CheckMemory = Callable[[Plan, LoadOptions], None]


@dataclass(frozen=True, slots=True)
class StartPlan:
    """What a start will do.

    Attributes:
        plan: What is loaded, and how.
        fetch: What is fetched and kept.
        memory: Where it lives; None if it does not fit.
        problem: Why it cannot be; None if it can.
    """

    plan: Plan
    fetch: FetchPlan
    memory: MemoryPlan | None
    problem: ErnieChatError | None


def disk_of(folder: Path) -> Disk:
    """The file system that a folder is on, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return Disk(os.stat(folder).st_dev, str(folder), shutil.disk_usage(folder).free)


def fetch_plan(plan: Plan, options: LoadOptions) -> FetchPlan:
    """What a start fetches and keeps.

    Raises:
        UsageError: If the model's shape does not suit the format.
    """
    folder = copy_folder(plan, options.model)
    written = partial_folder(folder) / DATA_FILE
    has_copy = options.copy and (folder / INDEX_FILE).exists()
    nbytes = 0 if has_copy else finished_nbytes(plan.readings, plan.formats)
    if written.exists():
        nbytes = max(0, nbytes - written.stat().st_size)
    hub = plan.hub
    return plan_fetch(
        [shard.nbytes for shard in hub.shards] if hub else [],
        missing_nbytes(hub) if hub else [],
        nbytes,
        has_copy=has_copy,
        keeps_copy=options.copy,
        discards=options.discard_originals,
        hub_disk=disk_of(hub.folder if hub else folder),
        copy_disk=disk_of(folder),
    )


def check_disk(plan: Plan, options: LoadOptions) -> FetchPlan:
    """What a start fetches and keeps, if the disks hold it.

    What is quantized from files that are here, small as it may be, is not refused: without room
    for a copy it is done in memory.

    Raises:
        ModelNotFoundError: If something is to be fetched and the network may not be used.
        DiskLimitError: If they do not, naming what fits.
    """
    fetch = fetch_plan(plan, options)
    if fetch.download_nbytes and plan.hub:
        check_online(plan.hub, offline=options.offline)
    if fetch.fits or not fetch.download_nbytes:
        return fetch
    need = max(fetch.needs, key=lambda need: need.lacking_nbytes)
    parts = " + ".join(
        f"{name} {shown_file_size(nbytes)}" for name, nbytes in need.parts.items() if nbytes
    )
    ways = what_fits(plan, options, lambda other, changed: None)
    hint = f"free {shown_file_size(need.lacking_nbytes)}"
    raise DiskLimitError(
        f"{options.model} does not fit on the disk of {need.disk.folder}: {parts} = "
        f"{shown_file_size(need.nbytes)}, {shown_file_size(need.disk.free_nbytes)} are free",
        f"{hint}, or what fits here: {', '.join(ways)}" if ways else hint,
    )


def what_fits(plan: Plan, options: LoadOptions, check: CheckMemory) -> list[str]:
    """Changes to the options that make a model fit this machine, the gentlest first.

    Args:
        plan: Of what does not fit.
        options: What was asked for.
        check: Raises MemoryLimitError for what does not fit into memory.

    Returns:
        Flags to add, each with what it then takes: ``--4bit (11.0 GiB)``.
    """
    found = _fitting(plan, options, check, [])
    if not found and plan.device.type != "cpu":
        on_cpu = dataclasses.replace(plan, device=torch.device("cpu"))
        beside = dataclasses.replace(options, device="cpu", gpu_memory=None)
        found = _fitting(on_cpu, beside, check, ["--device", "cpu"])
    return found


def _fitting(
    plan: Plan, options: LoadOptions, check: CheckMemory, first_flags: list[str]
) -> list[str]:
    """Of each format the gentlest change that fits, if any does."""
    found: list[str] = []
    for quant in (plan.quant, *SMALLER_FORMATS.get(plan.quant, ())):
        for more, changed in _changes(options, plan, quant):
            flags = first_flags + more
            if not flags:
                continue
            try:
                formats = choose_formats(quant, changed, plan.device)
                other = dataclasses.replace(plan, quant=quant, formats=formats)
                check(other, changed)
                fits = fetch_plan(other, changed).fits or not plan.hub
            except ErnieChatError:
                continue
            if fits:
                nbytes = finished_nbytes(other.readings, other.formats)
                found.append(f"{' '.join(flags)} (weights {shown_size(nbytes)})")
                break
    return found


def _changes(
    options: LoadOptions, plan: Plan, quant: str
) -> Iterator[tuple[list[str], LoadOptions]]:
    """Ways to need less with a format: as it is, originals discarded, a copy, a shorter context."""
    first = [] if quant == plan.quant else [FLAGS[quant]]
    longest = context_length(options, plan.config)
    contexts = [longest]
    shorter = 1 << longest.bit_length() - 1
    while shorter >= SHORTEST_OFFERED_CTX:
        contexts += [shorter] * (shorter < longest)
        shorter //= 2
    ways: list[tuple[list[str], LoadOptions]] = [([], options)]
    if not options.copy:
        ways.append((["--copy"], dataclasses.replace(options, copy=True)))
    elif plan.hub is not None and not options.discard_originals:
        discarding = dataclasses.replace(options, discard_originals=True)
        ways.append((["--discard-originals"], discarding))
    for ctx in contexts:
        for more, kept in ways:
            flags = [*first, *(["--ctx", str(ctx)] if ctx != longest else [])]
            yield flags + more, dataclasses.replace(kept, quant=quant, ctx=ctx)


def start_plan(
    plan: Plan,
    options: LoadOptions,
    check: Callable[[Plan, LoadOptions], MemoryPlan],
) -> StartPlan:
    """All that is known of a start before it; what forbids it is told, not raised.

    Args:
        plan: What is loaded, and how.
        options: What was asked for.
        check: The memory plan, or MemoryLimitError.
    """
    memory, problem = None, None
    try:
        memory = check(plan, options)
        check_disk(plan, options)
    except (MemoryLimitError, DiskLimitError) as exc:
        problem = exc
    return StartPlan(plan, fetch_plan(plan, options), memory, problem)
