"""Whether a model fits this machine, and where its experts will live, before a weight is read."""

from collections.abc import Callable

import torch

from erniechat.errors import MemoryLimitError
from erniechat.fit import Machine, fit, num_tail_slots, this_machine
from erniechat.memory_plan import FLAGS, MemoryPlan, slots_in
from erniechat.model.disk_assembly import Residency
from erniechat.model_sizes import model_sizes
from erniechat.options import LoadOptions
from erniechat.planning import Plan, context_length
from erniechat.profiles import known_profile
from erniechat.sizes import least_size
from erniechat.start_plan import what_fits
from quant.copy import QuantizedCopy, WeightSource
from quant.experts.profile import RoutingProfile

Warn = Callable[[str], None]


def earlier_use(plan: Plan, options: LoadOptions, warn: Warn) -> RoutingProfile | None:
    """What earlier chats used, unless that is not to count."""
    return known_profile(plan.fingerprint, warn) if options.profile else None


def memory_plan(
    plan: Plan,
    options: LoadOptions,
    warn: Warn | None = None,
    machine: Machine | None = None,
) -> MemoryPlan:
    """Where every byte of a model goes on this machine, known before a weight is read.

    Args:
        plan: The model.
        options: How it is held.
        warn: Told, in one line, what is wrong with the routing profile.
        machine: As it was, to compare plans; by default as it is now.

    Raises:
        UsageError: If a flag asks for more memory than there is.
        MemoryLimitError: If the model does not fit, naming the least that works.
    """
    slots = [reading.slot for reading in plan.readings]
    sizes = model_sizes(plan.config, slots, plan.formats, getattr(torch, options.dtype))
    profile = earlier_use(plan, options, warn or (lambda text: None))
    counts = None if profile is None else profile.counts
    context = context_length(options, plan.config)
    longest = plan.config.max_position_embeddings if _may_grow(plan, options) else None
    return fit(sizes, options, context, counts, machine or this_machine(plan.device), longest)


def _may_grow(plan: Plan, options: LoadOptions) -> bool:
    """Whether experts may leave for a longer context than is planned, if none was asked for."""
    return options.ctx is None and bool(plan.config.moe_layers) and _can_tier(plan)


def _can_tier(plan: Plan) -> bool:
    return plan.device.type == "cuda" and plan.formats.linear_backend.name == "triton"


def check_memory(
    plan: Plan,
    options: LoadOptions,
    warn: Warn | None = None,
    machine: Machine | None = None,
) -> MemoryPlan:
    """The memory plan of a model that fits; see `memory_plan`.

    Raises:
        UsageError: If a flag asks for more memory than there is.
        MemoryLimitError: If it does not fit, naming what does.
    """
    try:
        places = memory_plan(plan, options, warn, machine)
        _check_places(places, plan, options)
    except MemoryLimitError as exc:

        def fits(other: Plan, changed: LoadOptions) -> None:
            _check_places(memory_plan(other, changed), other, changed)

        ways = ", ".join(what_fits(plan, options, fits))
        found = f"fits here: {ways}" if ways else "no smaller format and no shorter --ctx fits here"
        raise MemoryLimitError(exc.message, f"{exc.hint}; {found}") from exc
    return places


def _check_places(memory: MemoryPlan, plan: Plan, options: LoadOptions) -> None:
    """Refuse a plan that the stores cannot carry out."""
    elsewhere = memory.sizes.num_experts - memory.num_experts(memory.fixed_place)
    on_gpu = memory.fixed_place == "GPU"
    can_tier = on_gpu and _can_tier(plan)
    if elsewhere and not can_tier and (on_gpu or not options.copy):
        flag = FLAGS[memory.fixed_place]
        needed = memory.nbytes(memory.fixed_place) + elsewhere * memory.sizes.expert_nbytes
        needed += memory.budgets[memory.fixed_place].noise_nbytes
        raise MemoryLimitError(
            f"{elsewhere:,} of {memory.sizes.num_experts:,} experts do not fit into the "
            f"{memory.fixed_place}",
            f"{flag} {least_size(needed)} would hold all",
        )


def residency_of(
    memory: MemoryPlan, weights: WeightSource, options: LoadOptions, warn: Warn
) -> Residency | None:
    """Which experts of the copy are kept in RAM; None if none is on disk.

    On a GPU that is about those which live in no memory for good, see `expert_places`.

    Raises:
        MemoryLimitError: If some must stay on disk and no copy could be kept there.
    """
    num_disk, on_gpu = memory.num_experts("disk"), memory.fixed_place == "GPU"
    has_copy = isinstance(weights, QuantizedCopy)
    policy = (memory.counts, options.adapt, options.read_ahead, options.stage)
    if not num_disk:  # but some may leave for it
        if on_gpu and memory.num_experts("RAM"):
            warn(f"{_held(memory)}; the others run from RAM{_advice(memory, options)}")
        num_slots = memory.num_read_slots
        return Residency(num_slots, (), *policy) if num_slots and has_copy else None
    if not has_copy:
        noise = memory.budgets["RAM"].noise_nbytes
        needed = least_size(memory.nbytes("RAM") + memory.nbytes("disk") + noise)
        raise MemoryLimitError(
            "the experts do not fit into RAM, and no quantized copy could be kept",
            f"{FLAGS['RAM']} {needed} would hold all",
        )
    in_ram = dict(zip(memory.places, memory.placement.experts, strict=True))["RAM"]
    first = in_ram[len(in_ram) - num_tail_slots(memory) :] if on_gpu else in_ram
    num_slots = slots_in(len(first) * memory.sizes.expert_nbytes, memory.sizes)
    held = f"{_held(memory)}, " if on_gpu else ""
    count = len(in_ram) if on_gpu else num_slots
    warn(
        f"{held}{count:,} of {memory.sizes.num_experts:,} experts fit into RAM; the others are "
        f"read from the disk when they are chosen{_advice(memory, options)}"
    )
    return Residency(num_slots, first, *policy)


def _held(memory: MemoryPlan) -> str:
    count, whole = memory.num_experts("GPU"), memory.sizes.num_experts
    return f"{count:,} of {whole:,} experts fit into the GPU's memory"


def _advice(memory: MemoryPlan, options: LoadOptions) -> str:
    """How to find out which experts are used most, where nobody knows and it matters."""
    if not options.profile or any(map(any, memory.counts.values())):
        return ""
    return " (erniechat profile calibrate finds out in a minute which are used most)"
