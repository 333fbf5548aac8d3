"""What a start will fetch, keep and use, in words for people and in numbers for scripts."""

from typing import Any

from erniechat.doctor import known_speeds, speeds_for
from erniechat.events import StartNotice
from erniechat.fetch_plan import FetchPlan
from erniechat.memory_plan import MemoryPlan, Speeds
from erniechat.model.conversion import finished_nbytes
from erniechat.options import LoadOptions
from erniechat.placing import check_memory
from erniechat.plan_text import format_plan, growth_text, plan_facts
from erniechat.planning import make_plan
from erniechat.resolve import ModelFiles, locate
from erniechat.sizes import shown_file_size, shown_size
from erniechat.start_plan import StartPlan, start_plan


def first_start_notice(files: ModelFiles, options: LoadOptions) -> StartNotice | None:
    """What a start will do that has to fetch weights; None if it has not.

    Args:
        files: Of the model.
        options: How it is held.

    Raises:
        UsageError: If the options do not suit the model or the machine.
        ModelError: If the model cannot be had or is no model.
    """
    if files.hub is None or not files.hub.missing:
        return None
    found = start_plan(make_plan(files, options), options, check_memory)
    speeds = None if found.memory is None else known_speeds(found.plan.device, found.memory)
    return _notice(found, options, speeds) if found.fetch.download_nbytes else None


def full_notice(options: LoadOptions) -> StartNotice:
    """What a start will do, in full: `erniechat plan`.

    Raises:
        UsageError: If the options do not suit the model or the machine.
        ModelError: If the model cannot be had or is no model.
    """
    files = locate(options)
    found = start_plan(make_plan(files, options), options, check_memory)
    speeds = None
    if found.memory is not None:
        speeds = speeds_for(found.plan.device, found.memory, keep=options.keep_speeds)
    notice = _notice(found, options, speeds)
    if found.memory is None:
        return notice
    table = format_plan(found.memory, speeds).splitlines()
    kept = [line for line in notice.lines if not line.startswith(("gpu ", "ram ", "context:"))]
    return StartNotice(
        (*kept, *table), notice.download_nbytes, notice.keep_nbytes, notice.facts, notice.problem
    )


def _notice(found: StartPlan, options: LoadOptions, speeds: Speeds | None) -> StartNotice:
    plan, fetch = found.plan, found.fetch
    commit = f" · {plan.hub.commit[:12]}" if plan.hub else ""
    lines = [f"{options.model}{commit} · {plan.quant} · {plan.device}", _what(fetch, found)]
    for need in fetch.needs:
        parts = " + ".join(f"{name} {shown_file_size(n)}" for name, n in need.parts.items() if n)
        verdict = "too little" if need.lacking_nbytes else "ok"
        lines.append(
            f"disk   {parts} at most, {shown_file_size(need.disk.free_nbytes)} free at "
            f"{need.disk.folder}   {verdict}"
        )
    if found.memory is not None:
        lines += _memory_lines(found.memory)
    facts = _facts(found, options, speeds)
    return StartNotice(tuple(lines), fetch.download_nbytes, fetch.keep_nbytes, facts, found.problem)


def _what(fetch: FetchPlan, found: StartPlan) -> str:
    if fetch.has_copy:
        return "plan   start from the finished copy; nothing to fetch or to quantize"
    steps = []
    if fetch.download_nbytes:
        files = f"{fetch.num_files} of {fetch.num_shards} files"
        steps.append(f"download {shown_file_size(fetch.download_nbytes)} ({files})")
    weights = finished_nbytes(found.plan.readings, found.plan.formats)
    keeps = fetch.keep_nbytes > 0
    is_taken = found.plan.checkpoint.quantized_format == found.plan.quant
    steps.append(f"take {found.plan.quant} as it is" if is_taken else "quantize")
    steps += [f"keep {shown_file_size(weights)} for next time" if keeps else "keep nothing"]
    return f"plan   {', '.join(steps)}"


def _memory_lines(memory: MemoryPlan) -> list[str]:
    """A line for each place with a budget."""
    lines = []
    for place in memory.places:
        if place not in memory.budgets:
            continue
        parts = [f"{item.name} {shown_size(item.nbytes)}" for item in memory.items.get(place, ())]
        num = memory.num_experts(place)
        if num:
            parts.append(f"{num:,} experts {shown_size(num * memory.sizes.expert_nbytes)}")
        lines.append(
            f"{place.lower():<6} {' + '.join(parts)} = {shown_size(memory.nbytes(place))} of "
            f"{shown_size(memory.budgets[place].nbytes)}   ok"
        )
    if memory.grows:
        lines.append(growth_text(memory))
    return lines


def _facts(found: StartPlan, options: LoadOptions, speeds: Speeds | None) -> dict[str, Any]:
    plan, fetch, problem = found.plan, found.fetch, found.problem
    return {
        "model": options.model,
        "commit": plan.hub.commit if plan.hub else None,
        "quant": plan.quant,
        "device": str(plan.device),
        "download_nbytes": fetch.download_nbytes,
        "download_files": fetch.num_files,
        "keep_nbytes": fetch.keep_nbytes,
        "has_copy": fetch.has_copy,
        "disks": [
            {
                "folder": need.disk.folder,
                "needed_nbytes": need.nbytes,
                "free_nbytes": need.disk.free_nbytes,
            }
            for need in fetch.needs
        ],
        "memory": plan_facts(found.memory, speeds) if found.memory else None,
        "fits": problem is None,
        "problem": problem and {"message": problem.message, "hint": problem.hint},
    }
