"""Experts of one model in three places: a GPU's pool, pinned host memory, and the copy on disk.

The model's kernels find every expert of the first two through one table of slots; those of the
host are read through the bus. While a token is decoded, the CPU runs some of the experts outside
the GPU's memory at the same time, on request of the GPU; see `quant.kernels.triton.asking`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from quant.experts.host_pool import HostPool
from quant.experts.lanes import Lanes, lanes_of
from quant.experts.moves import ExpertMover, Pair
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT, ExpertPool, PooledExpertStore
from quant.experts.prompt_tables import PromptTables
from quant.experts.sharing import SharingCosts
from quant.experts.store import TierUse
from quant.experts.tail import NUM_AHEAD, ExpertTail
from quant.experts.whereabouts import Whereabouts
from quant.kernels.base import KernelBackend
from quant.kernels.native.serve import ExpertServer


class TieredExpertStore(PooledExpertStore):
    """Runs routed experts wherever each one lives, and moves them.

    Args:
        pool: The GPU's, with slots that are free for exchanges and for staging.
        host: The experts in pinned memory, with slots that are free for exchanges.
        slots: By layer index the slots of its routed and then its shared experts; NO_SLOT for one
            that is only in the mapped copy.
        num_layers: Layers of the model, those without experts included.
        num_shared: Shared experts of a layer.
        backend: Runs what the GPU can read.
        server: Runs what the GPU asks of the CPU, and holds the experts that have no slot.
        tail: Has the experts without a slot, and runs them for prompts; None if there never are
            any.
        cpu_share: How many experts of a token and layer the CPU runs, by how many of them lie
            outside the GPU's memory: ``num_experts_per_tok + 1`` numbers, the first 0.
        row_shares: By the size of a prompt's chunk which share of a layer's experts in pinned
            memory the CPU runs: those used least.
        num_staged: Experts that a prompt's chunk brings to the GPU before it comes to their
            layer, so that the bus does not rest: those used most. The first free slots of the
            pool, twice as many, are for these; the others for exchanges.
        costs: Of this machine.
        lanes: Of the pool's device.

    Attributes:
        costs: As given, for whoever decides which experts move.
        where: Who is where.
        moves: Exchanges experts while tokens run.
        lanes: As given.
        cpu_share: int32 on the device.
        decode_hits: int64 ``[2]`` on the device: experts that decoded tokens found in the GPU's
            memory, and such that they read through the bus.

    Raises:
        QuantError: If no slot is left for moving.
    """

    def __init__(
        self,
        pool: ExpertPool,
        host: HostPool,
        slots: Mapping[int, Sequence[int]],
        num_layers: int,
        num_shared: int,
        backend: KernelBackend,
        server: ExpertServer,
        tail: ExpertTail | None,
        cpu_share: Sequence[int],
        row_shares: Mapping[int, float] | None = None,
        num_staged: int = 0,
        *,
        costs: SharingCosts,
        lanes: Lanes | None = None,
    ) -> None:
        super().__init__(pool, slots, num_layers, num_shared, backend)
        self.host, self.server, self.costs = host, server, costs
        self.tail = tail
        device = pool.data.device
        self.lanes = lanes or lanes_of(device)
        self.where = where = Whereabouts(
            pool, host, slots, num_layers, num_shared, num_staged, row_shares or {},
            self.lanes.main,
        )  # fmt: skip
        self.slot_of, self.tables = where.tables.device["slot_of"], where.experts
        self.cpu_share = torch.tensor(cpu_share, dtype=torch.int32, device=device)
        self.decode_hits = torch.zeros(2, dtype=torch.int64, device=device)
        self.moves = ExpertMover(where, server, tail, self.routing_counts, self.lanes)

    @property
    def num_slots(self) -> int:
        """Slots in the GPU's memory; greater or negative numbers lie outside it."""
        return len(self.pool.data)

    @property
    def has_unaddressable(self) -> bool:
        """Whether some experts are where the GPU cannot read; that may change between tokens."""
        return self.tail is not None and not self.tail.is_empty

    @property
    def nbytes(self) -> int:
        """See `ExpertStore.nbytes`; those of the tail as far as they are in RAM."""
        tail = 0 if self.tail is None else self.tail.nbytes
        return self.num_usable * self.pool.slot_nbytes + self.host.nbytes + tail

    @property
    def num_usable(self) -> int:
        """Slots of the GPU's that are not lent to a cache."""
        return self.where.num_usable

    @property
    def prompts(self) -> PromptTables:
        """What a prompt's captured chunks read."""
        return self.where.prompts

    @property
    def resident(self) -> set[ExpertKey]:
        """The routed experts in the GPU's memory."""
        return self.where.resident

    @property
    def pinned(self) -> set[ExpertKey]:
        """The routed experts in pinned memory."""
        return self.where.pinned

    def slot(self, key: ExpertKey) -> int:
        """What kernels call the place of an expert."""
        return self.where.slot(key)

    def is_in_ram(self, key: ExpertKey) -> bool:
        """Whether an expert can come to the GPU without being read from the disk."""
        slot = self.slot(key)
        near = slot == NO_SLOT and self.tail is not None and self.tail.is_near(key)
        return near or self.host.holds(slot)

    def is_pinned(self, key: ExpertKey) -> bool:
        """Whether an expert is in pinned memory."""
        return self.host.holds(self.slot(key))

    def _settle_hits(self) -> None:
        """Count the routings since the last move by where their experts were. Waits."""
        self.lanes.main.mark().synchronize()
        self.where.count_hits(self.routing_counts.cpu(), self.resident)

    @property
    def hit_rate(self) -> float:
        """See `ExpertStore.hit_rate`; 1 if nothing was counted yet."""
        self.moves.finish()
        self._settle_hits()
        return self.where.num_hits / self.where.num_routings if self.where.num_routings else 1.0

    @property
    def uses(self) -> tuple[TierUse, ...]:
        """See `ExpertStore.uses`; of decoded tokens, in RAM and on disk of prompts too."""
        resident, streamed = self.decode_hits.tolist()
        size, tail = self.pool.slot_nbytes, self.tail
        on_cpu = self.server.use.num_experts
        if tail is not None:
            on_cpu += tail.num_prompt_uses - tail.num_read
        uses = (
            TierUse("GPU", resident, resident * size),
            TierUse("bus", streamed, streamed * size),
            TierUse("RAM", on_cpu, on_cpu * size),
        )
        if tail is None or (tail.is_empty and not tail.num_read):
            return uses
        return (*uses, TierUse("disk", tail.num_read, tail.nbytes_read))

    def swap(self, promoted: ExpertKey, demoted: ExpertKey) -> None:
        """Exchange an expert in RAM with one of the GPU's. Waits for the device.

        Raises:
            QuantError: If they are not where that is possible, or the disk cannot be read.
        """
        self.swap_all([(promoted, demoted)])

    def swap_all(self, pairs: Sequence[Pair]) -> None:
        """`swap` for many pairs of a promoted and a demoted expert; see `ExpertMover.exchange`."""
        self.moves.exchange(pairs)

    def carry_all(self, moves: Sequence[tuple[ExpertKey, int]]) -> None:
        """Bring experts to slots that nobody is in by then, one after the other.

        The slots are the GPU's or the host's, or NO_SLOT for the tail. Waits for the device.

        Raises:
            QuantError: If the disk cannot be read.
        """
        if not moves:
            return
        self.moves.finish()
        self._settle_hits()
        tail = () if self.tail is None else self.tail.keys
        later = deque(key for key, slot in moves if key in tail and slot != NO_SLOT)
        try:
            for key, slot in moves:
                if later and later[0] == key:
                    later.popleft()
                self._carry(key, slot, list(islice(later, NUM_AHEAD)))
        finally:  # what was interrupted is where it was, and what was done before is done
            self.where.publish({key.layer_idx for key, _ in moves})

    def _carry(self, key: ExpertKey, slot: int, later: Sequence[ExpertKey]) -> None:
        where, before = self.where, self.slot(key)
        if self.tail is not None and slot == NO_SLOT:
            self.tail.join(key)
        elif self.tail is not None and before == NO_SLOT:
            where.write(slot, self.tail.bring(key, later))
            self.tail.part(key)
        else:
            where.memory(slot).copy_(where.memory(before))
        if self.host.holds(slot):
            self.server.place(*key, where.expert_in(slot))
        else:
            self.server.forget(*key)
        where.put(key, slot)

    def forward(
        self, layer_idx: int, hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Tensor:
        """See `ExpertStore.forward`; what the GPU cannot read runs on the CPU meanwhile.

        Raises:
            QuantError: If the disk cannot be read.
        """
        far = self.slot_of[layer_idx][topk_ids] == NO_SLOT
        if self.tail is None or self.tail.is_empty or not bool(far.any()):
            return super().forward(layer_idx, hidden_states, topk_ids, topk_weights)
        tokens, _ = far.nonzero(as_tuple=True)
        rows = hidden_states[tokens].cpu()
        ids, weights = topk_ids[far][:, None].cpu(), topk_weights[far][:, None].cpu()
        near = self._addressable(layer_idx)
        counts = self.routing_counts[layer_idx]  # of the experts that really were chosen
        counts.scatter_add_(0, topk_ids[far], torch.ones_like(topk_ids[far]))
        if near is None:
            out = torch.zeros_like(hidden_states)
        else:
            near_ids = torch.where(far, near, topk_ids)
            out = super().forward(layer_idx, hidden_states, near_ids, topk_weights * ~far)
            counts[near] -= far.sum()
        extra = self.tail.forward(layer_idx, rows, ids, weights)
        return out.index_add(0, tokens, extra.to(out.device))

    def _addressable(self, layer_idx: int) -> int | None:
        """An expert of a layer that the GPU can read, for tokens that chose another."""
        slots = self.where.slots(layer_idx)
        return next((i for i, slot in enumerate(slots) if slot != NO_SLOT), None)

    def close(self) -> None:
        """Stop the CPU's thread, once nothing moves any more."""
        try:
            self.moves.finish()
        finally:
            self.server.close()
