"""A tiered store on the CPU: its table's addresses are read as a GPU's kernels read them."""

import ctypes
from functools import cache

import pytest
import torch

from quant.experts.host_pool import HostPool
from quant.experts.lanes import Lanes
from quant.experts.placement import ExpertKey
from quant.experts.pool import ExpertPool
from quant.experts.sharing import SharingCosts
from quant.experts.tiered import TieredExpertStore
from quant.formats import FORMATS
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend
from quant.kernels.native.library import find_library
from quant.kernels.native.serve import ExpertServer
from quant.kernels.reference import ReferenceBackend
from quant.tensor import QuantTensor

needs_native = pytest.mark.skipif(
    isinstance(find_library(), str), reason="the native library is not built"
)
CPU = torch.device("cpu")
HIDDEN, WIDTH, NUM_EXPERTS, LAYERS = 128, 64, 8, (1, 2)
NUM_STAGED, NUM_SHARED = 2, 1
NUM_FREE = 1 + 2 * NUM_STAGED  # by default


def tensor_at(address: int, like: torch.Tensor) -> torch.Tensor:
    """A copy of what lies at an address."""
    data = bytearray(ctypes.string_at(address, like.nbytes))
    return torch.frombuffer(data, dtype=like.dtype).view(like.shape)


def expert_at(like: ExpertWeights, gate_up_at: torch.Tensor, down_at: torch.Tensor, expert_idx):
    """The expert that a table's addresses lead to."""

    def matrix(weight: QuantTensor, at: torch.Tensor) -> QuantTensor:
        names = list(weight.parts)
        addresses = {names[0]: int(at[0, expert_idx]), names[-1]: int(at[1, expert_idx])}
        parts = {name: tensor_at(addresses[name], weight.parts[name]) for name in names}
        return QuantTensor(weight.format, weight.layout, weight.shape, parts)

    return ExpertWeights(matrix(like.gate_up, gate_up_at), matrix(like.down, down_at))


class AddressBackend(ReferenceBackend):
    """The reference, over whatever a table's addresses lead to."""

    def routed_experts(self, hidden_states, topk_ids, topk_weights, experts):
        if hasattr(experts, "gate_up_at"):
            like, used = experts[0], set(topk_ids.flatten().tolist())
            experts = [
                expert_at(like, experts.gate_up_at, experts.down_at, i) if i in used else like
                for i in range(len(experts))
            ]
        return super().routed_experts(hidden_states, topk_ids, topk_weights, experts)


@cache
def random_experts(count: int) -> list[ExpertWeights]:
    """So many of one shape, always the same."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> QuantTensor:
        return FORMATS["nf4"].quantize(torch.randn(rows, columns, generator=generator) * 0.1)

    return [ExpertWeights(matrix(2 * WIDTH, HIDDEN), matrix(HIDDEN, WIDTH)) for _ in range(count)]


class SmallTiers:
    """Two layers of eight routed experts and a shared one, in a pool and in the host's memory.

    Args:
        num_hosted: Routed experts that begin outside the pool.
        tail_nbytes: Behind the pool's slots.
        num_spare: Slots for exchanges, of the pool and of the host each.
        lanes: Of the store.
    """

    def __init__(
        self,
        num_hosted: int = 4,
        tail_nbytes: int = 0,
        num_spare: int = 1,
        lanes: Lanes | None = None,
    ) -> None:
        num_free = num_spare + 2 * NUM_STAGED
        keys = [ExpertKey(i, j) for i in LAYERS for j in range(NUM_EXPERTS + NUM_SHARED)]
        self.experts = dict(zip(keys, random_experts(len(keys)), strict=True))
        shared = [key for key in keys if key.expert_idx == NUM_EXPERTS]
        routed = [key for key in keys if key not in shared]
        hosted, resident = routed[:num_hosted], routed[num_hosted:]
        num_slots = len(shared) + num_free + len(resident)
        self.pool = ExpertPool(self.experts[keys[0]], num_slots, CPU, tail_nbytes)
        host = HostPool(self.pool, num_hosted, num_spare)
        slots = {i: [0] * (NUM_EXPERTS + NUM_SHARED) for i in LAYERS}
        places = [*shared, *[None] * num_free, *resident]
        for slot, key in enumerate(places):
            if key is not None:
                slots[key.layer_idx][key.expert_idx] = slot
                self.pool.write(slot, self.experts[key], torch.Tensor.copy_)
        on_cpu = {i: [None] * NUM_EXPERTS for i in LAYERS}
        for row, key in enumerate(hosted):
            slots[key.layer_idx][key.expert_idx] = host.slot(row)
            self.pool.write_in(host.data[row], self.experts[key], torch.Tensor.copy_)
            on_cpu[key.layer_idx][key.expert_idx] = self.pool.expert_in(host.data[row])
        native = NativeBackend()
        server = ExpertServer(on_cpu, 3, HIDDEN, native, pinned=False)
        self.store = TieredExpertStore(
            self.pool, host, slots, 3, NUM_SHARED, AddressBackend(), server, None, (0, 1, 1),
            {32: 0.5, 128: 0.5}, NUM_STAGED, costs=SharingCosts(1e10, 1e10), lanes=lanes,
        )  # fmt: skip

    def check(self) -> None:
        """Every way to an expert leads to its own bytes, and no two share a place."""
        store = self.store
        for key, expert in self.experts.items():
            table = store.tables[key.layer_idx]
            found = expert_at(expert, table.gate_up_at, table.down_at, key.expert_idx)
            assert_same(found, expert)
            if key in store.pinned:
                assert_same(store.server._kept[tuple(key)], expert)
            else:
                assert tuple(key) not in store.server._kept
        slots = [store.slot(key) for key in self.experts]
        spare = store.where.free_slots()
        assert len(spare) >= store.where.num_spare  # more where who left was interrupted
        assert len({*slots, *spare, *store.prompts.staging}) == (
            len(slots) + len(spare) + 2 * NUM_STAGED
        )
        on_gpu = [slot for slot in slots if not store.host.holds(slot)]
        assert all(0 <= slot < store.num_usable for slot in [*on_gpu, *spare])
        assert store.slot_of[1:].tolist() == [
            [store.slot(ExpertKey(i, j)) for j in range(NUM_EXPERTS + NUM_SHARED)] for i in LAYERS
        ]


def assert_same(found: ExpertWeights, expected: ExpertWeights) -> None:
    """Two experts have the same bytes."""
    for matrix in ("gate_up", "down"):
        one, other = getattr(found, matrix), getattr(expected, matrix)
        assert all(torch.equal(one.parts[name], other.parts[name]) for name in other.parts)
