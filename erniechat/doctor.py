"""`erniechat doctor`: what this machine reads a second, and what that gives a model per budget."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from erniechat.errors import ErnieChatError, MemoryLimitError
from erniechat.fit import this_machine
from erniechat.machine import figures_path, keep_figures, kept_figures, place_speeds
from erniechat.memory_plan import FLAGS, MemoryPlan, Speeds, TierName
from erniechat.model.config import ModelConfig
from erniechat.model.machine_costs import BUCKETS, expert_seconds, random_experts
from erniechat.options import LoadOptions
from erniechat.placing import memory_plan
from erniechat.planning import Plan, choose_device, make_plan
from erniechat.resolve import locate
from erniechat.sizes import least_size, shown_size
from quant.figures import MAX_AGE_SECONDS
from quant.formats.base import Format
from quant.kernels.native import NativeBackend
from quant.speeds import measure_bus, measure_disk, measure_gpu, measure_ram

SHARES = (0.25, 0.5, 0.75, 1.0)
# What kernels reach of a plain read, and what a layer takes beside its weights: from decode speeds
# of the built-in model, where weights cost nothing, and of the README's table.
KERNEL_SHARE = {"ram": 0.9, "gpu": 0.5}
LAYER_SECONDS = {"cpu": 15e-6, "cuda": 28e-6}
HANDOFF_SECONDS = 20e-6
# With experts on disk a CPU's token stops for each that it reads, and its choices are counted in
# Python; of mini a read took 0.35 to 0.5 ms, most of it threads that wake up and the disk's answer.
DISK_LAYER_SECONDS, READ_SECONDS = 5e-6, 400e-6
GB = 1e9
NAMES = {"ram": "RAM", "gpu": "GPU memory", "bus": "bus to the GPU", "disk": "disk"}

Report = Callable[[str], None]


def measure_machine(
    device: torch.device, report: Report, *, keep: bool = True
) -> tuple[dict[str, float], bool]:
    """Bytes a second by place, measured now and kept in the place of what was known.

    Args:
        device: That the model would run on.
        report: Told what is being measured.
        keep: Else nothing is kept.

    Returns:
        The speeds, and whether they could be kept.
    """
    report("measuring RAM")
    found = {"ram": measure_ram()}
    if device.type == "cuda":
        report("measuring the GPU and the bus")
        found |= {"gpu": measure_gpu(device), "bus": measure_bus(device)}
    report("measuring the disk")
    folder = figures_path().parent
    try:
        found["disk"] = measure_disk(folder)
    except OSError as exc:
        report(f"the disk of {folder} cannot be measured: {exc.strerror}")
    figures = kept_figures(device, keep=keep)
    figures.forget()  # what was measured by a start, too
    figures.put(found)
    return found, keep_figures(figures, report) and keep


def measured_speeds(device: torch.device) -> dict[str, float]:
    """What was measured of this machine by `measure_machine` or a start; empty if nothing was."""
    return place_speeds(kept_figures(device))


def known_speeds(device: torch.device, memory: MemoryPlan) -> Speeds | None:
    """What the cost model makes of `measured_speeds`; None if one is missing."""
    found = measured_speeds(device)
    layers = memory.sizes.config.num_hidden_layers
    return cost_model(found, device, layers) if _needed(memory) <= found.keys() else None


def speeds_for(device: torch.device, memory: MemoryPlan, *, keep: bool = True) -> Speeds | None:
    """`known_speeds`, what is missing of them measured now, in a second; None if that failed.

    Args:
        device: That the model would run on.
        memory: Says which places are read from.
        keep: Whether what is measured is kept, and what was kept is believed.
    """
    figures = kept_figures(device, keep=keep)
    measures: Mapping[str, Callable[[], float]] = {
        "ram": measure_ram,
        "gpu": lambda: measure_gpu(device),
        "disk": lambda: measure_disk(figures_path().parent),
    }
    try:
        found = {name: figures.measured(name, measures[name]) for name in _needed(memory)}
    except OSError:
        return None
    keep_figures(figures, lambda text: None)
    return cost_model(found, device, memory.sizes.config.num_hidden_layers)


def _needed(memory: MemoryPlan) -> set[str]:
    """The speeds that a plan's cost model reads."""
    return {place.lower() for place in memory.places if memory.nbytes_per_token(place)}


def cost_model(found: Mapping[str, float], device: torch.device, num_layers: int) -> Speeds:
    """Measured bytes a second as the plan's cost model takes them."""
    infinite = Speeds()
    return Speeds(
        gpu=found.get("gpu", infinite.gpu) * KERNEL_SHARE["gpu"],
        ram=found.get("ram", infinite.ram) * KERNEL_SHARE["ram"],
        disk=found.get("disk", infinite.disk),
        handoff_seconds=HANDOFF_SECONDS,
        token_seconds=num_layers * LAYER_SECONDS[device.type],
        disk_token_seconds=num_layers * DISK_LAYER_SECONDS,
        read_seconds=READ_SECONDS,
    )


