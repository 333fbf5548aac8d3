"""Experts of a model into their places: the GPU's, pinned memory, and a copy behind a cache."""

from pathlib import Path

import pytest
import torch

from erniechat.model.conversion import Formats
from erniechat.model.disk_assembly import Residency
from erniechat.model.expert_assembly import ExpertPlaces, pooled_experts, slots_for
from erniechat.model.expert_slots import expert_of
from erniechat.model.families import FAMILIES
from erniechat.model.machine_costs import BUCKETS
from erniechat.model.synthetic import random_weights
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.experts.lending import SlotLender
from quant.experts.moves import NUM_AT_ONCE
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT
from quant.experts.tiered import TieredExpertStore
from quant.figures import KeptFigures
from quant.formats import FORMATS
from quant.kernels import backend_for
from quant.kernels.native import NativeBackend
from quant.kernels.native.library import find_library
from quant.upload import BackgroundUpload
from tests.quant.test_native_serve import ask

pytestmark = pytest.mark.skipif(
    isinstance(find_library(), str), reason="the native library is not built"
)
CPU = torch.device("cpu")
FAMILY = FAMILIES["ernie4_5_moe"]
CONFIG = FAMILY.parse_config(
    {
        "model_type": "ernie4_5_moe",
        "vocab_size": 64,
        "hidden_size": 128,
        "head_dim": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_intermediate_size": 64,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
    }
)
KEYS = [ExpertKey(i, j) for i in CONFIG.moe_layers for j in range(8)]
FIGURES = {
    "ram": 20e9,
    "bus": 10e9,
    **{f"expert nf4 128x128, {size // 4} rows": size * 1e-6 for size in BUCKETS},
}


