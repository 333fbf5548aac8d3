"""Experts on disk with a cache in RAM: the results of resident ones, whoever is in the cache."""

import os
import re
import threading
import time
from concurrent.futures import wait as futures_wait
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.experts.cache import ExpertCache, StoredExpert
from quant.experts.disk import DiskExpertStore
from quant.experts.placement import ExpertKey
from quant.experts.store import ResidentExpertStore, TierUse
from quant.formats import FORMATS
from quant.kernels import ExpertWeights, backend_for

HIDDEN, WIDTH, NUM_EXPERTS, LAYERS, NUM_LAYERS = 128, 64, 8, (1, 2, 4), 5
CPU = torch.device("cpu")


def backend(name: str):
    try:
        return backend_for("nf4", CPU, name)
    except QuantError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> QuantizedCopy:
    folder: Path = tmp_path_factory.mktemp("copies") / "copy"
    generator = torch.Generator().manual_seed(0)
    nf4 = FORMATS["nf4"]
    with CopyWriter(folder, {}) as writer:
        writer["head"] = torch.ones(77)
        for layer in LAYERS:
            for expert in range(NUM_EXPERTS):
                at = f"{layer}.{expert}."
                writer[at + "gate_up"] = nf4.random((2 * WIDTH, HIDDEN), generator)
                writer[at + "down"] = nf4.random((HIDDEN, WIDTH), generator)
        writer.finish()
    return QuantizedCopy(folder)


def stored(copy: QuantizedCopy) -> dict[ExpertKey, StoredExpert]:
    return {
        ExpertKey(layer, expert): StoredExpert(
            copy.place(f"{layer}.{expert}.gate_up"), copy.place(f"{layer}.{expert}.down")
        )
        for layer in LAYERS
        for expert in range(NUM_EXPERTS)
    }


def disk_store(copy: QuantizedCopy, num_slots: int, name: str = "reference", **options):
    cache = ExpertCache(copy.path, stored(copy), num_slots)
    return DiskExpertStore(cache, LAYERS, NUM_EXPERTS, NUM_LAYERS, backend(name), **options)


def resident_store(copy: QuantizedCopy, name: str) -> ResidentExpertStore:
    experts = {
        layer: [
            ExpertWeights(copy[f"{layer}.{e}.gate_up"], copy[f"{layer}.{e}.down"])
            for e in range(NUM_EXPERTS)
        ]
        for layer in LAYERS
    }
    return ResidentExpertStore(experts, NUM_LAYERS, backend(name))


