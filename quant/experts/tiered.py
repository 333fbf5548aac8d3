"""Experts of one model in three places: a GPU's pool, pinned host memory, and the copy on disk.

The model's kernels find every expert of the first two through one table of slots; those of the
host are read through the bus. While a token is decoded, the CPU runs some of the experts outside
the GPU's memory at the same time, on request of the GPU; see `quant.kernels.triton.asking`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.host_pool import HostPool
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT, ExpertPool, PooledExpertStore
from quant.experts.prompt_tables import PromptTables, write_table
from quant.experts.sharing import SharingCosts
from quant.experts.store import TierUse
from quant.experts.tail import ExpertTail
from quant.kernels.base import KernelBackend
from quant.kernels.native.serve import ExpertServer


class TieredExpertStore(PooledExpertStore):
    """Runs routed experts wherever each one lives, and moves them while nothing runs.

    Args:
        pool: The GPU's, with one slot more than experts in it.
        host: The experts in pinned memory.
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
            layer, so that the bus does not rest: those used most. The pool has free slots for
            twice as many.
        costs: Of this machine.

    Attributes:
        costs: As given, for whoever decides which experts move.
        spare: A slot of the GPU's that nobody is in, for the next exchange.
        prompts: What a prompt's captured chunks read.
        num_usable: Slots of the GPU's for experts; those from here on are lent to something else.
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
    ) -> None:
        super().__init__(pool, slots, num_layers, num_shared, backend)
        self.host, self.server, self.costs = host, server, costs
        self.tail = tail
        taken = {slot for layer in slots.values() for slot in layer}
        spare = [slot for slot in range(len(pool.data)) if slot not in taken]
        if len(spare) < 1 + 2 * num_staged:
            raise QuantError(
                f"a pool with {len(spare)} free slots cannot exchange experts and stage "
                f"{num_staged}; give it {1 + 2 * num_staged}"
            )
        self.spare = spare[0]
        self.num_usable = len(pool.data)
        device = pool.data.device
        self.cpu_share = torch.tensor(cpu_share, dtype=torch.int32, device=device)
        self.decode_hits = torch.zeros(2, dtype=torch.int64, device=device)
        self._slot_of = {layer_idx: list(layer) for layer_idx, layer in slots.items()}
        self._counts_before = self.counts.clone()
        self._hits = self._routings = 0
        self.prompts = PromptTables(
            pool,
            {layer_idx: self._table(layer_idx) for layer_idx in slots},
            spare[1 : 1 + 2 * num_staged],
            num_layers,
            self._num_routed,
            row_shares or {},
        )
        self._publish(set(slots))

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
    def resident(self) -> set[ExpertKey]:
        """The routed experts in the GPU's memory."""
        return {
            ExpertKey(layer_idx, expert_idx)
            for layer_idx, layer in self._slot_of.items()
            for expert_idx, slot in enumerate(layer[: self._num_routed])
            if 0 <= slot < self.num_slots
        }

    def is_in_ram(self, key: ExpertKey) -> bool:
        """Whether an expert can come to the GPU without being read from the disk."""
        return self.is_pinned(key) or (self.tail is not None and self.tail.is_near(key))

    def is_pinned(self, key: ExpertKey) -> bool:
        """Whether an expert is in pinned memory."""
        return self.host.holds(self.slot(key))

    @property
    def pinned(self) -> set[ExpertKey]:
        """The routed experts in pinned memory."""
        return {
            ExpertKey(layer_idx, expert_idx)
            for layer_idx, layer in self._slot_of.items()
            for expert_idx, slot in enumerate(layer[: self._num_routed])
            if self.host.holds(slot)
        }

    @property
    def shared_slots(self) -> set[int]:
        """Slots of the shared experts."""
        return {slot for layer in self._slot_of.values() for slot in layer[self._num_routed :]}

    @property
    def _num_routed(self) -> int:
        return self.slot_of.shape[1] - self._num_shared

    def _settle_hits(self) -> None:
        """Count the routings since the last move by where their experts were."""
        counts = self.counts.clone()
        new = counts - self._counts_before
        self._counts_before = counts
        self._routings += int(new.sum())
        rows = new.tolist()
        self._hits += sum(rows[key.layer_idx][key.expert_idx] for key in self.resident)

    @property
    def hit_rate(self) -> float:
        """See `ExpertStore.hit_rate`; 1 if nothing was counted yet."""
        self._settle_hits()
        return self._hits / self._routings if self._routings else 1.0

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

    def swap_all(self, pairs: Sequence[tuple[ExpertKey, ExpertKey]]) -> None:
        """`swap` for many pairs of a promoted and a demoted expert."""
        if not pairs:
            return
        self._settle_hits()
        try:
            for promoted, demoted in pairs:
                self._swap(promoted, demoted)
        finally:  # what was done before a failure is done
            self._publish({key.layer_idx for pair in pairs for key in pair})

    def _swap(self, promoted: ExpertKey, demoted: ExpertKey) -> None:
        up, down = self.slot(promoted), self.slot(demoted)
        if self.tail is not None and self.tail.is_near(promoted) and 0 <= down < self.num_slots:
            self._swap_with_tail(self.tail, promoted, demoted)
            return
        if not self.host.holds(up) or not 0 <= down < self.num_slots:
            raise QuantError(f"{promoted} is not in RAM or {demoted} not on the GPU")
        try:
            self._carry(promoted, self.spare)
            self._carry(demoted, up)
        except BaseException:  # Ctrl-C too: a spare slot that somebody is in would be written to
            if self.slot(promoted) != up and self.slot(demoted) == down:
                self.server.forget(*demoted)
                self._carry(promoted, up)
            raise
        finally:
            self.spare = self.spare if self.slot(demoted) == down else down

    def _swap_with_tail(self, tail: ExpertTail, promoted: ExpertKey, demoted: ExpertKey) -> None:
        """Nothing is copied back: whoever leaves the GPU is read from the copy, beside the rest."""
        self.pool.write(self.spare, tail.take(promoted), _copy)
        self._slot_of[promoted.layer_idx][promoted.expert_idx] = self.spare
        self.spare = self.slot(demoted)
        self._slot_of[demoted.layer_idx][demoted.expert_idx] = NO_SLOT
        tail.exchange(promoted, demoted)

    def slot(self, key: ExpertKey) -> int:
        """What kernels call the place of an expert."""
        return self._slot_of[key.layer_idx][key.expert_idx]

    def carry_all(self, moves: Sequence[tuple[ExpertKey, int]]) -> None:
        """Bring experts to slots that nobody is in by then, one after the other.

        The slots are the GPU's or the host's, or NO_SLOT for the tail. Waits for the device.

        Raises:
            QuantError: If the disk cannot be read.
        """
        if not moves:
            return
        self._settle_hits()
        try:
            for key, slot in moves:
                self._carry(key, slot)
        finally:  # what was interrupted is where it was, and what was done before is done
            self._publish({key.layer_idx for key, _ in moves})

    def _carry(self, key: ExpertKey, slot: int) -> None:
        before = self.slot(key)
        if self.tail is not None and slot == NO_SLOT:
            self.tail.join(key)
        elif self.tail is not None and before == NO_SLOT:
            self.pool.write_in(self._memory(slot), self.tail.bring(key), _copy)
            self.tail.part(key)
        else:
            self._memory(slot).copy_(self._memory(before))
        if self.host.holds(slot):
            self.server.place(*key, self.pool.expert_in(self._memory(slot)))
        else:
            self.server.forget(*key)
        self._slot_of[key.layer_idx][key.expert_idx] = slot

    def _memory(self, slot: int) -> Tensor:
        """Of a slot that kernels can address."""
        hosted = self.host.at(slot)
        return self.pool.data[slot] if hosted is None else hosted

    def share_rows(self, row_shares: Mapping[int, float]) -> None:
        """Change the shares of a prompt's experts that the CPU runs, for sizes known already."""
        self.prompts.share(row_shares)
        for layer_idx in self._slot_of:
            self._publish_prompts(layer_idx)

    def _publish(self, layers: set[int]) -> None:
        """Bring the tables of layers to the device; whatever runs next finds the new places."""
        for layer_idx in layers:
            slots = torch.tensor(self._slot_of[layer_idx])
            self.slot_of[layer_idx].copy_(slots)
            write_table(self.tables[layer_idx], *self._addresses(self.slot_of[layer_idx]))
            self._publish_prompts(layer_idx)

    def _publish_prompts(self, layer_idx: int) -> None:
        slots = self._slot_of[layer_idx]
        pinned = [i for i in range(self._num_routed) if self.host.holds(slots[i])]
        counts = self._counts_before[layer_idx].tolist()
        self.prompts.publish(layer_idx, slots, pinned, counts, self._addresses)

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
        slots = self._slot_of[layer_idx]
        return next((i for i, slot in enumerate(slots) if slot != NO_SLOT), None)

    def close(self) -> None:
        """Stop the CPU's thread."""
        self.server.close()


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