@pytest.fixture(scope="module")
def formats() -> Formats:
    native = NativeBackend()
    return Formats(FORMATS["nf4"], FORMATS["int8"], native, backend_for("int8", CPU, "native"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory, formats) -> QuantizedCopy:
    folder: Path = tmp_path_factory.mktemp("copies") / "copy"
    weights = random_weights(CONFIG, FAMILY, formats)
    with CopyWriter(folder, {}) as writer:
        for name in weights:
            writer[name] = weights[name]
        writer.finish()
    return QuantizedCopy(folder)


def known() -> KeptFigures:
    figures = KeptFigures(None, "")
    figures.put(FIGURES)
    return figures


def build(copy, formats, places: ExpertPlaces, residency: Residency | None = None):
    slots = slots_for(CONFIG, copy, CPU, 1, places, torch.bfloat16)
    upload = BackgroundUpload(CPU, lambda put: slots.fill(copy, put), slots.nbytes)
    return pooled_experts(
        CONFIG, copy, formats, slots, upload, places, torch.bfloat16, residency
    ).store


def test_each_expert_is_where_it_should_be(copy, formats):
    ram, disk = KEYS[2:6], KEYS[6:]
    residency = Residency(3, disk[:2])
    store = build(copy, formats, ExpertPlaces(ram, disk, figures=known()), residency)
    assert isinstance(store, TieredExpertStore)
    assert store.resident == set(KEYS[:2])
    assert [key for key in KEYS if store.is_pinned(key)] == ram
    assert [key for key in KEYS if store.is_in_ram(key)] == ram + disk[:2]
    assert store.has_unaddressable
    for number, (layer, ids) in enumerate([(1, [2, 5]), (1, [6, 7]), (2, [0, 4]), (2, [3, 1])], 1):
        vector = torch.randn(CONFIG.hidden_size)
        experts = [expert_of(copy, layer, i) for i in range(8)]
        found = ask(store.server, number, ids, [0.5, 0.5], vector, layer)
        expected = NativeBackend().routed_experts(
            vector[None], torch.tensor([ids]), torch.full((1, 2), 0.5), experts
        )
        assert torch.equal(found, expected[0])
    assert {use.name: use.experts_run for use in store.uses} == {
        "GPU": 0, "bus": 0, "RAM": 4, "disk": 4,
    }  # fmt: skip
    store.close()


def test_experts_that_leave_for_a_cache_join_those_on_disk_and_return(copy, formats):
    ram, disk = KEYS[2:4], KEYS[12:]
    places = ExpertPlaces(ram, disk, figures=known(), cache_tokens=4)
    store = build(copy, formats, places, Residency(3, disk[:2]))
    before, total = store.resident, store.num_usable
    lender = SlotLender(store, 0, lambda: 1 << 40)  # there is no RAM for any of them

    def check() -> None:
        store.pool.data[store.num_usable :].fill_(0xFF)
        for key in store.resident:
            found, expected = store.pool.expert(store.slot(key)), expert_of(copy, *key)
            for one, other in ((found.gate_up, expected.gate_up), (found.down, expected.down)):
                assert all(torch.equal(one.parts[name], other.parts[name]) for name in other.parts)

    assert lender.lend(total - 6) == 6
    gone = before - store.resident
    assert len(gone) == 6
    assert all(store.slot(key) == NO_SLOT and key in store.tail for key in gone)
    assert {key for key in KEYS if store.is_pinned(key)} == set(ram)
    check()
    for number, key in enumerate(sorted(gone), 1):
        vector = torch.randn(CONFIG.hidden_size)
        found = ask(store.server, number, [key.expert_idx], [1.0], vector, key.layer_idx)
        expected = NativeBackend().routed_experts(
            vector[None], torch.tensor([[0]]), torch.ones(1, 1), [expert_of(copy, *key)]
        )
        assert torch.equal(found, expected[0])
    lender.hits = lambda key: float(key in before)
    assert lender.take_back(total) == 6
    assert store.resident == before
    assert store.tail.keys == set(disk)
    check()
    store.close()


def test_where_ram_is_full_those_who_leave_begin_a_tier_on_disk(copy, formats):
    places = ExpertPlaces(KEYS[2:4], (), figures=known(), cache_tokens=4, num_staged=0)
    store = build(copy, formats, places, Residency(3))
    before, total = store.resident, store.num_usable
    lender = SlotLender(store, 0, lambda: 1 << 40)  # there is no RAM for any of them
    assert not store.has_unaddressable
    assert "disk" not in {use.name for use in store.uses}
    assert lender.least_slots == 2 + NUM_AT_ONCE  # shared ones, and those for exchanges
    assert lender.lend(total - 5) == 5
    assert store.has_unaddressable
    gone = sorted(before - store.resident)
    for number, key in enumerate(gone, 1):
        vector = torch.randn(CONFIG.hidden_size)
        found = ask(store.server, number, [key.expert_idx], [1.0], vector, key.layer_idx)
        expected = NativeBackend().routed_experts(
            vector[None], torch.tensor([[0]]), torch.ones(1, 1), [expert_of(copy, *key)]
        )
        assert torch.equal(found, expected[0])
    assert {use.name: use.experts_run for use in store.uses}["disk"] == 5
    lender.hits = lambda key: float(key in before)
    assert lender.take_back(total) == 5
    assert (store.resident, store.has_unaddressable) == (before, False)
    store.close()


def test_without_a_copy_there_is_nothing_to_read_from(copy, formats):
    weights = random_weights(CONFIG, FAMILY, formats)
    with pytest.raises(QuantError, match="14 experts fit into no memory"):
        build(weights, formats, ExpertPlaces((), KEYS[2:], figures=known()), Residency(3))


def test_who_runs_experts_in_ram_follows_from_the_machine_or_is_said(copy, formats):
    places = ExpertPlaces(KEYS[2:], figures=known())
    store = build(copy, formats, places)
    # The CPU is twice as fast as the bus, but a handoff costs more than these small experts.
    assert store.cpu_share.tolist() == [0, 0, 0]
    assert set(store.prompts.masks) == set(BUCKETS)
    store.close()
    for share, expected in ((0.0, [0, 0, 0]), (0.5, [0, 0, 1]), (1.0, [0, 1, 2])):
        given = ExpertPlaces(KEYS[2:], (), share, share, 0, known())
        store = build(copy, formats, given)
        assert store.cpu_share.tolist() == expected
        for masks in store.prompts.masks.values():
            assert masks[1:].sum(1).tolist() == [round(share * 6), round(share * 8)]
        assert not store.prompts.sources.numel()
        store.close()
