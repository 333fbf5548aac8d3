"""What this machine leaves for a model: free memory, flags and counts, made a memory plan."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from erniechat.errors import MemoryLimitError, UsageError
from erniechat.generation.generate import PREFILL_CHUNK
from erniechat.memory_plan import (
    FLAGS,
    Budget,
    Item,
    MemoryPlan,
    Needs,
    TierName,
    plan_memory,
    read_slot_nbytes,
)
from erniechat.model.config import ModelConfig
from erniechat.model.expert_assembly import NUM_STAGED, ExpertPlaces, free_slots
from erniechat.model_sizes import ModelSizes
from erniechat.options import LoadOptions
from erniechat.sizes import size_nbytes
from quant.experts.moves import NUM_AT_ONCE
from quant.figures import KeptFigures
from quant.memory import DeviceMemory, gpu_memory, host_memory, process_memory

MIB = 1 << 20
RESERVE_NBYTES = 256 * MIB  # of free memory is left to others when no size is asked for
MAX_RESERVE_SHARE = 0.05
# What a process takes on a GPU beside weights and cache: the driver's context, torch's workspaces.
GPU_CONTEXT_NBYTES = 640 * MIB
GPU_WORKSPACE_NBYTES = 256 * MIB  # at the 21B shape, where a chunk's buffers are 76 of it
GPU_REST_NBYTES = GPU_WORKSPACE_NBYTES - 76 * MIB
# What a process comes to hold beyond what it has when it plans: code that is read when it first
# runs, threads, freed memory that malloc keeps. On mini, where nothing else weighs, 6 MiB with all
# experts in RAM and 31 with some on disk, which eight threads read.
PROGRAM_GROWTH_NBYTES = 40 * MIB
# A chat holds more when it plans than `erniechat plan` does (measured: 15 MiB): a least size that
# is named must be enough for both.
PROGRAM_NOISE_NBYTES = 16 * MIB
PLANNED_CONTEXT = 8192  # tokens, of a context that may grow
NUM_READ_SLOTS = 4  # times the experts of a token and layer: in RAM for those that leave for disk
MOST_GROWTHS = 16  # each takes an expert's bytes of RAM more than what leaves; see HostPool


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory of this machine.

    Attributes:
        ram: Of the host.
        program_nbytes: What this process holds already.
        gpu: Of the GPU that the model is to run on, None to run on the CPU.
        gpu_program_nbytes: What this process holds there already.
    """

    ram: DeviceMemory
    program_nbytes: int
    gpu: DeviceMemory | None = None
    gpu_program_nbytes: int = 0


def this_machine(device: torch.device) -> Machine:
    """The machine as it is now."""
    return Machine(host_memory(), process_memory().rss_nbytes, gpu_memory(device))


def machine_again(before: Machine, device: torch.device) -> Machine:
    """The machine as it is now, for a program that holds what it did before it read weights."""
    return dataclasses.replace(this_machine(device), program_nbytes=before.program_nbytes)


def budget(
    place: TierName,
    asked: str | None,
    memory: DeviceMemory,
    held_nbytes: int,
    noise_nbytes: int = 0,
) -> Budget:
    """The bytes that may be taken of a memory.

    Args:
        place: Names the flag.
        asked: The flag's value, or None for what is free.
        memory: What there is.
        held_nbytes: What this process holds there already, and counts too.
        noise_nbytes: That the next process may hold more.

    Raises:
        UsageError: If more is asked for than there is.
    """
    if asked is None:
        most = max(0, memory.free_nbytes + held_nbytes - _reserve(memory))
        return Budget(most, total_nbytes=memory.total_nbytes, noise_nbytes=noise_nbytes)
    nbytes = size_nbytes(asked, memory.total_nbytes)
    if nbytes is None or nbytes > memory.total_nbytes:
        raise UsageError(
            f"{FLAGS[place]} must be at most the {memory.total_nbytes / 2**30:.1f}GiB there are, "
            f'got "{asked}"'
        )
    return Budget(nbytes, asked, memory.total_nbytes, noise_nbytes)


