"""`erniechat doctor`: what this machine reads a second, and what that gives a model per budget."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch

from erniechat.errors import ErnieChatError, MemoryLimitError
from erniechat.fit import this_machine
from erniechat.loader import memory_plan
from erniechat.memory_plan import FLAGS, MemoryPlan, Speeds, TierName
from erniechat.options import LoadOptions
from erniechat.planning import choose_device, make_plan
from erniechat.resolve import locate
from erniechat.sizes import least_size, shown_size
from quant.experts.sharing import measure_sharing_costs
from quant.speeds import measure_disk, measure_gpu, measure_ram

SHARES = (0.25, 0.5, 0.75, 1.0)
# What kernels reach of a plain read, and what a layer takes beside its weights: from decode speeds
# of the built-in model, where weights cost nothing, and of the README's table.
KERNEL_SHARE = {"ram": 0.9, "gpu": 0.5}
LAYER_SECONDS = {"cpu": 15e-6, "cuda": 28e-6}
HANDOFF_SECONDS = 20e-6
GB = 1e9

Report = Callable[[str], None]


def speeds_path() -> Path:
    """Where the measured speeds are kept."""
    return platformdirs.user_cache_path("erniechat") / "machine.json"


def measure_machine(device: torch.device, report: Report) -> dict[str, float]:
    """Bytes a second by place, measured now and kept for `known_speeds`.

    Args:
        device: That the model would run on.
        report: Told what is being measured.
    """
    report("measuring RAM")
    found = {"ram": measure_ram()}
    if device.type == "cuda":
        report("measuring the GPU and the bus")
        found |= {"gpu": measure_gpu(device), "bus": measure_sharing_costs(device).bus}
    report("measuring the disk")
    try:
        found["disk"] = measure_disk(speeds_path().parent)
        speeds_path().write_text(json.dumps(found), encoding="utf-8")
    except OSError as exc:
        report(f"the disk of {speeds_path().parent} cannot be measured: {exc.strerror}")
    return found


def measured_speeds() -> dict[str, float]:
    """What `measure_machine` found when it last ran; empty if it never did."""
    try:
        found = json.loads(speeds_path().read_text("utf-8"))
        return {str(name): float(speed) for name, speed in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def known_speeds(device: torch.device, num_layers: int) -> Speeds | None:
    """What the cost model makes of `measured_speeds`; None without them."""
    found = measured_speeds()
    return cost_model(found, device, num_layers) if found else None


def cost_model(found: Mapping[str, float], device: torch.device, num_layers: int) -> Speeds:
    """Measured bytes a second as the plan's cost model takes them."""
    infinite = Speeds()
    return Speeds(
        gpu=found.get("gpu", infinite.gpu) * KERNEL_SHARE["gpu"],
        ram=found.get("ram", infinite.ram) * KERNEL_SHARE["ram"],
        disk=found.get("disk", infinite.disk),
        handoff_seconds=HANDOFF_SECONDS,
        token_seconds=num_layers * LAYER_SECONDS[device.type],
    )


def run_doctor(options: LoadOptions, report: Report) -> dict[str, Any]:
    """Measure, and predict decoding by budget; what `format_doctor` draws.

    Raises:
        UsageError: If the options do not suit the machine.
    """
    device = choose_device(options.device)
    found = measure_machine(device, report)
    result: dict[str, Any] = {"bytes_per_second": found, "model": options.model}
    try:
        result["budgets"] = _budgets(options, device, found)
    except ErnieChatError as exc:
        result["no_prediction"] = str(exc)
    return result


def _budgets(
    options: LoadOptions, device: torch.device, found: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A plan for each share of the experts that the fast memory might hold."""
    plan = make_plan(locate(options), options)
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
        rows.append(_row(FLAGS[place], asked, found_plan, speeds))
    return rows


def _asking(options: LoadOptions, place: TierName, size: str) -> LoadOptions:
    if place == "GPU":
        return dataclasses.replace(options, gpu_memory=size)
    return dataclasses.replace(options, cpu_memory=size)


def _row(flag: str, asked: str, plan: MemoryPlan, speeds: Speeds) -> dict[str, Any]:
    return {
        "flag": f"{flag} {asked}",
        "hit_rates": {place: plan.hit_rate(place) for place in plan.places},
        "nbytes_per_token": {place: plan.nbytes_per_token(place) for place in plan.places},
        "tokens_per_second": plan.tokens_per_second(speeds),
    }


def format_doctor(result: Mapping[str, Any]) -> str:
    """The result for people."""
    names = {"ram": "RAM", "gpu": "GPU memory", "bus": "bus to the GPU", "disk": "disk"}
    lines = [
        f"{names[name]:<16}{speed / GB:>9.1f} GB/s"
        for name, speed in result["bytes_per_second"].items()
    ]
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
        lines.append(
            f"  {row['flag']:<24}{row['tokens_per_second']:>8.1f} tok/s   experts from {places}; "
            f"a token reads {reads}"
        )
    return "\n".join(lines) + "\n"
