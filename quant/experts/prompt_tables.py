"""Who runs a prompt's experts outside a GPU's memory, as its captured chunks read it on the device.

Of the experts in pinned memory the CPU runs those used least. Of the others, those used most are
brought to free slots of the GPU's before a chunk comes to their layer; the rest is read through
the bus when it does.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from quant.experts.device_tables import DeviceTables, Parts
from quant.experts.pool import ExpertPool
from quant.kernels.triton.backend import ExpertTable


def prompt_parts(
    num_layers: int, num_experts: int, num_slots: int, num_staging: int, sizes: Iterable[int]
) -> Parts:
    """What `PromptTables` has on the device.

    Args:
        num_layers: Layers of the model, those without experts included.
        num_experts: Routed experts of a layer.
        num_slots: These and the shared ones.
        num_staging: Slots that experts are brought to.
        sizes: Of chunks.
    """
    addresses = torch.int64, (num_layers, 2, num_slots)
    stages = torch.int64, (num_layers, num_staging // 2)
    masks = torch.int8, (num_layers, num_experts)
    return {
        "prompt gate_up": addresses,
        "prompt down": addresses,
        "sources": stages,
        "targets": stages,
        **{f"mask of {size}": masks for size in sizes},
    }


class PromptTables:
    """By layer: experts that the CPU runs, experts to stage, and where a chunk finds each.

    Args:
        pool: The GPU's.
        parts: Has `prompt_parts`.
        layers: That have experts.
        staging: Slots of the pool that experts are brought to: an even number; two layers in turn
            use a half each.
        row_shares: By the size of a chunk which share of a layer's experts in pinned memory the
            CPU runs.

    Attributes:
        staging: As given.
        masks: By the size of a chunk int8 ``[num_layers, num_experts]`` on the device, 1 for those
            that the CPU runs.
        tables: By layer index its experts with the addresses that chunks find them at.
        sources: int64 ``[num_layers, len(staging) / 2]`` on the device, addresses of the experts
            to stage, 0 for none.
        targets: int64, the same shape: where to.
    """

    def __init__(
        self,
        pool: ExpertPool,
        parts: DeviceTables,
        layers: Sequence[int],
        staging: Sequence[int],
        row_shares: Mapping[int, float],
    ) -> None:
        self._pool, self._parts = pool, parts
        self._order = {layer_idx: place for place, layer_idx in enumerate(layers)}
        self.staging, self._row_shares = staging, row_shares
        found = parts.device
        self.masks = {size: found[f"mask of {size}"] for size in row_shares}
        self.sources, self.targets = found["sources"], found["targets"]
        self.tables = {
            layer_idx: ExpertTable(
                [pool.expert(0)] * found["prompt gate_up"].shape[2],  # only their shape matters
                found["prompt gate_up"][layer_idx],
                found["prompt down"][layer_idx],
            )
            for layer_idx in layers
        }

    def share(self, row_shares: Mapping[int, float]) -> None:
        """Change the shares, for sizes known already; `publish` every layer then."""
        self._row_shares = {size: row_shares[size] for size in self._row_shares}

    def publish(
        self,
        layer_idx: int,
        slots: Sequence[int],
        pinned: Sequence[int],
        counts: Sequence[float],
    ) -> None:
        """Say what a layer's tables become when they are sent to the device.

        Args:
            layer_idx: Which.
            slots: Of its routed and then its shared experts.
            pinned: Ids of the experts in pinned memory.
            counts: How often each routed expert was chosen.
        """
        host = self._parts.host
        by_use = sorted(pinned, key=lambda expert_idx: (counts[expert_idx], -expert_idx))
        on_cpu = {size: round(share * len(by_use)) for size, share in self._row_shares.items()}
        for size, num_on_cpu in on_cpu.items():
            mask = host[f"mask of {size}"][layer_idx]
            mask.zero_()
            mask[by_use[:num_on_cpu]] = 1
        # Whom the CPU runs in chunks of every size would be brought in vain.
        bus = by_use[min(on_cpu.values(), default=0) :][::-1]
        places = list(slots)
        sources, targets = host["sources"][layer_idx], host["targets"][layer_idx]
        sources.zero_()
        targets.zero_()
        first, nbytes = self._pool.data.data_ptr(), self._pool.slot_nbytes
        half = self._order[layer_idx] % 2 * len(sources)
        for place, expert_idx in enumerate(bus[: len(sources)]):
            target = self.staging[half + place]
            sources[place] = first + slots[expert_idx] * nbytes
            targets[place] = first + target * nbytes
            places[expert_idx] = target
        gate_up_at, down_at = self._pool.addresses(torch.tensor(places))
        host["prompt gate_up"][layer_idx].copy_(gate_up_at)
        host["prompt down"][layer_idx].copy_(down_at)
