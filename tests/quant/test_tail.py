"""Experts on disk behind a GPU's: asked for as a GPU asks, run for prompts, moved meanwhile."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.experts.adaptation import AdaptationPolicy
from quant.experts.adapter import ExpertAdapter
from quant.experts.cache import ExpertCache, StoredExpert
from quant.experts.disk import DiskExpertStore
from quant.experts.host_pool import HostPool
from quant.experts.lanes import Lanes
from quant.experts.lending import SlotLender
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT, ExpertPool
from quant.experts.sharing import SharingCosts
from quant.experts.tail import NUM_AHEAD, ExpertTail
from quant.experts.tiered import TieredExpertStore
from quant.formats import FORMATS
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend
from quant.kernels.native.library import find_library
from quant.kernels.native.serve import ExpertServer
from quant.kernels.reference import ReferenceBackend
from quant.tensor import QuantTensor
from tests.quant.test_native_serve import ask

pytestmark = pytest.mark.skipif(
    isinstance(find_library(), str), reason="the native library is not built"
)
HIDDEN, WIDTH, NUM_EXPERTS, LAYERS, NUM_LAYERS = 128, 64, 8, (1, 2), 3
KEYS = [ExpertKey(layer, i) for layer in LAYERS for i in range(NUM_EXPERTS)]
ON_GPU, PINNED, TAIL = KEYS[:1] + KEYS[8:9], KEYS[1:3] + KEYS[9:11], KEYS[3:8] + KEYS[11:]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> QuantizedCopy:
    folder: Path = tmp_path_factory.mktemp("copies") / "copy"
    generator = torch.Generator().manual_seed(0)
    with CopyWriter(folder, {}) as writer:
        for layer, expert in KEYS:
            for name, shape in (("gate_up", (2 * WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH))):
                weight = torch.randn(shape, generator=generator) * 0.1
                writer[f"{layer}.{expert}.{name}"] = FORMATS["nf4"].quantize(weight)
        writer.finish()
    return QuantizedCopy(folder)


def of_copy(copy: QuantizedCopy, key: ExpertKey) -> ExpertWeights:
    return ExpertWeights(*(copy[f"{key[0]}.{key[1]}.{name}"] for name in ("gate_up", "down")))


class AddressBackend(ReferenceBackend):
    """The reference over what a table's addresses lead to, as a GPU's kernels find it."""

    def routed_experts(self, hidden_states, topk_ids, topk_weights, experts):
        like = experts[0]
        found = {i: at(like, experts, i) for i in set(topk_ids.flatten().tolist())}
        table = [found.get(i, like) for i in range(len(experts))]
        return super().routed_experts(hidden_states, topk_ids, topk_weights, table)


def at(like: ExpertWeights, table, expert_idx: int) -> ExpertWeights:
    def matrix(weight: QuantTensor, addresses: torch.Tensor) -> QuantTensor:
        parts = {}
        for (name, part), address in zip(weight.parts.items(), addresses, strict=True):
            data = bytearray(ctypes.string_at(int(address[expert_idx]), part.nbytes))
            parts[name] = torch.frombuffer(data, dtype=part.dtype).view(part.shape)
        return QuantTensor(weight.format, weight.layout, weight.shape, parts)

    return ExpertWeights(matrix(like.gate_up, table.gate_up_at), matrix(like.down, table.down_at))


class Tiers:
    """A tiered store on the CPU: some experts "on the GPU", some pinned, the others in the tail."""

    def __init__(
        self,
        copy: QuantizedCopy,
        num_slots: int,
        path: Path | None = None,
        on_gpu: Sequence[ExpertKey] = ON_GPU,
        pinned: Sequence[ExpertKey] = PINNED,
        num_spare: int = 1,
        lanes: Lanes | None = None,
    ) -> None:
        self.copy = copy
        pool = ExpertPool(of_copy(copy, KEYS[0]), len(on_gpu) + num_spare, CPU)
        host = HostPool(pool, len(pinned), num_spare)
        slots = {layer: [NO_SLOT] * NUM_EXPERTS for layer in LAYERS}
        known: dict[int, list] = {layer: [None] * NUM_EXPERTS for layer in LAYERS}
        for slot, key in enumerate(on_gpu):
            slots[key[0]][key[1]] = slot
            pool.write(slot, of_copy(copy, key), torch.Tensor.copy_)
        for row, key in enumerate(pinned):
            slots[key[0]][key[1]] = host.slot(row)
            pool.write_in(host.data[row], of_copy(copy, key), torch.Tensor.copy_)
            known[key[0]][key[1]] = pool.expert_in(host.data[row])
        stored = {
            key: StoredExpert(*(copy.place(f"{key[0]}.{key[1]}.{n}") for n in ("gate_up", "down")))
            for key in KEYS
        }
        self.cache = ExpertCache(path or copy.path, stored, num_slots)
        disk = DiskExpertStore(self.cache, LAYERS, NUM_EXPERTS, NUM_LAYERS, NativeBackend())
        self.tail = ExpertTail(disk, set(KEYS).difference(on_gpu, pinned))
        self.server = ExpertServer(
            known, NUM_LAYERS, HIDDEN, NativeBackend(), pinned=False, fetch=self.tail.fetch
        )
        self.tail.serve(self.server)
        self.store = TieredExpertStore(
            pool, host, slots, NUM_LAYERS, 0, AddressBackend(), self.server, self.tail,
            (0, 1, 2, 3), costs=SharingCosts(1e10, 1e10), lanes=lanes,
        )  # fmt: skip
        self.number = 0
        self.generator = torch.Generator().manual_seed(1)

    def ask(self, layer: int, ids: list[int]) -> None:
        """A token's request as the GPU makes it; the answer must be that of the experts."""
        vector = torch.randn(HIDDEN, generator=self.generator)
        weights = torch.rand(len(ids), generator=self.generator)
        self.number += 1
        found = ask(self.server, self.number, ids, weights.tolist(), vector, layer)
        self.server.check()
        assert torch.equal(found, self.expected(layer, vector[None], [ids], weights[None])[0])

    def expected(self, layer: int, rows, ids, weights) -> torch.Tensor:
        experts = [of_copy(self.copy, ExpertKey(layer, i)) for i in range(NUM_EXPERTS)]
        return NativeBackend().routed_experts(rows, torch.tensor(ids), weights, experts)

    def far_ids(self, layer: int) -> list[int]:
        """Experts of a layer that the GPU has not."""
        resident = self.store.resident
        return [i for i in range(NUM_EXPERTS) if ExpertKey(layer, i) not in resident]


