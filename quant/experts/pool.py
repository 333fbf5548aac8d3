"""Routed and shared experts in one block of GPU memory, found through a table on the device.

A slot holds one expert in one contiguous run of bytes, so moving an expert is one copy and one
write to ``slot_of``; captured graphs, which read the table at every replay, stay valid.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.store import TierUse
from quant.formats.codebook import BLOCK_SIZE, NUM_INTERLEAVED_ROWS
from quant.kernels.base import ExpertWeights, KernelBackend
from quant.kernels.triton.backend import ExpertTable
from quant.tensor import QuantTensor, concat_rows

ALIGNMENT = 128
TAIL_ALIGNMENT = 512  # as an allocation begins
NO_SLOT = -(2**62)  # of an expert that the GPU cannot address
Upload = Callable[[Tensor, Tensor], None]


def _rows(weight: QuantTensor, start: int, stop: int) -> QuantTensor:
    """Some output rows of a weight, as views."""
    unit = NUM_INTERLEAVED_ROWS if weight.layout == "x16" else 1
    parts = {name: part[start // unit : stop // unit] for name, part in weight.parts.items()}
    return QuantTensor(weight.format, weight.layout, (stop - start, weight.shape[1]), parts)


def _inputs(weight: QuantTensor, start: int, stop: int) -> QuantTensor:
    """Some inputs of a weight; scales of whole rows stay as they are."""
    unit = BLOCK_SIZE if weight.layout == "x16" else 1
    parts = {
        name: part if part.dim() == 1 else part[:, start // unit : stop // unit].contiguous()
        for name, part in weight.parts.items()
    }
    return QuantTensor(weight.format, weight.layout, (weight.shape[0], stop - start), parts)


def split_gated(gate_up: QuantTensor, down: QuantTensor, num_experts: int) -> list[ExpertWeights]:
    """An MLP of a joint width as experts whose sum it is.

    Args:
        gate_up: ``[2 · num_experts · I, H]``.
        down: ``[H, num_experts · I]``.
        num_experts: Experts that it holds side by side.
    """
    joint = down.shape[1]
    width = joint // num_experts
    return [
        ExpertWeights(
            concat_rows(
                [
                    _rows(gate_up, first, first + width),
                    _rows(gate_up, joint + first, joint + first + width),
                ]
            ),
            _inputs(down, first, first + width),
        )
        for first in range(0, joint, width)
    ]


class ExpertPool:
    """Slots for experts of one shape and format.

    Args:
        example: An expert of that shape and format, on any device.
        num_slots: Experts that it holds.
        device: Where.
        tail_nbytes: Bytes that something else needs behind the slots.

    Attributes:
        data: uint8 ``[num_slots, slot_nbytes]``.
        block: uint8 ``[bytes]``, the slots and what is behind them; its end is aligned.
        offsets: Where in a slot each part begins, by ``gate_up`` or ``down`` and its name.
    """

    def __init__(
        self, example: ExpertWeights, num_slots: int, device: torch.device, tail_nbytes: int = 0
    ) -> None:
        self._example = example
        self.offsets: dict[tuple[str, str], int] = {}
        end = 0
        for matrix in ("gate_up", "down"):
            for name, part in getattr(example, matrix).parts.items():
                self.offsets[matrix, name] = end
                end += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        nbytes = -(-(num_slots * end + tail_nbytes) // TAIL_ALIGNMENT) * TAIL_ALIGNMENT
        self.block = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.data = self.block[: num_slots * end].view(num_slots, end)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of a slot."""
        return self.data.shape[1]

    def part(self, slot: int, matrix: str, name: str) -> Tensor:
        """One part of the expert in a slot, a view."""
        return self._part(self.data[slot], matrix, name)

    def _part(self, row: Tensor, matrix: str, name: str) -> Tensor:
        like = getattr(self._example, matrix).parts[name]
        offset = self.offsets[matrix, name]
        return row[offset : offset + like.nbytes].view(like.dtype).view(like.shape)

    def expert(self, slot: int) -> ExpertWeights:
        """The expert in a slot, as views."""
        return self.expert_in(self.data[slot])

    def expert_in(self, row: Tensor) -> ExpertWeights:
        """The expert in uint8 ``[slot_nbytes]`` laid out as a slot, as views."""

        def view(matrix: str) -> QuantTensor:
            like: QuantTensor = getattr(self._example, matrix)
            parts = {name: self._part(row, matrix, name) for name in like.parts}
            return QuantTensor(like.format, like.layout, like.shape, parts)

        return ExpertWeights(view("gate_up"), view("down"))

    def addresses(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Where codes and scales of experts in slots begin, int64 ``[2, num_experts]`` each.

        Args:
            slots: int64 ``[num_experts]``, of the pool or as far from it as others of its size.
        """
        begins = slots * self.slot_nbytes + self.data.data_ptr()

        def at(matrix: str) -> Tensor:
            offsets = [v for (name, _), v in self.offsets.items() if name == matrix]
            return torch.stack([begins + offsets[0], begins + offsets[-1]])

        return at("gate_up"), at("down")

    def write(self, slot: int, expert: ExpertWeights, upload: Upload) -> None:
        """Put an expert into a slot.

        Raises:
            QuantError: If it has another shape or format than the pool's.
        """
        self.write_in(self.data[slot], expert, upload)

    def write_in(self, row: Tensor, expert: ExpertWeights, upload: Upload) -> None:
        """Put an expert into uint8 ``[slot_nbytes]``; see `write`.

        Raises:
            QuantError: If it has another shape or format than the pool's.
        """
        for matrix, weight in (("gate_up", expert.gate_up), ("down", expert.down)):
            like: QuantTensor = getattr(self._example, matrix)
            if (weight.format, weight.layout, weight.shape) != (
                like.format,
                like.layout,
                like.shape,
            ):
                raise QuantError(
                    f"an expert is {weight.format} {weight.shape}, the pool holds {like.format} "
                    f"{like.shape}; delete the quantized copy"
                )
            for name, part in weight.parts.items():
                upload(self._part(row, matrix, name), part)


class PooledExpertStore:
    """All experts of the model in a pool; shared experts ride along as the last of each layer.

    Args:
        pool: Filled by the caller.
        slots: By layer index the slots of its routed and then its shared experts.
        num_layers: Layers of the model, those without experts included.
        num_shared: Shared experts of a layer.
        backend: Runs them.

    Attributes:
        slot_of: int64 ``[num_layers, num_experts + num_shared]`` on the device, or NO_SLOT.
        tables: By layer index its experts with their addresses.
        routing_counts: int64, the same shape and place; kernels count there.
    """

    def __init__(
        self,
        pool: ExpertPool,
        slots: Mapping[int, Sequence[int]],
        num_layers: int,
        num_shared: int,
        backend: KernelBackend,
    ) -> None:
        self.pool = pool
        self.has_shared = num_shared > 0
        self._backend = backend
        self._num_shared = num_shared
        self._slots = slots
        width = len(next(iter(slots.values())))
        table = torch.full((num_layers, width), NO_SLOT, dtype=torch.int64)
        for layer_idx, layer_slots in slots.items():
            table[layer_idx] = torch.tensor(layer_slots)
        device = pool.data.device
        self.slot_of = table.to(device)
        self.routing_counts = torch.zeros(table.shape, dtype=torch.int64, device=device)
        self.tables = {layer_idx: self._table(layer_idx) for layer_idx in slots}
        self._shared_ids = torch.arange(width - num_shared, width, device=device)

    def _table(self, layer_idx: int) -> ExpertTable:
        experts = [self.pool.expert(0)] * self.slot_of.shape[1]  # only their shape is looked at
        gate_up_at, down_at = self.pool.addresses(self.slot_of[layer_idx])
        return ExpertTable(experts, gate_up_at, down_at)

    @property
    def counts(self) -> Tensor:
        """See `ExpertStore.counts`. Waits for the device."""
        return self.routing_counts[:, : self.routing_counts.shape[1] - self._num_shared].cpu()

    @property
    def nbytes(self) -> int:
        """See `ExpertStore.nbytes`; shared experts are among them."""
        return self.pool.data.nbytes

    @property
    def hit_rate(self) -> float:
        """All of them: this store has no other place."""
        return 1.0

    @property
    def uses(self) -> tuple[TierUse, ...]:
        """See `ExpertStore.uses`; a chunk's tokens count as if each had read its experts alone."""
        run = int(self.counts.sum())
        return (TierUse("GPU", run, run * self.pool.slot_nbytes),)

    @property
    def kernels(self) -> str:
        """See `ExpertStore.kernels`."""
        return self._backend.name

    def forward(
        self, layer_idx: int, hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Tensor:
        """See `ExpertStore.forward`; the shared experts' results are in the sum."""
        chosen = topk_ids.flatten()
        self.routing_counts[layer_idx].scatter_add_(0, chosen, torch.ones_like(chosen))
        if self.has_shared:
            shared = self._shared_ids.expand(len(topk_ids), -1)
            topk_ids = torch.cat((topk_ids, shared), 1)
            topk_weights = torch.cat((topk_weights, torch.ones_like(shared).float()), 1)
        return self._backend.routed_experts(
            hidden_states, topk_ids, topk_weights, self.tables[layer_idx]
        )
