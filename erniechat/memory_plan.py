"""Where a model's bytes go and what that gives: a pure function of sizes, budgets and counts.

Everything here is arithmetic; erniechat/fit.py asks the machine what there is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from erniechat.errors import MemoryLimitError
from erniechat.model_sizes import ModelSizes
from erniechat.sizes import least_size, shown_size, size_nbytes
from quant.experts.placement import Placement, Tier, plan_placement

TierName = Literal["GPU", "RAM", "disk"]
PLACES: tuple[TierName, ...] = ("GPU", "RAM", "disk")
FLAGS: Mapping[TierName, str] = {"GPU": "--gpu-memory", "RAM": "--cpu-memory"}
KV_NAME = "KV cache"
DISK_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be taken of one memory.

    Attributes:
        nbytes: Everything that this process has there counts.
        asked: What the user gave, for instance ``6GiB``; empty if it is what was free.
        total_nbytes: What there is of the memory, so that no more is advised.
        noise_nbytes: That a least size which is advised has beyond what is needed now.
    """

    nbytes: int
    asked: str = ""
    total_nbytes: float = field(default=math.inf, compare=False)
    noise_nbytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Item:
    """Bytes that are taken before experts are.

    Attributes:
        name: For the user.
        nbytes: How many.
    """

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Speeds:
    """Measured bytes a second, and what the cost model adds to them.

    Attributes:
        gpu: Of the GPU's memory, as the kernels read it.
        ram: Of the RAM, as the CPU's kernels read it.
        disk: Of the disk, in reads of an expert's size.
        handoff_seconds: To let the CPU take part in a layer that runs on the GPU.
        token_seconds: What a token takes that is no reading of weights.
        disk_token_seconds: What it takes more where a CPU's experts are partly on disk.
        read_seconds: What reading an expert from the disk takes beyond its bytes.
    """

    gpu: float = math.inf
    ram: float = math.inf
    disk: float = math.inf
    handoff_seconds: float = 0.0
    token_seconds: float = 0.0
    disk_token_seconds: float = 0.0
    read_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Every byte of a model by the place where it lives.

    Attributes:
        sizes: The model.
        budgets: By place; the disk has none.
        items: By place what is there beside routed experts.
        placement: The routed experts by place, in the order of ``places``.
        counts: The routing counts that it was made from, by layer index.
        places: Where experts may live, fastest first.
        context_length: Tokens whose KV cache is among the items.
        longest_context: What it may grow to while experts leave the GPU for RAM.
        num_staged: Experts of a layer that a prompt brings to the GPU ahead of time; their slots
            are among the items.
        num_read_slots: Slots in RAM, among the items, through which experts are read that leave
            for the disk when the context grows; 0 where none will.
    """

    sizes: ModelSizes
    budgets: Mapping[TierName, Budget]
    items: Mapping[TierName, Sequence[Item]]
    placement: Placement
    counts: Mapping[int, Sequence[float]]
    places: tuple[TierName, ...] = field(default=("RAM",))
    context_length: int = 0
    longest_context: int = 0
    num_staged: int = 0
    num_read_slots: int = 0

    @property
    def grows(self) -> bool:
        """Whether the context may become longer than what is planned."""
        return self.longest_context > self.context_length

    @property
    def leaving_per_token(self) -> float:
        """Experts that leave the GPU for each token beyond the planned ones."""
        nbytes = next(n.nbytes for n in self.items[self.fixed_place] if n.name.startswith(KV_NAME))
        return nbytes / self.context_length / self.sizes.expert_nbytes

    def left_nbytes(self, place: TierName) -> int:
        """Bytes of a budget that nothing takes."""
        return self.budgets[place].nbytes - self.nbytes(place)

    def num_experts(self, place: TierName) -> int:
        """Routed experts that live in a place."""
        return len(self.placement.experts[self.places.index(place)]) if place in self.places else 0

    def hit_rate(self, place: TierName) -> float:
        """Share of routings whose expert lives there, if the counts go on as they were."""
        return self.placement.hit_rates[self.places.index(place)] if place in self.places else 0.0

    def nbytes(self, place: TierName) -> int:
        """Bytes of a place in all."""
        fixed = sum(item.nbytes for item in self.items.get(place, ()))
        return fixed + self.num_experts(place) * self.sizes.expert_nbytes

    def nbytes_per_token(self, place: TierName) -> float:
        """Weights that a decoded token reads from a place, on average."""
        fixed = self.sizes.fixed_read_nbytes if place == self.fixed_place else 0
        return fixed + self.hit_rate(place) * self.sizes.num_chosen * self.sizes.expert_nbytes

    @property
    def fixed_place(self) -> TierName:
        """Where attention, shared experts and head live."""
        return "GPU" if "GPU" in self.places else "RAM"

    def tokens_per_second(self, speeds: Speeds) -> float:
        """What decoding should reach: GPU and CPU at the same time, the disk before the CPU."""
        chosen_nbytes = self.sizes.num_chosen * self.sizes.expert_nbytes
        cpu = chosen_nbytes * (
            self.hit_rate("RAM") / speeds.ram
            + self.hit_rate("disk") * (1 / speeds.disk + 1 / speeds.ram)
        )
        cpu += self.hit_rate("disk") * self.sizes.num_chosen * speeds.read_seconds
        if self.fixed_place == "RAM":
            rest = speeds.token_seconds + speeds.disk_token_seconds * bool(self.num_experts("disk"))
            return 1 / (rest + self.sizes.fixed_read_nbytes / speeds.ram + cpu)
        gpu = self.hit_rate("GPU") * chosen_nbytes / speeds.gpu
        cold = 1 - self.hit_rate("GPU")
        # A layer hands over unless all its chosen experts are on the GPU.
        needs_cpu = 1 - (1 - cold) ** self.sizes.config.num_experts_per_tok
        handoff = needs_cpu * len(self.sizes.config.moe_layers) * speeds.handoff_seconds
        fixed = self.sizes.fixed_read_nbytes / speeds.gpu
        return 1 / (speeds.token_seconds + fixed + max(gpu, cpu + handoff))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model takes beside its weights, by place, in bytes.

    Attributes:
        context_length: Tokens that the KV cache must hold.
        kv_itemsize: Bytes of a number in it.
        gpu: Items on the GPU: context of the driver, workspaces, graphs, reserve.
        ram: Items in RAM: the program itself, workspaces.
        least_ram_experts: Experts that must fit into RAM if some live on disk.
    """

    context_length: int
    kv_itemsize: int = 2
    gpu: Sequence[Item] = ()
    ram: Sequence[Item] = ()
    least_ram_experts: int = 0


