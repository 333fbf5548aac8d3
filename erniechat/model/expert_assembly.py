"""Routed experts from finished weights into the store that suits where they are to live."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.disk_assembly import Residency, cached_experts
from erniechat.model.expert_slots import ExpertSlots, expert_of
from erniechat.model.lent_memory import LentMemory
from erniechat.model.machine_costs import BUCKETS, NUM_MEASURED, row_shares, sharing_costs
from quant.copy import WeightSource
from quant.errors import QuantError
from quant.experts.host_pool import HostPool
from quant.experts.lending import SlotLender
from quant.experts.moves import NUM_AT_ONCE
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT, ExpertPool, PooledExpertStore
from quant.experts.sharing import cpu_shares
from quant.experts.tail import ExpertTail
from quant.experts.tiered import TieredExpertStore
from quant.figures import KeptFigures
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend
from quant.kernels.native.serve import ExpertServer
from quant.upload import BackgroundUpload

NUM_STAGED = 16  # experts of a layer that a prompt brings to the GPU ahead of time

RowShares = Callable[[int], Mapping[int, float]]  # by how many experts are in RAM


def free_slots(num_staged: int) -> int:
    """Slots that a pool needs beside its experts if some live elsewhere.

    Those for exchanges, and two layers in turn stage so many.
    """
    return NUM_AT_ONCE + 2 * num_staged


@dataclass(frozen=True, slots=True)
class ExpertPlaces:
    """Which experts of a model on a GPU live elsewhere; all others are in its memory.

    Attributes:
        ram: In pinned memory of the host.
        disk: Only in the copy, and some of them in RAM for a time.
        cpu_share: Which share of a token's experts outside the GPU's memory the CPU runs, from 0
            to 1; by default what suits this machine best.
        prompt_cpu_share: Likewise of those of a prompt's chunk and layer.
        num_staged: See `TieredExpertStore`.
        figures: What was measured of this machine, and gets what is measured.
        cache_tokens: Tokens of a KV cache that has its place behind the experts, and from these
            on theirs; 0 if it has memory of its own.
        ram_nbytes: Most bytes of RAM for experts that leave for the cache.
        ram_free: Bytes of RAM that can be taken at the moment.
    """

    ram: Collection[ExpertKey] = ()
    disk: Collection[ExpertKey] = ()
    cpu_share: float | None = None
    prompt_cpu_share: float | None = None
    num_staged: int = NUM_STAGED
    figures: KeptFigures | None = None
    cache_tokens: int = 0
    ram_nbytes: int = 0
    ram_free: Callable[[], int] = lambda: 0

    @property
    def has_tiers(self) -> bool:
        """Whether some experts live elsewhere, or may some day."""
        return bool(self.ram or self.disk or self.cache_tokens)


@dataclass(frozen=True, slots=True)
class PooledExperts:
    """Experts of a model on a GPU, and what a cache may share with them; None if nothing."""

    store: PooledExpertStore
    cache_memory: LentMemory | None = None


def slots_for(
    config: ModelConfig,
    weights: WeightSource,
    device: torch.device,
    num_shared: int,
    places: ExpertPlaces,
    dtype: torch.dtype,
) -> ExpertSlots:
    """Memory on a GPU for the experts that live there, and for a cache if that is behind them.

    Shared experts have the first slots, then come those that stay free, then all others.

    Args:
        config: The model's shape; it has layers with experts.
        weights: Every weight by its name.
        device: The GPU.
        num_shared: Shared experts of a layer that the store runs too.
        places: Who lives elsewhere.
        dtype: Of the KV cache.
    """
    elsewhere = {*places.ram, *places.disk}
    num_free = free_slots(places.num_staged) if places.has_tiers else 0
    num_shared_slots = num_shared * len(config.moe_layers)
    num_slots = num_shared_slots + config.num_experts * len(config.moe_layers) - len(elsewhere)
    pool = ExpertPool(
        expert_of(weights, config.moe_layers[0], 0),
        num_slots + num_free,
        device,
        math.prod(cache_shape(config)) * config.head_dim * dtype.itemsize * places.cache_tokens,
    )
    shared = iter(range(num_shared_slots))
    routed = iter(range(num_shared_slots + num_free, num_slots + num_free))
    slots = {}
    for layer_idx in config.moe_layers:
        keys = [ExpertKey(layer_idx, expert_idx) for expert_idx in range(config.num_experts)]
        slots[layer_idx] = [NO_SLOT if key in elsewhere else next(routed) for key in keys]
        slots[layer_idx] += [next(shared) for _ in range(num_shared)]
    return ExpertSlots(pool, slots, num_shared)


def cache_shape(config: ModelConfig) -> tuple[int, int, int]:
    """Of a KV cache before its tokens."""
    return 2, config.num_hidden_layers, config.num_key_value_heads


def pooled_experts(
    config: ModelConfig,
    weights: WeightSource,
    formats: Formats,
    slots: ExpertSlots,
    upload: BackgroundUpload,
    places: ExpertPlaces,
    dtype: torch.dtype,
    residency: Residency | None = None,
) -> PooledExperts:
    """The store of all experts; those who live elsewhere are there when this returns.

    Args:
        config: The model's shape; it has layers with experts.
        weights: Every weight by its name.
        formats: Whose backend runs them.
        slots: Of the GPU.
        upload: Fills these.
        places: Who lives elsewhere.
        dtype: Of the KV cache.
        residency: How many of those in the copy are in RAM.

    Raises:
        QuantError: If experts must be read from a copy, and there is none.
    """
    pool, num_shared = slots.pool, slots.num_shared
    if not places.has_tiers:
        return PooledExperts(
            PooledExpertStore(
                pool, slots.of, config.num_hidden_layers, num_shared, formats.linear_backend
            )
        )
    upload.wait()  # what follows measures the bus
    tail = _tail_of(config, weights, places, residency)
    in_gpu = {layer_idx: list(layer) for layer_idx, layer in slots.of.items()}
    store, shares_of = _tiered_experts(
        config, weights, formats, pool, in_gpu, num_shared, places, tail
    )
    if not places.cache_tokens:
        return PooledExperts(store)
    lender = SlotLender(store, places.ram_nbytes, places.ram_free, shares_of)
    shape = cache_shape(config)
    memory = LentMemory(pool, lender, shape, config.head_dim, dtype, places.cache_tokens)
    return PooledExperts(store, memory)


def _tail_of(
    config: ModelConfig, weights: WeightSource, places: ExpertPlaces, residency: Residency | None
) -> ExpertTail | None:
    """The experts that are in no memory for good; perhaps none, as long as the cache is short."""
    disk = cached_experts(config, weights, NativeBackend(), residency)
    if disk is None and not places.disk:
        return None
    if disk is None:
        raise QuantError(
            f"{len(places.disk):,} experts fit into no memory, and there is no quantized copy to "
            "read them from; give more --cpu-memory"
        )
    return ExpertTail(disk, places.disk)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _tiered_experts(
    config: ModelConfig,
    weights: WeightSource,
    formats: Formats,
    pool: ExpertPool,
    slots: dict[int, list[int]],
    num_shared: int,
    places: ExpertPlaces,
    tail: ExpertTail | None,
) -> tuple[TieredExpertStore, RowShares | None]:
    """Those that do not live on the GPU, in pinned memory or left to the tail.

    Also how a prompt's experts should be shared when others have left, if that is to be decided.
    """
    host = HostPool(pool, len(places.ram), NUM_AT_ONCE)
    on_cpu: dict[int, list[ExpertWeights | None]] = {
        layer_idx: [None] * config.num_experts for layer_idx in config.moe_layers
    }
    for row, key in enumerate(places.ram):
        slots[key.layer_idx][key.expert_idx] = host.slot(row)
        pool.write_in(host.data[row], expert_of(weights, *key), _copy)
        on_cpu[key.layer_idx][key.expert_idx] = pool.expert_in(host.data[row])
    server = ExpertServer(
        on_cpu, config.num_hidden_layers, config.hidden_size, NativeBackend(),
        pinned=pool.data.device.type == "cuda", fetch=None if tail is None else tail.fetch,
    )  # fmt: skip
    if tail is not None:
        tail.serve(server)
    figures = places.figures or KeptFigures(None, "")
    taken = {slot for layer in slots.values() for slot in layer}
    free = [slot for slot in range(len(pool.data)) if slot not in taken]  # one after the other
    costs = sharing_costs(figures, host.data, pool.data[free[0] : free[-1] + 1])
    most = config.num_experts_per_tok
    shares: Sequence[int] = cpu_shares(most, pool.slot_nbytes, costs)
    if places.cpu_share is not None:
        shares = [round(places.cpu_share * outside) for outside in range(most + 1)]
    of_rows: Mapping[int, float] = dict.fromkeys(BUCKETS, places.prompt_cpu_share or 0.0)
    shares_of = None
    if places.prompt_cpu_share is None:
        some = [pool.expert_in(row) for row in host.data[:NUM_MEASURED]]
        if not some and places.cache_tokens:  # measured now, for those that leave later
            first, count = config.moe_layers[0], min(NUM_MEASURED, config.num_experts)
            some = [expert_of(weights, first, expert_idx) for expert_idx in range(count)]
        shares_of = partial(row_shares, config, figures, some, costs=costs)
        of_rows = shares_of(len(host.data))
    store = TieredExpertStore(
        pool, host, slots, config.num_hidden_layers, num_shared, formats.linear_backend, server,
        tail, shares, of_rows, places.num_staged, costs=costs,
    )  # fmt: skip
    return store, shares_of
