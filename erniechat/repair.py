"""Copies that have lost some bytes: what is damaged is made again from the original, or named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from erniechat.errors import CheckpointError, ErnieChatError, ModelError
from erniechat.model.conversion import make_unit, plan_units
from erniechat.options import LoadOptions
from erniechat.planning import Plan, copy_folder, make_plan
from erniechat.resolve import locate
from quant.copy import QuantizedCopy
from quant.errors import QuantError


def repair(copy: QuantizedCopy, plan: Plan, names: list[str]) -> str:
    """Make damaged weights of a copy again and write them where they lie.

    Args:
        copy: The copy.
        plan: Of the same checkpoint, formats and kernels.
        names: Of the damaged weights.

    Returns:
        What was done, in one line.

    Raises:
        CheckpointError: If that cannot be; it says what to do.
    """
    wanted = set(names)
    what = f"{len(names)} damaged weights" if len(names) > 1 else f"the damaged weight {names[0]}"
    hint = f"erniechat cache rm {copy.folder.name}, and the next start makes it anew"
    for unit in plan_units(plan.readings):
        if not wanted & set(unit.targets):
            continue
        gone = sorted(path.name for path in unit.paths if not path.exists())
        if gone:
            raise CheckpointError(
                f"{copy.folder.name} has {what}, and the original in {gone[0]} is not here", hint
            )
        for name, weight in make_unit(unit, plan.formats):
            try:
                is_same = name not in wanted or copy.repair(name, weight)
            except OSError as exc:
                raise CheckpointError(
                    f"{copy.folder.name} has {what} and cannot be written ({exc.strerror})", hint
                ) from exc
            if not is_same:
                raise CheckpointError(
                    f"{copy.folder.name} has {what}, and its original has changed since", hint
                )
    return f"{what} of {copy.folder.name} made again from the original"


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
    return f"{folder.name}: {repair(copy, plan, damaged)}"


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
        return replace(options, revision=meta["revision"], device=meta["device"], offline=True)
    except (LookupError, TypeError) as exc:
        raise ModelError("the copy does not say what it is of") from exc