def read_slot_nbytes(sizes: ModelSizes) -> int:
    """What an expert takes that begins and ends at a block of the disk."""
    return sum(-(-part // DISK_BLOCK) * DISK_BLOCK for part in (sizes.expert_nbytes, 1))


def slots_in(nbytes: int, sizes: ModelSizes) -> int:
    """Experts that fit where each begins and ends at a block of the disk."""
    return max(sizes.config.num_experts_per_tok, nbytes // read_slot_nbytes(sizes))


def plan_memory(
    sizes: ModelSizes,
    needs: Needs,
    counts: Mapping[int, Sequence[float]] | None,
    *,
    gpu: Budget | None,
    ram: Budget,
    has_disk: bool,
) -> MemoryPlan:
    """Fit a model into its budgets: what every token uses first, then experts by hits per byte.

    Args:
        sizes: The model.
        needs: What it takes beside its weights.
        counts: Routing counts by layer index; None if there are none, then all are alike.
        gpu: Budget on the GPU; None to run on the CPU.
        ram: Budget in RAM.
        has_disk: Whether experts that fit nowhere can be read from the copy on disk.

    Raises:
        MemoryLimitError: If a budget is too small, naming the least that is not.
    """
    kv_nbytes = needs.context_length * sizes.config.kv_nbytes_per_token * needs.kv_itemsize // 2
    fixed = (
        Item("weights that every token uses", sizes.fixed_nbytes),
        Item(f"{KV_NAME} of {needs.context_length:,} tokens", kv_nbytes),
    )
    items: dict[TierName, Sequence[Item]] = {"RAM": (*fixed, *needs.ram)}
    budgets: dict[TierName, Budget] = {"RAM": ram}
    tiers = []
    num_left = sizes.num_experts
    if gpu is not None:
        items = {"GPU": (*fixed, *needs.gpu), "RAM": needs.ram}
        budgets["GPU"] = gpu
        room = _room("GPU", gpu, items["GPU"], 0)
        num_left -= min(room // max(sizes.expert_nbytes, 1), num_left)
        tiers.append(Tier("GPU", room))
    least = min(needs.least_ram_experts, num_left) if has_disk else num_left
    room = _room("RAM", ram, items["RAM"], least * sizes.expert_nbytes)
    tiers.append(Tier("RAM", room))
    if has_disk:
        tiers.append(Tier("disk", None))
    known = counts or {}
    unknown = (0.0,) * sizes.config.num_experts
    layers = {layer_idx: known.get(layer_idx, unknown) for layer_idx in sizes.config.moe_layers}
    placement = plan_placement(layers, max(sizes.expert_nbytes, 1), tiers)
    places: tuple[TierName, ...] = tuple(name for name in PLACES if name in {t.name for t in tiers})
    tokens = needs.context_length
    return MemoryPlan(sizes, budgets, items, placement, layers, places, tokens, tokens)


def _room(place: TierName, budget: Budget, items: Sequence[Item], least_nbytes: int) -> int:
    """Bytes that a budget leaves for experts.

    Raises:
        MemoryLimitError: If they are fewer than there must be.
    """
    taken = sum(item.nbytes for item in items)
    if taken + least_nbytes <= budget.nbytes:
        return budget.nbytes - taken
    told = " + ".join(f"{item.name} {shown_size(item.nbytes)}" for item in items)
    experts = f" + experts {shown_size(least_nbytes)}" if least_nbytes else ""
    needed = taken + least_nbytes
    least = least_size(needed + budget.noise_nbytes)
    if (size_nbytes(least, 0) or 0) > budget.total_nbytes:
        least = f"{needed}B"
    way = f"give {least} or more" if budget.asked else f"free some: {least} are needed"
    if needed > budget.total_nbytes:
        there = shown_size(budget.total_nbytes)
        way = f"{least_size(needed)} are needed, and the machine has {there}"
    what = f"{FLAGS[place]} {budget.asked} is" if budget.asked else _free(place, budget)
    raise MemoryLimitError(f"{what} too little for {told}{experts}", way)


def _free(place: TierName, budget: Budget) -> str:
    return f"{shown_size(budget.nbytes)} of {place} are free,"