def used(store: TieredExpertStore) -> dict[str, int]:
    return {use.name: use.experts_run for use in store.uses}


def test_an_expert_is_read_when_it_is_first_asked_for(copy):
    tiers = Tiers(copy, 6)
    tiers.ask(1, [1, 3])  # one pinned, one on disk
    assert used(tiers.store) == {"GPU": 0, "bus": 0, "RAM": 1, "disk": 1}
    tiers.ask(1, [3, 2])
    tiers.ask(1, [3, 4])
    assert used(tiers.store) == {"GPU": 0, "bus": 0, "RAM": 4, "disk": 2}
    disk = tiers.store.uses[-1]
    nbytes = of_copy(copy, TAIL[0]).nbytes
    assert 2 * nbytes <= disk.nbytes_read <= 2 * (nbytes + 2 * 4096)


@pytest.mark.parametrize("num_slots", [3, 4, 7])
def test_answers_are_right_whoever_had_to_leave(copy, num_slots):
    tiers = Tiers(copy, num_slots)
    for step in range(60):
        layer = LAYERS[step % 2]
        far = tiers.far_ids(layer)
        order = torch.randperm(len(far), generator=tiers.generator)[:3].tolist()
        tiers.ask(layer, [far[i] for i in order])
        assert len(tiers.cache) <= num_slots
    assert tiers.tail.num_read > num_slots


