"""Exchanges beside tokens: whenever copies end, every token finds every expert's own bytes."""

import gc
import weakref
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.copy import QuantizedCopy
from quant.experts.lending import SlotLender
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT
from quant.kernels.base import ExpertWeights
from tests.quant.addressed import SmallTiers, assert_same, expert_at, needs_native, tensor_at
from tests.quant.late import LateDevice, interrupt
from tests.quant.test_tail import KEYS, Tiers, copy, of_copy  # noqa: F401  # a fixture of its own

pytestmark = needs_native
FILES = tuple(
    f"experts/{name}.py"
    for name in ("moves", "whereabouts", "device_tables", "prompt_tables", "tiered")
)
NUM_EXPERTS, LAYERS = 8, (1, 2)


class Scene:
    """A store whose device is late, and tokens that look at every expert when their turn comes.

    Args:
        seed: Of all that is random.
        of_copy: Where those of a tail are read; None for a store without one.
    """

    def __init__(self, seed: int, copied: QuantizedCopy | None = None) -> None:
        self.random = Random(seed)
        self.device = LateDevice(self.random)
        self.num_spare = num_spare = self.random.choice([1, 2, 3])
        self.experts: dict[ExpertKey, ExpertWeights]
        if copied is None:
            small = SmallTiers(num_spare=num_spare, lanes=self.device.lanes)
            self.experts, self.store = small.experts, small.store
        else:
            tiers = Tiers(
                copied, 4, on_gpu=KEYS[:6], pinned=KEYS[6:11], num_spare=num_spare,
                lanes=self.device.lanes,
            )  # fmt: skip
            self.experts = {key: of_copy(copied, key) for key in KEYS}
            self.store = tiers.store
        self.pool = self.store.pool
        self.rows = {key: self._row(expert) for key, expert in self.experts.items()}
        self.lender = SlotLender(self.store, 1 << 30, lambda: 1 << 30)
        self.total = self.store.num_usable
        self.num_tokens = self.num_hits = 0
        self.was_interrupted = False

    def _row(self, expert: ExpertWeights) -> torch.Tensor:
        row = torch.zeros(self.pool.slot_nbytes, dtype=torch.uint8)
        self.pool.write_in(row, expert, torch.Tensor.copy_)
        return row

    def is_there(self, key: ExpertKey, address: int) -> bool:
        return torch.equal(tensor_at(address, self.rows[key]), self.rows[key])

    def token(self) -> None:
        """What a token sees, and the chunks of a prompt: all that the device's tables lead to."""
        store, size = self.store, self.pool.slot_nbytes
        begin = self.pool.data.data_ptr()
        for key in self.experts:
            slot = int(store.slot_of[key])
            if slot == NO_SLOT:
                self.read_from_tail(key)
                continue
            assert self.is_there(key, begin + slot * size), key
            for table in (store.tables[key.layer_idx], store.prompts.tables[key.layer_idx]):
                found = expert_at(
                    self.experts[key], table.gate_up_at, table.down_at, key.expert_idx
                )
                staged = int(table.gate_up_at[0, key.expert_idx] - begin) // size
                if staged not in store.prompts.staging:
                    assert_same(found, self.experts[key])
            if not 0 <= slot < store.num_slots:  # the CPU may be asked, by a token or by a prompt
                assert_same(store.server._kept[tuple(key)], self.experts[key])
        for layer_idx in LAYERS:
            for source in store.prompts.sources[layer_idx].tolist():
                held = [k for k in self.experts if k.layer_idx == layer_idx]
                assert not source or any(self.is_there(key, source) for key in held)
            for mask in store.prompts.masks.values():
                for expert_idx in mask[layer_idx].nonzero().flatten().tolist():
                    assert store.server.knows(layer_idx, expert_idx)
            chosen = ExpertKey(layer_idx, self.random.randrange(NUM_EXPERTS))
            store.routing_counts[chosen] += 1
            self.num_tokens += 1
            self.num_hits += 0 <= int(store.slot_of[chosen]) < store.num_slots

    def read_from_tail(self, key: ExpertKey) -> None:
        assert key in self.store.tail
        if self.random.random() < 0.3:  # a token asks for it, and others may leave for it
            self.store.tail.fetch(*key._replace(expert_idx=[key.expert_idx]))
            assert_same(self.store.server._kept[tuple(key)], self.experts[key])

    def pairs(self, most: int) -> list[tuple[ExpertKey, ExpertKey]]:
        """Pairs of who comes and who leaves; some make no sense when their turn comes."""
        keys = [key for key in self.experts if key.expert_idx < NUM_EXPERTS]
        return [tuple(self.random.sample(keys, 2)) for _ in range(self.random.randint(1, most))]

    def act(self, name: str) -> None:
        store = self.store
        if name == "token":
            self.device.main.call(self.token)
        elif name in ("main", "side"):
            getattr(self.device, name).step()
        elif name == "advance":
            self.device.may_wait = False
            try:
                store.moves.advance()
            finally:
                self.device.may_wait = True
        elif name == "ask":
            store.moves.ask(self.pairs(12))
        elif name == "swap":
            store.moves.finish()
            outside = [key for key in self.experts if store.is_in_ram(key)]
            pairs = zip(outside, sorted(store.resident), strict=False)
            store.swap_all(list(pairs)[: self.random.randint(1, 3)])
        elif name == "lend":
            kept = self.random.randint(self.lender.least_slots, self.total)
            self.lender.lend(kept)
            self.device.main.call(lambda: self.pool.data[kept:].fill_(0xFF) is None)
        elif name == "return":
            usable = self.random.randint(store.num_usable, self.total)
            self.lender.take_back(usable)
        elif name == "hit rate":
            rate = store.hit_rate
            if not self.was_interrupted and self.num_tokens:
                assert rate == pytest.approx(self.num_hits / self.num_tokens)
        elif name.startswith("Ctrl-C"):
            after = self.random.randrange(300)
            acts = {"Ctrl-C": "advance", "Ctrl-C swap": "swap"}
            self.was_interrupted |= interrupt(lambda: self.act(acts[name]), after, *FILES)

    def check(self) -> None:
        """Nobody is lost, and no slot has two owners."""
        store, batch = self.store, self.store.moves._batch
        slots = {key: store.slot(key) for key in self.experts}
        owned = [slot for slot in slots.values() if slot != NO_SLOT] + list(store.prompts.staging)
        for key, slot in slots.items():
            assert slot != NO_SLOT or key in store.tail, key
        moving: set[ExpertKey] = set()
        for one in () if batch is None else batch.exchanges:
            mine = {one.target, one.refuge, one.source, one.left} - {NO_SLOT}
            owned += mine.difference(slots[key] for key in (one.promoted, one.demoted))
            assert moving.isdisjoint((one.promoted, one.demoted))
            moving |= {one.promoted, one.demoted}
        assert len(set(owned)) == len(owned)

    def end(self) -> None:
        self.device.main.call(self.token)
        self.store.moves.finish()
        self.device.main.call(self.token)
        self.device.end()
        self.check()
        where = self.store.where
        assert min(len(where.free_slots()), len(where.free_hosted())) >= self.num_spare
        self.act("hit rate")
        for key in self.experts:
            kept = tuple(key) in self.store.server._kept
            in_tail = self.store.tail is not None and key in self.store.tail
            assert kept == (self.store.is_pinned(key)) or in_tail
        self.store.close()