def routing(num_tokens: int, generator: torch.Generator):
    scores = torch.rand(num_tokens, NUM_EXPERTS, generator=generator)
    weights, ids = scores.topk(3)
    return torch.randn(num_tokens, HIDDEN, generator=generator), ids, weights


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("num_slots", [3, 7, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_those_of_resident_experts_whoever_is_in_ram(copy, name, num_slots, dtype):
    store, resident = disk_store(copy, num_slots, name), resident_store(copy, name)
    generator = torch.Generator().manual_seed(1)
    for num_tokens in (1, 1, 20, 1, 1, 2, 1, 1):
        for layer in LAYERS:
            hidden, ids, weights = routing(num_tokens, generator)
            arguments = (layer, hidden.to(dtype), ids, weights)
            found, expected = store.forward(*arguments), resident.forward(*arguments)
            assert found.dtype == dtype
            exact = num_tokens == 1 or name == "native"
            tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(found, expected, **tolerance)
    assert torch.equal(store.counts, resident.counts)


def test_what_is_in_ram_is_not_read_again(copy):
    store = disk_store(copy, 6)
    hidden, weights = torch.ones(1, HIDDEN), torch.ones(1, 2)
    for chosen in ([[0, 1]], [[1, 2]], [[0, 2]]):
        store.forward(1, hidden, torch.tensor(chosen), weights)
    ram, disk = store.uses
    assert (ram.name, ram.experts_run) == ("RAM", 3)
    assert (disk.name, disk.experts_run) == ("disk", 3)
    nbytes = stored(copy)[ExpertKey(1, 0)].nbytes
    assert 3 * nbytes <= disk.nbytes_read <= 3 * (nbytes + 2 * 4096)
    assert store.hit_rate == 0.5


@pytest.mark.parametrize("by_use", [True, False])
def test_a_step_teaches_the_cache_what_layers_one_by_one_do(copy, by_use):
    """A step counts what it has run when it stops, which is where an expert was never taken."""
    stores = [disk_store(copy, 9, by_use=by_use) for _ in range(2)]
    taken, generator = set(), torch.Generator().manual_seed(1)
    stores[1].on_take = lambda key, weights: taken.add(key)
    stores[1].on_leave = taken.discard
    num_stops = 0
    for _ in range(60):
        chosen = torch.zeros(NUM_LAYERS, NUM_EXPERTS, dtype=torch.int64)
        for layer in LAYERS:
            hidden, ids, weights = routing(1, generator)
            ids = torch.tensor([sorted(set((ids[0] ** 2 // 8).tolist()))])  # some are used more
            stores[0].forward(layer, hidden, ids, weights[:, : ids.shape[1]])
            chosen[layer, ids[0]] = 1
            if not all(ExpertKey(layer, e) in taken for e in ids[0].tolist()):
                stores[1].count(chosen)
                chosen.zero_()
                stores[1].bring(layer, ids[0].tolist())
                num_stops += 1
        stores[1].count(chosen)
        stores[1].end_token()
    assert torch.equal(stores[0].counts, stores[1].counts)
    assert stores[0].uses == stores[1].uses
    assert 20 < num_stops < 60 * len(LAYERS)
    for key in (ExpertKey(layer, e) for layer in LAYERS for e in range(NUM_EXPERTS)):
        assert (key in stores[0]) == (key in stores[1])
        if by_use:
            assert stores[0]._heat.of(key) == pytest.approx(stores[1]._heat.of(key))


def test_warm_experts_are_read_before_they_are_chosen(copy):
    store = disk_store(copy, 4)
    store.warm([ExpertKey(2, expert) for expert in range(8)])  # four of them find room
    store.forward(2, torch.ones(1, HIDDEN), torch.tensor([[0, 3]]), torch.ones(1, 2))
    assert store.uses[1].experts_run == 0


def test_a_cache_smaller_than_a_choice_is_refused(copy):
    store = disk_store(copy, 2)
    with pytest.raises(QuantError, match="too small"):
        store.forward(1, torch.ones(1, HIDDEN), torch.tensor([[0, 1, 2]]), torch.ones(1, 3))
    with pytest.raises(QuantError, match="0 slots"):
        ExpertCache(copy.path, stored(copy), 0)


def test_a_file_cut_short_is_an_error_and_whole_again_it_works(copy, tmp_path):
    path = tmp_path / "weights.bin"
    whole = copy.path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    cache = ExpertCache(path, stored(copy), 4)
    store = DiskExpertStore(cache, LAYERS, NUM_EXPERTS, NUM_LAYERS, backend("reference"))
    arguments = (4, torch.ones(1, HIDDEN), torch.tensor([[6, 7]]), torch.ones(1, 2))
    with pytest.raises(QuantError, match=r"cannot read .*weights.bin: it is shorter than it was"):
        store.forward(*arguments)
    with open(path, "r+b") as file:
        file.write(whole)
    expected = resident_store(copy, "reference").forward(*arguments)
    torch.testing.assert_close(store.forward(*arguments), expected, rtol=0, atol=0)


def test_reading_goes_on_without_direct_access(copy, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    store, resident = disk_store(copy, 3), resident_store(copy, "reference")
    arguments = (1, torch.ones(1, HIDDEN), torch.tensor([[2, 5]]), torch.ones(1, 2))
    assert torch.equal(store.forward(*arguments), resident.forward(*arguments))
    assert store.uses[0] == TierUse("RAM", 0, 0)


def test_what_the_next_layer_will_choose_is_read_while_this_one_runs(copy):
    asked = []

    def predict(layer_idx, hidden):
        asked.append(layer_idx)
        return torch.eye(NUM_EXPERTS)[5] + torch.eye(NUM_EXPERTS)[6] / 2

    store, resident = disk_store(copy, 9, predict=predict), resident_store(copy, "reference")
    hidden, weights = torch.ones(1, HIDDEN), torch.ones(1, 2)
    for layer, chosen in ((1, [0, 1]), (2, [5, 2]), (4, [5, 3]), (1, [0, 1]), (2, [3, 4])):
        arguments = (layer, hidden, torch.tensor([chosen]), weights)
        assert torch.equal(store.forward(*arguments), resident.forward(*arguments))
    assert asked == [2, 4, 2, 4]  # nothing follows the last layer
    # Layer 2's fifth and layer 4's were guessed rightly; the guess of 6 in layer 2, where 5 had
    # come to stay, was wrong, and so was the last one.
    assert (store.num_ahead, store.num_ahead_used) == (4, 2)
    ram, disk = store.uses
    assert ram.experts_run == 2  # layer 1's two, the second time
    assert disk.experts_run == 8  # those read on a right guess come from the disk too


def test_guesses_do_not_push_out_what_is_being_used(copy):
    def predict(layer_idx, hidden):
        return torch.arange(NUM_EXPERTS).float()

    store, resident = disk_store(copy, 5, predict=predict), resident_store(copy, "reference")
    generator = torch.Generator().manual_seed(3)
    for _ in range(12):
        for layer in LAYERS:
            hidden, ids, weights = routing(1, generator)
            arguments = (layer, hidden, ids[:, :2], weights[:, :2])
            assert torch.equal(store.forward(*arguments), resident.forward(*arguments))
    assert store.num_ahead > 0


def codes_of(weights: ExpertWeights) -> torch.Tensor:
    return weights.gate_up.parts["codes"]


def test_a_slot_is_not_given_away_while_it_is_being_filled(copy, monkeypatch):
    preadv, slow = os.preadv, threading.Event()

    def dawdling(handle, buffers, offset):
        if not slow.is_set():
            slow.set()
            time.sleep(0.1)
        return preadv(handle, buffers, offset)

    cache = ExpertCache(copy.path, stored(copy), 1)
    monkeypatch.setattr(os, "preadv", dawdling)
    first, second = ExpertKey(1, 0), ExpertKey(2, 3)
    cache.fetch(first)
    slow.wait(5)
    cache.drop(first)
    cache.fetch(second)
    found = cache.take(second)
    time.sleep(0.15)  # a reader that was still on its way would write by now
    assert torch.equal(codes_of(found), copy["2.3.gate_up"].parts["codes"])


def test_reads_that_come_in_small_pieces_are_put_together(copy, monkeypatch):
    preadv = os.preadv
    cache = ExpertCache(copy.path, stored(copy), 2)
    monkeypatch.setattr(
        os, "preadv", lambda handle, buffers, offset: preadv(handle, [buffers[0][:4096]], offset)
    )
    key = ExpertKey(4, 7)
    cache.fetch(key)
    assert torch.equal(codes_of(cache.take(key)), copy["4.7.gate_up"].parts["codes"])
    assert torch.equal(cache.take(key).down.parts["absmax"], copy["4.7.down"].parts["absmax"])


@pytest.mark.parametrize("by_use", [True, False])
def test_a_long_prompt_does_not_push_out_what_replies_use(copy, by_use):
    store = disk_store(copy, 14, by_use=by_use)  # six favourites, and a layer's eight experts
    favourites = (torch.ones(1, HIDDEN), torch.tensor([[1, 6]]), torch.ones(1, 2))
    for _ in range(30):
        for layer in LAYERS:
            store.forward(layer, *favourites)
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        for layer in LAYERS:
            store.forward(layer, *routing(64, generator))
    before = store.uses[1].experts_run
    for layer in LAYERS:
        store.forward(layer, *favourites)
    read_again = store.uses[1].experts_run - before
    assert (read_again == 0) == by_use


def test_the_disk_is_waited_for_only_when_nothing_else_is_left(copy, monkeypatch):
    store = disk_store(copy, 6)
    store.warm([ExpertKey(1, expert) for expert in (4, 5, 6, 7)])
    for expert in (4, 5, 6, 7):
        store.take(ExpertKey(1, expert))
    preadv, routed = os.preadv, store._backend.routed_experts
    ran, waited = threading.Event(), []

    def slow(*args):
        waited.append(ran.wait(10))
        return preadv(*args)

    def run(*args):
        ran.set()
        return routed(*args)

    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(store._backend, "routed_experts", run)
    hidden, ids, weights = routing(64, torch.Generator().manual_seed(5))  # uses all eight
    store.forward(1, hidden, ids, weights)
    assert len(waited) >= 4
    assert all(waited)  # four experts ran while none of the others could come


@pytest.mark.parametrize(
    ("num_tokens", "stage", "coming"), [(64, True, 4), (64, False, 0), (2, True, 0)]
)
def test_a_long_prompt_has_the_next_layers_experts_read_ahead(copy, num_tokens, stage, coming):
    store, resident = disk_store(copy, 16, stage=stage), resident_store(copy, "reference")
    generator = torch.Generator().manual_seed(6)
    store.warm([ExpertKey(1, expert) for expert in range(8)])
    arguments = (1, *routing(num_tokens, generator))
    torch.testing.assert_close(store.forward(*arguments), resident.forward(*arguments))
    assert [key for key in stored(copy) if key in store and key.layer_idx != 1] == [
        ExpertKey(2, expert) for expert in range(coming)
    ]
    arguments = (2, *routing(64, generator))
    torch.testing.assert_close(store.forward(*arguments), resident.forward(*arguments))
    assert store.num_ahead_used == coming
    assert store.uses[1].experts_run == 8  # what came ahead of time came from the disk too


def test_nobody_who_is_used_more_leaves_for_a_guess(copy):
    store = disk_store(copy, 12)
    store.warm([ExpertKey(1, e) for e in range(8)] + [ExpertKey(4, e) for e in range(4)])
    favourites = (torch.ones(1, HIDDEN), torch.arange(4)[None], torch.ones(1, 4))
    for _ in range(3):
        store.forward(4, *favourites)
    store.forward(1, *routing(64, torch.Generator().manual_seed(8)))  # all eight, in one go
    assert all(ExpertKey(4, e) in store for e in range(4))


def test_a_disk_that_fails_ahead_of_time_is_told_in_the_layer_that_asks(copy, monkeypatch):
    store, resident = disk_store(copy, 16), resident_store(copy, "reference")
    preadv, fails = os.preadv, []
    store.warm([ExpertKey(1, expert) for expert in range(8)])
    generator = torch.Generator().manual_seed(7)
    for expert in range(8):
        store.take(ExpertKey(1, expert))

    def failing(*args):
        if not fails:
            raise OSError(5, "Input/output error")
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", failing)
    arguments = (1, *routing(64, generator))
    torch.testing.assert_close(store.forward(*arguments), resident.forward(*arguments))
    arguments = (2, *routing(64, generator))
    with pytest.raises(QuantError, match="Input/output error; check the disk"):
        store.forward(*arguments)
    fails.append(False)
    torch.testing.assert_close(store.forward(*arguments), resident.forward(*arguments))


def test_a_slot_is_not_lost_where_no_thread_can_be_had(copy, monkeypatch):
    monkeypatch.setattr("quant.experts.cache.PIECE_NBYTES", 4096)
    cache = ExpertCache(copy.path, stored(copy), 2)
    submit, calls = cache._readers.submit, []

    def sometimes(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        return submit(*args)

    monkeypatch.setattr(cache._readers, "submit", sometimes)
    with pytest.raises(QuantError, match="no thread"):
        cache.fetch(ExpertKey(1, 0))
    assert ExpertKey(1, 0) not in cache
    for expert in (1, 2):
        cache.fetch(ExpertKey(1, expert))
        codes = copy[f"1.{expert}.gate_up"].parts["codes"]
        assert torch.equal(codes_of(cache.take(ExpertKey(1, expert))), codes)
    with pytest.raises(QuantError, match="all 2 slots"):
        cache.fetch(ExpertKey(1, 3))


def test_a_read_that_was_queued_in_vain_does_not_write_into_the_next_experts_slot(
    copy, monkeypatch
):
    monkeypatch.setattr("quant.experts.cache.PIECE_NBYTES", 4096)
    cache = ExpertCache(copy.path, stored(copy), 1, num_readers=2)
    first = stored(copy)[ExpertKey(1, 0)].span[0] // 4096 * 4096
    preadv, start, started = os.preadv, threading.Thread.start, []
    is_waited_for, is_taken = threading.Event(), threading.Event()

    def reading(handle, buffers, offset):
        if offset == first:
            is_waited_for.wait(10)
        if offset == first + 4096:
            is_taken.wait(10)
        return preadv(handle, buffers, offset)

    def starting(thread):
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    def waiting(reads):
        is_waited_for.set()
        return futures_wait(reads)

    monkeypatch.setattr(os, "preadv", reading)
    monkeypatch.setattr(threading.Thread, "start", starting)
    monkeypatch.setattr("quant.experts.cache.wait", waiting)
    with pytest.raises(QuantError, match="no thread"):
        cache.fetch(ExpertKey(1, 0))
    cache.fetch(ExpertKey(1, 5))
    found = codes_of(cache.take(ExpertKey(1, 5)))
    is_taken.set()
    cache._readers.shutdown()
    assert torch.equal(found, copy["1.5.gate_up"].parts["codes"])


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="there are no large pages"
)
def test_slots_lie_in_large_pages_that_take_place_when_they_are_written_to(copy):
    cache = ExpertCache(copy.path, stored(copy), 24)
    key = ExpertKey(1, 0)
    cache.fetch(key)
    address = codes_of(cache.take(key)).data_ptr()
    maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
    for before, flags in pairwise(maps):
        span = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", before, re.MULTILINE)[-1]
        if int(span[0], 16) <= address < int(span[1], 16):
            assert "hg" in flags.split("\n")[0].split()
            return
    raise AssertionError("the expert is nowhere")


def test_an_interrupt_while_a_slot_is_given_up_loses_nothing(copy, monkeypatch):
    store, resident = disk_store(copy, 3), resident_store(copy, "reference")
    hidden, weights = torch.ones(1, HIDDEN), torch.ones(1, 3)
    store.forward(1, hidden, torch.tensor([[0, 1, 2]]), weights)

    def interrupted(reads):
        raise KeyboardInterrupt

    arguments = (2, hidden, torch.tensor([[3, 4, 5]]), weights)
    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr("quant.experts.cache.wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.forward(*arguments)
    assert torch.equal(store.forward(*arguments), resident.forward(*arguments))