def test_what_tokens_use_stays_though_only_misses_are_told(copy):
    """Most requests find all and never come here: their counts must."""
    tiers = Tiers(copy, 4)
    for _ in range(20):
        tiers.ask(1, [3, 4])
    for other in (5, 6, 7, 5, 6, 7):
        tiers.ask(1, [other])
    before = tiers.tail.num_read
    tiers.ask(1, [3, 4])
    assert tiers.tail.num_read == before


def test_results_do_not_depend_on_moves_between_tokens(copy):
    tiers = Tiers(copy, 5)
    store = tiers.store
    swaps = 0
    for step in range(80):
        near = [key for key in KEYS if store.is_in_ram(key)]
        resident = sorted(store.resident)
        promoted = near[int(torch.randint(len(near), (1,), generator=tiers.generator))]
        demoted = resident[step % len(resident)]
        store.swap(promoted, demoted)
        swaps += promoted in TAIL
        assert len(store.resident) == len(ON_GPU)
        assert len(tiers.cache) <= 5
        for layer in LAYERS:
            far = tiers.far_ids(layer)
            tiers.ask(layer, [far[step % len(far)], far[(step + 1) % len(far)]])
            check_prompt(tiers, layer, 3)
    assert swaps > 10


def check_prompt(tiers: Tiers, layer: int, num_tokens: int) -> None:
    rows = torch.randn(num_tokens, HIDDEN, generator=tiers.generator)
    scores = torch.rand(num_tokens, NUM_EXPERTS, generator=tiers.generator)
    weights, ids = scores.topk(3)
    before = tiers.store.counts.clone()
    found = tiers.store.forward(layer, rows, ids, weights)
    expected = tiers.expected(layer, rows, ids.tolist(), weights)
    assert (found - expected).norm() < 0.02 * expected.norm()  # the GPU's part is exact here
    counted = (tiers.store.counts - before)[layer]
    assert torch.equal(counted, torch.bincount(ids.flatten(), minlength=NUM_EXPERTS))


@pytest.mark.parametrize("num_tokens", [1, 2, 40])
def test_a_prompt_is_read_wherever_experts_are(copy, num_tokens):
    tiers = Tiers(copy, 4)
    for layer in LAYERS:
        check_prompt(tiers, layer, num_tokens)
    uses = used(tiers.store)
    assert uses["disk"] > 0
    assert uses["RAM"] + uses["disk"] == tiers.tail.num_prompt_uses


def test_a_long_prompt_does_not_push_out_what_replies_use(copy):
    tiers = Tiers(copy, 8)  # four favourites, and more
    for _ in range(30):
        for layer in LAYERS:
            tiers.ask(layer, [3, 6])
    for _ in range(10):
        for layer in LAYERS:
            check_prompt(tiers, layer, 50)
    before = tiers.tail.num_read
    for layer in LAYERS:
        tiers.ask(layer, [3, 6])
    assert tiers.tail.num_read == before