def _reserve(memory: DeviceMemory) -> int:
    return min(RESERVE_NBYTES, int(MAX_RESERVE_SHARE * memory.total_nbytes))


def workspace_nbytes(config: ModelConfig) -> int:
    """Activations of a chunk of a prompt in float32, and the logits of a token."""
    routed = config.num_experts_per_tok * 3 * config.moe_intermediate_size
    widths = 6 * config.hidden_size + 3 * config.intermediate_size + routed
    return 4 * (PREFILL_CHUNK * widths + 2 * config.vocab_size)


def gpu_workspace_nbytes(config: ModelConfig) -> int:
    """Workspaces on a GPU, of which the buffers of a chunk of a prompt grow with the model."""
    heads = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    chosen = config.num_experts_per_tok + config.num_shared_experts
    act = max(chosen * config.moe_intermediate_size, config.intermediate_size)
    rows = 12 + 4 * chosen  # bytes for an element of a token's row
    widths = rows * config.hidden_size + 6 * heads + 4 * kv + 2 * act
    return max(GPU_WORKSPACE_NBYTES, GPU_REST_NBYTES + PREFILL_CHUNK * widths)


def fit(
    sizes: ModelSizes,
    options: LoadOptions,
    context_length: int,
    counts: Mapping[int, Sequence[float]] | None,
    machine: Machine,
    longest_context: int | None = None,
) -> MemoryPlan:
    """Plan a model for a machine.

    Where all experts and the cache of the whole context fit on the GPU, that is the plan. Else it
    has the cache of PLANNED_CONTEXT tokens if that may grow at least as far, and the experts that
    fit beside it.

    Args:
        sizes: The model.
        options: Budgets and types.
        context_length: Tokens of prompt and answer together.
        counts: Of earlier conversations.
        machine: What there is.
        longest_context: What the context may grow to while experts leave the GPU; None if they
            may not, so that the whole cache is planned.

    Raises:
        UsageError: If a flag asks for more than there is.
        MemoryLimitError: If the model does not fit, naming the least budget that works.
    """
    gpu = machine.gpu
    on_gpu = None
    if gpu is not None:
        on_gpu = budget("GPU", options.gpu_memory, gpu, machine.gpu_program_nbytes)
    held, noise = machine.program_nbytes, PROGRAM_NOISE_NBYTES
    in_ram = budget("RAM", options.cpu_memory, machine.ram, held, noise)

    def planned(num_tokens: int, num_staged: int | None = None) -> MemoryPlan:
        needs = _needs(sizes, options, num_tokens, machine, num_staged)
        return plan_memory(sizes, needs, counts, gpu=on_gpu, ram=in_ram, has_disk=options.copy)

    def tiered(num_tokens: int) -> MemoryPlan:
        if options.stage:  # unless experts are on disk: then prompts go layer by layer, see below
            with suppress(MemoryLimitError):
                plan = planned(num_tokens, NUM_STAGED)
                if not plan.num_experts("disk"):
                    return dataclasses.replace(plan, num_staged=NUM_STAGED)
        return planned(num_tokens, 0)

    problem = None
    try:
        plan = planned(context_length)
        if on_gpu is None or plan.num_experts("GPU") == sizes.num_experts:
            return plan
        plan = tiered(context_length)
    except MemoryLimitError as exc:
        if on_gpu is None:
            raise
        if longest_context is None:
            tiered(context_length)  # raises, and names a least that has these slots, too
        problem = exc
    if longest_context is not None:
        growing = tiered(min(context_length, PLANNED_CONTEXT))
        if options.copy:
            growing = max(growing, _with_read_slots(growing), key=reachable_context)
        longest = min(longest_context, reachable_context(growing))
        if longest >= context_length or problem:
            return dataclasses.replace(growing, longest_context=longest)
    return plan


def _slots(sizes: ModelSizes, count: int) -> Item:
    return Item("slots for moving experts", count * sizes.expert_nbytes)