OFTEN = ["token", "main", "main", "main", "side", "side", "advance", "advance", "ask"]
RARELY = ["swap", "lend", "return", "hit rate"]


def play(scene: Scene, names: list[str]) -> None:
    for name in names:
        scene.act(name)
        scene.check()
    scene.end()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(OFTEN * 3 + RARELY), max_size=80))
def test_every_token_finds_every_expert_whenever_copies_end(seed, names):
    play(Scene(seed), names)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from([*OFTEN, "Ctrl-C", "Ctrl-C", "Ctrl-C swap"]), max_size=60),
)
def test_an_interrupt_between_any_two_lines_loses_nobody(seed, names):
    play(Scene(seed), names)


def test_an_interrupt_at_any_line_of_an_exchange_is_made_good():
    """One after the other: the same two pairs, and tokens between all steps."""
    after, comes_to_it, moved = 0, True, 0
    while comes_to_it:
        scene = Scene(after)
        outside, resident = sorted(scene.store.pinned), sorted(scene.store.resident)
        pairs = list(zip(outside, resident, strict=False))[:2]
        scene.store.moves.ask(pairs)

        def go_on(scene: Scene = scene) -> None:
            for name in ["token", *["main", "main", "side", "side", "advance"] * 3] * 4:
                scene.act(name)

        comes_to_it = scene.was_interrupted = interrupt(go_on, after, *FILES[:1])
        scene.check()
        go_on()
        scene.end()
        moved += len(scene.store.resident.intersection(promoted for promoted, _ in pairs))
        after += 1
    assert after > 60
    assert moved > 1.5 * after  # who was about to begin is left out, and nobody else


def test_a_store_that_nobody_holds_is_gone_at_once():
    """Its memory on the GPU does not wait for the collector."""
    gc.disable()
    try:
        scene = Scene(0)
        scene.store.swap_all([(min(scene.store.pinned), min(scene.store.resident))])
        store = weakref.ref(scene.store)
        del scene
        assert store() is None
    finally:
        gc.enable()


def test_slots_come_back_while_an_exchange_is_under_way():
    scene = Scene(0)
    store, host = scene.store, scene.store.host
    scene.lender.lend(scene.total - 2)
    hot, cold = min(store.pinned), min(store.resident)
    for is_told in (False, True):
        store.moves.ask([(hot, cold)])
        for name in ("advance", *(["side"] * 9 + ["main"] * 9 + ["advance"]) * is_told):
            scene.act(name)
        scene.lender.take_back(scene.total)
        assert {hot} <= store.resident
        assert (host.num_free, len(store.where.free_hosted())) == (0, scene.num_spare)
        scene.lender.lend(scene.total - 2)
        hot, cold = min(store.pinned), min(store.resident)
    scene.end()


@pytest.mark.parametrize("with_interrupts", [False, True])
def test_experts_of_the_disk_come_and_go_beside_tokens(copy, with_interrupts):  # noqa: F811
    names = [*OFTEN, *OFTEN, *(["Ctrl-C", "Ctrl-C swap"] if with_interrupts else RARELY)]
    for seed in range(25):
        random = Random(seed)
        play(Scene(seed, copy), random.choices(names, k=60))
