"""Where each expert of a GPU's model is, which slots are free, and the tables that tell the device.

A slot is a number: from 0 on the GPU's own, others those of pinned memory, NO_SLOT neither.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.device_tables import DeviceTables
from quant.experts.host_pool import HostPool
from quant.experts.lanes import Lane
from quant.experts.placement import ExpertKey
from quant.experts.pool import ExpertPool
from quant.experts.prompt_tables import PromptTables, prompt_parts
from quant.kernels.base import ExpertWeights
from quant.kernels.triton.backend import ExpertTable


class Whereabouts:
    """Places of experts, as the host knows them and as the device does.

    The device learns of changes in its own order: what was launched before finds the old places.

    Args:
        pool: The GPU's.
        host: Experts in pinned memory.
        slots: By layer index the slots of its routed and then its shared experts.
        num_layers: Layers of the model, those without experts included.
        num_shared: Shared experts of a layer.
        num_staged: See `TieredExpertStore`.
        row_shares: See `PromptTables`.
        lane: The device's own order.

    Attributes:
        num_usable: Slots of the GPU's for experts; those from here on are lent to something else.
        num_spare: Slots of the GPU's that are kept free for exchanges.
        tables: What the device knows: ``slot_of`` int64 ``[num_layers, num_experts + num_shared]``
            and the addresses that follow from it.
        experts: By layer index its experts with their addresses.
        prompts: What a prompt's captured chunks read.
        counts: int64 ``[num_layers, num_experts]``, by which prompts choose whom to stage.
        num_hits: Of the routings counted those whose expert was on the GPU.
        num_routings: All that were counted.

    Raises:
        QuantError: If no slot is left for exchanges.
    """

    def __init__(
        self,
        pool: ExpertPool,
        host: HostPool,
        slots: Mapping[int, Sequence[int]],
        num_layers: int,
        num_shared: int,
        num_staged: int,
        row_shares: Mapping[int, float],
        lane: Lane,
    ) -> None:
        self._pool, self._host = pool, host
        self._slot_of = {layer_idx: list(layer) for layer_idx, layer in slots.items()}
        width = len(next(iter(slots.values())))
        self._num_routed = width - num_shared
        self.num_usable = len(pool.data)
        free, hosted = self._unused(range(self.num_usable)), self.free_hosted()
        staging, self.num_spare = free[: 2 * num_staged], len(free) - 2 * num_staged
        if self.num_spare < 1 or not hosted:
            raise QuantError(
                f"a pool with {len(free)} free slots, and {len(hosted)} of pinned memory, cannot "
                f"exchange experts and stage {num_staged}; give it {1 + 2 * num_staged}, and 1"
            )
        self.counts = torch.zeros(num_layers, self._num_routed, dtype=torch.int64)
        self.num_hits = self.num_routings = 0
        addresses = torch.int64, (num_layers, 2, width)
        parts = {
            "slot_of": (torch.int64, (num_layers, width)),
            "gate_up": addresses,
            "down": addresses,
            **prompt_parts(num_layers, self._num_routed, width, len(staging), row_shares),
        }
        self.tables = DeviceTables(parts, pool.data.device, lane)
        example = [pool.expert(0)] * width  # only their shape is looked at
        gate_up_at, down_at = (self.tables.device[name] for name in ("gate_up", "down"))
        self.experts = {i: ExpertTable(example, gate_up_at[i], down_at[i]) for i in slots}
        self.prompts = PromptTables(pool, self.tables, list(slots), staging, row_shares)
        self.publish(slots)

    def slot(self, key: ExpertKey) -> int:
        """What kernels call the place of an expert."""
        return self._slot_of[key.layer_idx][key.expert_idx]

    def slots(self, layer_idx: int) -> Sequence[int]:
        """Of a layer's routed and then its shared experts."""
        return self._slot_of[layer_idx]

    def is_on_gpu(self, slot: int) -> bool:
        """Whether a slot is in the GPU's memory."""
        return 0 <= slot < len(self._pool.data)

    def is_pinned(self, slot: int) -> bool:
        """Whether a slot is in pinned memory."""
        return self._host.holds(slot)

    @property
    def resident(self) -> set[ExpertKey]:
        """The routed experts in the GPU's memory."""
        return {key for key, slot in self._routed() if self.is_on_gpu(slot)}

    @property
    def pinned(self) -> set[ExpertKey]:
        """The routed experts in pinned memory."""
        return {key for key, slot in self._routed() if self._host.holds(slot)}

    def _routed(self) -> Iterable[tuple[ExpertKey, int]]:
        for layer_idx, layer in self._slot_of.items():
            for expert_idx, slot in enumerate(layer[: self._num_routed]):
                yield ExpertKey(layer_idx, expert_idx), slot

    @property
    def fixed_slots(self) -> set[int]:
        """Slots whose place captured launches may know: shared experts, and where prompts stage."""
        shared = {slot for layer in self._slot_of.values() for slot in layer[self._num_routed :]}
        return shared.union(self.prompts.staging)

    def free_slots(self) -> list[int]:
        """Slots of the GPU's for an exchange, while none is under way: nobody is in them."""
        staging = self.prompts.staging
        return [slot for slot in self._unused(range(self.num_usable)) if slot not in staging]

    def free_hosted(self) -> list[int]:
        """Those of pinned memory, likewise."""
        return self._unused(self._host.taken)

    def _unused(self, slots: Iterable[int]) -> list[int]:
        taken = {slot for layer in self._slot_of.values() for slot in layer}
        return [slot for slot in slots if slot not in taken]

    def memory(self, slot: int) -> Tensor:
        """Of a slot that kernels can address, uint8 ``[slot_nbytes]``."""
        hosted = self._host.at(slot)
        return self._pool.data[slot] if hosted is None else hosted

    def expert_in(self, slot: int) -> ExpertWeights:
        """The expert in such a slot, as views."""
        return self._pool.expert_in(self.memory(slot))

    def write(self, slot: int, expert: ExpertWeights) -> None:
        """Put an expert into such a slot, at once."""
        self._pool.write_in(self.memory(slot), expert, _copy)

    def put(self, key: ExpertKey, slot: int) -> None:
        """Say where an expert is, to the host; `publish` its layer then."""
        self._slot_of[key.layer_idx][key.expert_idx] = slot

    def publish(self, layers: Collection[int]) -> None:
        """Bring the tables of layers to the device; whatever runs next finds the new places."""
        self.tables.wait()
        host = self.tables.host
        for layer_idx in layers:
            slots = self._slot_of[layer_idx]
            placed = torch.tensor(slots)
            host["slot_of"][layer_idx].copy_(placed)
            gate_up_at, down_at = self._pool.addresses(placed)
            host["gate_up"][layer_idx].copy_(gate_up_at)
            host["down"][layer_idx].copy_(down_at)
            pinned = [i for i in range(self._num_routed) if self._host.holds(slots[i])]
            self.prompts.publish(layer_idx, slots, pinned, self.counts[layer_idx].tolist())
        self.tables.send()

    def count_hits(self, counts: Tensor, resident: Collection[ExpertKey]) -> None:
        """Take in what was routed while these were on the GPU.

        Args:
            counts: Of all routings, shared experts behind the routed ones, at the end of that
                time; on the CPU.
            resident: Who was there.
        """
        counts = counts[:, : self._num_routed].clone()
        new = counts - self.counts
        rows = new.tolist()
        num_hits = sum(rows[key.layer_idx][key.expert_idx] for key in resident)
        self.counts, self.num_hits = counts, self.num_hits + num_hits
        self.num_routings += int(new.sum())

    def share_rows(self, row_shares: Mapping[int, float]) -> None:
        """Change the shares of a prompt's experts that the CPU runs, for sizes known already."""
        self.prompts.share(row_shares)
        self.publish(self._slot_of)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