def _with_read_slots(plan: MemoryPlan) -> MemoryPlan:
    """A plan without experts on disk, with some RAM through which they may be read from there.

    It takes what nobody needs, so that no expert is on disk before the context grows.
    """
    slot, chosen = read_slot_nbytes(plan.sizes), plan.sizes.config.num_experts_per_tok
    count = min(NUM_READ_SLOTS * chosen, plan.left_nbytes("RAM") // slot)
    if plan.num_experts("disk") or count < chosen:
        return plan
    items = (*plan.items["RAM"], Item("slots for experts from disk", count * slot))
    return dataclasses.replace(plan, items={**plan.items, "RAM": items}, num_read_slots=count)


def reachable_context(plan: MemoryPlan) -> int:
    """Tokens that a cache can grow to while experts leave the GPU for what the RAM has left.

    Where some experts live on disk or may some day, those that leave may join them.
    """
    room = plan.left_nbytes("RAM") // plan.sizes.expert_nbytes - MOST_GROWTHS
    if plan.num_experts("disk") or plan.num_read_slots:
        room = plan.num_experts("GPU")
    leaving = min(plan.num_experts("GPU"), max(0, room))
    return plan.context_length + int(leaving / plan.leaving_per_token)


def _needs(
    sizes: ModelSizes,
    options: LoadOptions,
    num_tokens: int,
    machine: Machine,
    num_staged: int | None,
) -> Needs:
    """Beside the weights; None is for a model all of whose experts stay in one place."""
    in_ram, on_gpu = workspace_nbytes(sizes.config), gpu_workspace_nbytes(sizes.config)
    if machine.gpu is None:
        in_ram += sizes.unpacked_nbytes
    else:
        on_gpu += sizes.unpacked_nbytes
    program = machine.program_nbytes + PROGRAM_GROWTH_NBYTES + sizes.library_nbytes
    gpu: tuple[Item, ...] = (Item("driver", GPU_CONTEXT_NBYTES), Item("workspaces", on_gpu))
    ram: tuple[Item, ...] = (Item("program", program), Item("workspaces", in_ram))
    if num_staged is not None:
        gpu = (*gpu, _slots(sizes, free_slots(num_staged)))
        ram = (*ram, _slots(sizes, NUM_AT_ONCE))
    itemsize = 4 if options.dtype == "float32" else 2
    return Needs(num_tokens, itemsize, gpu, ram, sizes.config.num_experts_per_tok)


def num_tail_slots(plan: MemoryPlan) -> int:
    """Of a model on a GPU, how many of the experts in RAM give way to those on disk.

    Twice as many as are on disk, those used least: on the built-in model more would find nothing
    more there, and what is used most stays where the GPU reads it too. All of them where nothing
    is known of their use.
    """
    num_ram, num_disk = plan.num_experts("RAM"), plan.num_experts("disk")
    if not num_disk or not any(map(any, plan.counts.values())):
        return num_ram if num_disk else 0
    return min(num_ram, max(NUM_READ_SLOTS * plan.sizes.config.num_experts_per_tok, 2 * num_disk))


def expert_places(
    plan: MemoryPlan, options: LoadOptions, figures: KeptFigures | None = None
) -> ExpertPlaces:
    """Which experts of a model on a GPU live elsewhere, and who runs these.

    Args:
        plan: Says where each lives.
        options: May say who runs them.
        figures: What is known of this machine; gets what is measured.
    """
    if plan.fixed_place != "GPU":
        return ExpertPlaces()
    experts = dict(zip(plan.places, plan.placement.experts, strict=True))
    ram, disk = experts.get("RAM", ()), experts.get("disk", ())
    num_pinned = len(ram) - num_tail_slots(plan)
    shares = plan.num_experts("GPU") < plan.sizes.num_experts or plan.grows
    reserve = _reserve(host_memory())
    return ExpertPlaces(
        ram[:num_pinned],
        (*ram[num_pinned:], *disk),
        options.cpu_share,
        options.prompt_cpu_share,
        plan.num_staged,
        figures,
        plan.context_length if shares else 0,
        plan.left_nbytes("RAM"),
        lambda: host_memory().free_nbytes - reserve,
    )