def run_doctor(options: LoadOptions, report: Report) -> dict[str, Any]:
    """Measure, and predict decoding by budget; what `format_doctor` draws.

    Raises:
        UsageError: If the options do not suit the machine.
    """
    device = choose_device(options.device)
    found, is_kept = measure_machine(device, report, keep=options.keep_speeds)
    kept = str(figures_path()) if is_kept else None
    result: dict[str, Any] = {"bytes_per_second": found, "kept": kept, "model": options.model}
    try:
        plan = make_plan(locate(options), options)
        if device.type == "cuda" and plan.config.moe_layers:
            report("measuring experts on the CPU")
            keep = options.keep_speeds
            measure_experts(plan.config, plan.formats.linear, device, report, keep=keep)
        result["budgets"] = _budgets(plan, options, device, found)
    except ErnieChatError as exc:
        result["no_prediction"] = str(exc)
    return result


def measure_experts(
    config: ModelConfig,
    weight_format: Format,
    device: torch.device,
    report: Report,
    *,
    keep: bool = True,
) -> None:
    """Measure what the CPU takes for a prompt's rows, so that the next start need not."""
    native = NativeBackend()
    if native.why_not(weight_format.name, torch.device("cpu")):
        return
    figures = kept_figures(device, keep=keep)
    experts = random_experts(config, weight_format, native)
    for size in BUCKETS:
        expert_seconds(config, figures, native, experts, size)
    keep_figures(figures, report)


def _budgets(
    plan: Plan, options: LoadOptions, device: torch.device, found: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A plan for each share of the experts that the fast memory might hold."""
    machine = this_machine(device)
    speeds = cost_model(found, device, plan.config.num_hidden_layers)
    place: TierName = "RAM" if machine.gpu is None else "GPU"
    memory = machine.gpu or machine.ram
    most = memory_plan(plan, _asking(options, place, f"{memory.total_nbytes}B"), machine=machine)
    beside = sum(item.nbytes for item in most.items[place])
    experts_nbytes = most.sizes.num_experts * most.sizes.expert_nbytes
    rows: list[dict[str, Any]] = []
    for share in SHARES if experts_nbytes else (1.0,):
        asked = least_size(int(beside + share * experts_nbytes))
        try:
            asking = _asking(options, place, asked)
            found_plan = memory_plan(plan, asking, machine=machine)
        except MemoryLimitError:
            continue
        is_known = _needed(found_plan) <= found.keys()
        rows.append(_row(FLAGS[place], asked, found_plan, speeds, is_known=is_known))
    return rows


def _asking(options: LoadOptions, place: TierName, size: str) -> LoadOptions:
    if place == "GPU":
        return dataclasses.replace(options, gpu_memory=size)
    return dataclasses.replace(options, cpu_memory=size)


def _row(
    flag: str, asked: str, plan: MemoryPlan, speeds: Speeds, *, is_known: bool
) -> dict[str, Any]:
    return {
        "flag": f"{flag} {asked}",
        "hit_rates": {place: plan.hit_rate(place) for place in plan.places},
        "nbytes_per_token": {place: plan.nbytes_per_token(place) for place in plan.places},
        "tokens_per_second": plan.tokens_per_second(speeds) if is_known else None,
    }


def format_doctor(result: Mapping[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{NAMES[name]:<16}{speed / GB:>9.1f} GB/s"
        for name, speed in result["bytes_per_second"].items()
    ]
    days = round(MAX_AGE_SECONDS / 86_400)
    if result["kept"] is None:
        lines.append("not kept: starts and plans will measure again")
    else:
        lines.append(f"kept for starts and plans, at most {days} days: {result['kept']}")
    if why := result.get("no_prediction"):
        return "\n".join([*lines, "", f"no prediction for {result['model']}: {why}"]) + "\n"
    rows: Sequence[Mapping[str, Any]] = result["budgets"]
    lines += ["", f"{result['model']}, expected while decoding:"]
    for row in rows:
        rates = row["hit_rates"].items()
        places = ", ".join(f"{place} {100 * rate:.0f} %" for place, rate in rates if rate)
        reads = " + ".join(
            f"{shown_size(nbytes)} {place}"
            for place, nbytes in row["nbytes_per_token"].items()
            if nbytes
        )
        speed = row["tokens_per_second"]
        shown = "not known" if speed is None else f"{speed:.1f} tok/s"
        lines.append(
            f"  {row['flag']:<24}{shown:>14}   experts from {places}; a token reads {reads}"
        )
    return "\n".join(lines) + "\n"