def test_a_prompt_reads_ahead_only_what_the_gpu_has_not(copy):
    tiers = Tiers(copy, 10)
    check_prompt(tiers, 1, 50)
    ahead = [key for key in KEYS if key.layer_idx == 2 and key in tiers.cache]
    assert ahead == [key for key in TAIL if key.layer_idx == 2][: 10 // 4]


def test_who_is_on_disk_only_cannot_come_to_the_gpu(copy):
    tiers = Tiers(copy, 4)
    with pytest.raises(QuantError, match="not in RAM"):
        tiers.store.swap(TAIL[0], ON_GPU[0])
    assert tiers.store.resident == set(ON_GPU)


def test_an_expert_of_the_tail_that_became_hot_comes_to_the_gpu(copy):
    tiers = Tiers(copy, 4)
    hot, layer = TAIL[0].expert_idx, TAIL[0].layer_idx
    policy = AdaptationPolicy(horizon_tokens=10**9)
    adapter = ExpertAdapter(tiers.store, LAYERS, None, 0.0, policy)
    tiers.store.routing_counts[layer, hot] += 500
    assert adapter.adapt(500) == 0  # it is on disk: nobody waits for a guess
    tiers.ask(layer, [hot])
    tiers.store.routing_counts[layer, hot] += 500
    assert adapter.adapt(1000) == 1
    assert TAIL[0] in tiers.store.resident
    left = (set(ON_GPU) - tiers.store.resident).pop()
    before = tiers.tail.num_read
    tiers.ask(left.layer_idx, [left.expert_idx])  # read meanwhile, in the slot of the other
    assert tiers.tail.num_read == before


def test_moves_before_one_that_fails_are_known_to_the_gpu(copy, monkeypatch):
    tiers = Tiers(copy, 4)
    near = [key for key in TAIL if key.layer_idx == 1][:1]
    tiers.ask(1, [near[0].expert_idx])
    preadv, fails = os.preadv, [True]

    def failing(*args):
        if fails[0]:
            raise OSError(5, "Input/output error")
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", failing)
    lost = next(key for key in TAIL if key.layer_idx == 2)
    tiers.tail._disk.warm([lost])  # on its way, and will not come
    with pytest.raises(QuantError, match="Input/output error"):
        tiers.store.swap_all([(near[0], ON_GPU[0]), (lost, ON_GPU[1])])
    fails[0] = False
    assert tiers.store.resident == {near[0], ON_GPU[1]}
    tiers.ask(2, [lost.expert_idx])
    tiers.store.swap(lost, ON_GPU[1])  # into the slot that ON_GPU[0] has left
    for layer in LAYERS:
        check_prompt(tiers, layer, 40)


def test_who_leaves_the_gpu_is_found_though_no_read_of_it_could_begin(copy, monkeypatch):
    tiers = Tiers(copy, 4)
    near = next(key for key in TAIL if key.layer_idx == 1)
    tiers.ask(1, [near.expert_idx])

    def failing(key):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(tiers.cache, "fetch", failing)
        with pytest.raises(RuntimeError, match="new thread"):
            tiers.store.swap(near, ON_GPU[0])
    assert tiers.tail.keys == {*TAIL, ON_GPU[0]} - {near}
    tiers.ask(ON_GPU[0].layer_idx, [ON_GPU[0].expert_idx])
    for layer in LAYERS:
        check_prompt(tiers, layer, 40)


def test_nobody_is_read_ahead_of_a_token_whom_the_gpu_has(copy):
    tiers = Tiers(copy, 4)
    key = ON_GPU[1]
    tiers.tail._disk._predict = lambda layer, x: torch.eye(NUM_EXPERTS)[key.expert_idx]
    far = next(i for i in range(NUM_EXPERTS) if ExpertKey(key.layer_idx - 1, i) in TAIL)
    arguments = (torch.ones(1, HIDDEN), torch.tensor([[far]]), torch.ones(1, 1))
    tiers.tail.forward(key.layer_idx - 1, *arguments)
    assert key not in tiers.cache


def test_a_prompt_counts_though_it_asks_for_nobody_in_the_last_layer(copy):
    tiers = Tiers(copy, 4)
    used, unused = ([key for key in TAIL if key.layer_idx == layer][:2] for layer in LAYERS)
    tiers.tail._disk.warm([*used, *unused])
    ids = torch.tensor([[key.expert_idx] for key in used] * 8)
    tiers.tail.forward(1, torch.ones(16, HIDDEN), ids, torch.ones(16, 1))
    tiers.ask(2, [TAIL[-1].expert_idx])
    assert TAIL[-1] in tiers.cache
    assert all(key in tiers.cache for key in used)


@pytest.mark.parametrize("num_slots", [3, 4, 12])
def test_who_returns_from_the_disk_is_read_while_others_are_copied(copy, num_slots, monkeypatch):
    tiers = Tiers(copy, num_slots, on_gpu=KEYS[4:], pinned=KEYS[:4])
    store, total = tiers.store, tiers.store.num_usable
    lender = SlotLender(store, 0, lambda: 1 << 30)
    lender.lend(total - 8)
    gone, begun, seen = sorted(tiers.tail.keys), [], []
    write, fetch = store.where.write, tiers.cache.fetch
    with monkeypatch.context() as patch:
        patch.setattr(tiers.cache, "fetch", lambda key: (fetch(key), begun.append(key))[0])
        patch.setattr(store.where, "write", lambda *to: (write(*to), seen.append(len(begun)))[0])
        lender.hits = lambda key: float(key in gone)
        lender.take_back(total)
    assert begun == gone  # each read once, in their order
    ahead = min(NUM_AHEAD, num_slots - 1)
    assert seen == [min(8, 1 + ahead + at) for at in range(8)]
    assert tiers.tail.is_empty
    for layer in LAYERS:
        check_prompt(tiers, layer, 40)


@pytest.mark.parametrize("later", [0, 2])
def test_who_left_for_the_disk_returns_though_others_take_its_slot(copy, later):
    """Whoever was pinned is used more and takes the slots given back: so its own is free."""
    pinned, on_gpu = KEYS[:4], KEYS[4:]
    tiers = Tiers(copy, 4, on_gpu=on_gpu, pinned=pinned)
    store, total = tiers.store, tiers.store.num_usable
    lender = SlotLender(store, (later + 1) * store.pool.slot_nbytes * bool(later), lambda: 1 << 30)
    for key in pinned:
        store.routing_counts[key] = 100
    lender.lend(total - 6)
    assert len(tiers.tail.keys) == 6 - later
    assert lender.take_back(total - 3) == 3
    assert len(tiers.tail.keys) == 6 - later - 3
    assert lender.take_back(total) == 3
    assert tiers.tail.is_empty
    assert not store.has_unaddressable
    assert store.host.nbytes == 5 * store.pool.slot_nbytes
    for layer in LAYERS:
        far = tiers.far_ids(layer)
        for first in range(0, len(far), 3):
            tiers.ask(layer, far[first : first + 3])
        check_prompt(tiers, layer, 40)


def test_a_layer_of_which_the_gpu_has_nothing_is_read_on_the_cpu(copy):
    tiers = Tiers(copy, 8)
    store = tiers.store
    far = [ExpertKey(1, i) for i in range(NUM_EXPERTS) if ExpertKey(1, i) not in TAIL]
    store.carry_all([(key, NO_SLOT) for key in far])
    store.pool.data[:1].fill_(0xFF)  # nothing there is a number
    check_prompt(tiers, 1, 20)


def test_a_file_cut_short_is_an_error_of_that_token_alone(copy, tmp_path):
    path = tmp_path / "weights.bin"
    whole = copy.path.read_bytes()
    path.write_bytes(whole)
    tiers = Tiers(copy, 4, path)
    tiers.ask(1, [3])
    os.truncate(path, 4096)
    vector = torch.ones(HIDDEN)
    assert not ask(tiers.server, 2, [3, 4], [1.0, 1.0], vector).any()  # nothing half computed
    with pytest.raises(QuantError, match=r"cannot read .*weights.bin: it is shorter than it was"):
        tiers.server.check()
    tiers.server.check()  # told once
    with pytest.raises(QuantError, match="shorter"):
        tiers.store.forward(1, torch.ones(2, HIDDEN), torch.tensor([[5], [6]]), torch.ones(2, 1))
    path.write_bytes(whole)
    tiers.number = 2
    tiers.ask(1, [3, 4])
    check_prompt(tiers, 1, 9)


def test_a_file_that_was_deleted_is_still_read(copy, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(copy.path.read_bytes())
    tiers = Tiers(copy, 3, path)
    path.unlink()
    for layer in LAYERS:
        tiers.ask(layer, [3, 4, 5])


def test_a_disk_that_fails_is_told_and_then_asked_again(copy, monkeypatch):
    preadv, fails = os.preadv, [True]

    def failing(*args):
        if fails[0]:
            raise OSError(5, "Input/output error")
        return preadv(*args)

    tiers = Tiers(copy, 4)
    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(QuantError, match="Input/output error; check the disk"):
        tiers.ask(2, [3, 4])
    fails[0] = False
    tiers.ask(2, [3, 4])


def test_a_tail_of_fewer_slots_than_a_choice_is_told(copy):
    tiers = Tiers(copy, 2)
    with pytest.raises(QuantError, match="too small for one layer's choice"):
        tiers.ask(1, [3, 4, 5])
