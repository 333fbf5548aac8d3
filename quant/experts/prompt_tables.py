"""Who runs a prompt's experts outside a GPU's memory, as its captured chunks read it on the device.

Of the experts in pinned memory the CPU runs those used least. Of the others, those used most are
brought to free slots of the GPU's before a chunk comes to their layer; the rest is read through
the bus when it does.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from quant.experts.pool import ExpertPool
from quant.kernels.triton.backend import ExpertTable

Addresses = Callable[[Tensor], tuple[Tensor, Tensor]]


class PromptTables:
    """By layer: experts that the CPU runs, experts to stage, and where a chunk finds each.

    Args:
        pool: The GPU's.
        tables: By layer index its experts with their addresses, to be changed for chunks.
        staging: Slots of the pool that experts are brought to: an even number; two layers in turn
            use a half each.
        num_layers: Layers of the model, those without experts included.
        num_experts: Routed experts of a layer.
        row_shares: By the size of a chunk which share of a layer's experts in pinned memory the
            CPU runs.

    Attributes:
        staging: As given.
        masks: By the size of a chunk int8 ``[num_layers, num_experts]`` on the device, 1 for those
            that the CPU runs.
        tables: As given.
        sources: int64 ``[num_layers, len(staging) / 2]`` on the device, addresses of the experts
            to stage, 0 for none.
        targets: int64, the same shape: where to.
    """

    def __init__(
        self,
        pool: ExpertPool,
        tables: Mapping[int, ExpertTable],
        staging: Sequence[int],
        num_layers: int,
        num_experts: int,
        row_shares: Mapping[int, float],
    ) -> None:
        self._pool, self._num_experts = pool, num_experts
        self._order = {layer_idx: place for place, layer_idx in enumerate(tables)}
        self.tables, self.staging, self._row_shares = tables, staging, row_shares
        device = pool.data.device
        self.masks = {
            size: torch.zeros(num_layers, num_experts, dtype=torch.int8, device=device)
            for size in row_shares
        }
        stages = (num_layers, len(staging) // 2)
        self.sources = torch.zeros(stages, dtype=torch.int64, device=device)
        self.targets = torch.zeros(stages, dtype=torch.int64, device=device)

    def share(self, row_shares: Mapping[int, float]) -> None:
        """Change the shares, for sizes known already; `publish` every layer then."""
        self._row_shares = {size: row_shares[size] for size in self._row_shares}

    def publish(
        self,
        layer_idx: int,
        slots: Sequence[int],
        pinned: Sequence[int],
        counts: Sequence[float],
        addresses: Addresses,
    ) -> None:
        """Bring a layer's tables to the device.

        Args:
            layer_idx: Which.
            slots: Of its routed and then its shared experts.
            pinned: Ids of the experts in pinned memory.
            counts: How often each routed expert was chosen.
            addresses: Of experts in slots, see `ExpertTable`.
        """
        by_use = sorted(pinned, key=lambda expert_idx: (counts[expert_idx], -expert_idx))
        on_cpu = {size: round(share * len(by_use)) for size, share in self._row_shares.items()}
        for size, num_on_cpu in on_cpu.items():
            mask = torch.zeros(self._num_experts, dtype=torch.int8)
            mask[by_use[:num_on_cpu]] = 1
            self.masks[size][layer_idx].copy_(mask)
        # Whom the CPU runs in chunks of every size would be brought in vain.
        bus = by_use[min(on_cpu.values(), default=0) :][::-1]
        places = list(slots)
        sources, targets = torch.zeros(2, self.sources.shape[1], dtype=torch.int64)
        first, nbytes = self._pool.data.data_ptr(), self._pool.slot_nbytes
        half = self._order[layer_idx] % 2 * len(sources)
        for place, expert_idx in enumerate(bus[: len(sources)]):
            target = self.staging[half + place]
            sources[place] = first + slots[expert_idx] * nbytes
            targets[place] = first + target * nbytes
            places[expert_idx] = target
        self.sources[layer_idx].copy_(sources)
        self.targets[layer_idx].copy_(targets)
        at = addresses(torch.tensor(places).to(self.sources.device))
        write_table(self.tables[layer_idx], *at)


def write_table(table: ExpertTable, gate_up_at: Tensor, down_at: Tensor) -> None:
    """Change a table where it is: captured launches hold its address."""
    table.gate_up_at.copy_(gate_up_at)
    table.down_at.copy_(down_at)
