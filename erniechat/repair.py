"""Copies that have lost some bytes: what is damaged is made again from the original, or named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from erniechat.errors import CheckpointError, ErnieChatError, ModelError
from erniechat.hub.feed import check_online
from erniechat.hub.ranges import TensorFetcher
from erniechat.model.conversion import make_unit
from erniechat.model.readings import Unit, plan_units
from erniechat.options import LoadOptions
from erniechat.planning import Plan, copy_folder, make_plan
from erniechat.resolve import locate
from quant.copy import QuantizedCopy
from quant.errors import QuantError


def repair(copy: QuantizedCopy, plan: Plan, names: list[str], *, offline: bool) -> str:
    """Make damaged weights of a copy again and write them where they lie.

    Of a model on the hub whose shards are gone, the tensors that are needed are fetched, and no
    others. Every weight is held to the copy's checksums before it is written.

    Args:
        copy: The copy.
        plan: Of the same checkpoint, formats and kernels.
        names: Of the damaged weights.
        offline: Whether nothing may be fetched.

    Returns:
        What was done, in one line.

    Raises:
        CheckpointError: If that cannot be; it says what to do.
    """
    what = f"{len(names)} damaged weights" if len(names) > 1 else f"the damaged weight {names[0]}"
    hint = f"erniechat cache rm {copy.folder.name}, and the next start makes it anew"
    units = [unit for unit in plan_units(plan.readings) if not set(names).isdisjoint(unit.targets)]
    gone = sorted(path.name for unit in units for path in unit.paths if not path.exists())
    if gone and plan.hub is None:
        raise CheckpointError(
            f"{copy.folder.name} has {what}, and the original in {gone[0]} is not here", hint
        )
    try:
        if gone and plan.hub is not None:
            check_online(plan.hub, offline=offline)
        with TemporaryDirectory(prefix="erniechat-") as folder:
            fetcher = TensorFetcher(plan.hub, Path(folder)) if gone and plan.hub else None
            for unit in units:
                _repair_unit(copy, unit, plan, set(names), fetcher)
    except _ChangedError as exc:
        raise CheckpointError(
            f"{copy.folder.name} has {what}, and its original has changed since", hint
        ) from exc
    except ErnieChatError as exc:
        raise CheckpointError(
            f"{copy.folder.name} has {what}, and the original cannot be had ({exc.message})",
            f"{exc.hint}, or {hint}" if exc.hint else hint,
        ) from exc
    except OSError as exc:
        raise CheckpointError(
            f"{copy.folder.name} has {what} and cannot be written ({exc.strerror})", hint
        ) from exc
    fetched = f", of which {fetcher.nbytes / 1e6:.1f} MB were fetched" if fetcher else ""
    return f"{what} of {copy.folder.name} made again from the original{fetched}"


class _ChangedError(Exception):
    """What was made is not what the copy once had."""


def _repair_unit(
    copy: QuantizedCopy, unit: Unit, plan: Plan, wanted: set[str], fetcher: TensorFetcher | None
) -> None:
    if fetcher is not None:
        readings = [replace(r, stored=fetcher.bring(r.stored)) for r in unit.readings]
        unit = replace(unit, readings=tuple(readings))
    for name, weight in make_unit(unit, plan.formats):
        if name in wanted and not copy.repair(name, weight):
            raise _ChangedError


def verify_copy(folder: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Read a copy as a whole, and repair it where it is damaged.

    Returns:
        The result in one line.

    Raises:
        ErnieChatError: If it is damaged beyond repair; it says what to do.
    """
    try:
        copy = QuantizedCopy(folder)
    except (QuantError, OSError) as exc:
        raise CheckpointError(
            f"{folder.name} cannot be opened ({str(exc).split(';')[0]})",
            f"erniechat cache rm {folder.name}, and the next start makes it anew",
        ) from exc
    damaged = copy.damaged(progress=progress)
    if not damaged:
        return f"{folder.name}: sound"
    try:
        plan = _plan_of(copy)
    except ErnieChatError as exc:
        raise CheckpointError(
            f"{len(damaged)} weights of {folder.name} are damaged, {damaged[0]} first, and the "
            f"original cannot be read ({exc.message})",
            f"erniechat cache rm {folder.name}, and the next start makes it anew",
        ) from exc
    return f"{folder.name}: {repair(copy, plan, damaged, offline=False)}"


def _plan_of(copy: QuantizedCopy) -> Plan:
    """The plan by which a copy was made.

    Raises:
        ErnieChatError: If its original is not here or has changed.
    """
    options = _options_of(copy.meta)
    plan = make_plan(locate(options), options)
    if copy_folder(plan, str(copy.meta["model"])) != copy.folder:
        raise ModelError("it has changed since")
    return plan


def _options_of(meta: Any) -> LoadOptions:
    try:
        model = str(meta["folder"] or meta["model"])
        options = LoadOptions(model=model, quant=meta["quant"], kernels=meta["kernels"])
        return replace(options, revision=meta["revision"], device=meta["device"])
    except (LookupError, TypeError) as exc:
        raise ModelError("the copy does not say what it is of") from exc
