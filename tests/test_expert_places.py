"""From a memory plan to the places of experts: who is pinned, and who shares a cache."""

import dataclasses

import pytest
import torch

from erniechat.errors import MemoryLimitError
from erniechat.fit import expert_places, num_tail_slots
from erniechat.memory_plan import Budget, Needs, plan_memory
from erniechat.model.conversion import Formats
from erniechat.model.disk_assembly import Residency
from erniechat.model.families import FAMILIES
from erniechat.model_sizes import model_sizes
from erniechat.options import LoadOptions
from erniechat.placing import residency_of
from quant.copy import MemoryWeights, QuantizedCopy
from quant.formats import FORMATS
from quant.kernels import backend_for

CPU = torch.device("cpu")
MIB = 1 << 20
FAMILY = FAMILIES["ernie4_5_moe"]
CONFIG = FAMILY.parse_config({})  # the 21B model: 27 layers of 64 experts of 6.3 MB
ROUTING = {i: [float(64 - j) for j in range(64)] for i in CONFIG.moe_layers}


def plan(num_gpu: int, num_ram: int, counts=ROUTING):
    """A plan with so many of the 1,728 experts in GPU and RAM."""
    backend = backend_for("nf4", CPU, "reference")
    formats = Formats(FORMATS["nf4"], FORMATS["int8"], backend, backend)
    slots = [s for s in FAMILY.tensors(CONFIG).values() if not getattr(s, "optional", False)]
    sizes = model_sizes(CONFIG, slots, formats)
    fixed = sizes.fixed_nbytes + 16 * CONFIG.kv_nbytes_per_token
    gpu = Budget(fixed + num_gpu * sizes.expert_nbytes, "6GiB")
    ram = Budget(num_ram * sizes.expert_nbytes)
    return plan_memory(sizes, Needs(16), counts, gpu=gpu, ram=ram, has_disk=True)


class NoCopy(QuantizedCopy):
    """A copy of which only the kind matters."""

    def __init__(self) -> None:
        pass


def test_what_fits_is_pinned():
    places = expert_places(plan(864, 864), LoadOptions())
    assert (len(places.ram), len(places.disk)) == (864, 0)
    assert residency_of(plan(864, 864), NoCopy(), LoadOptions(), print) is None


def test_a_small_rest_on_disk_takes_few_of_the_pinned_places():
    memory = plan(864, 764)  # 100 are on disk
    assert num_tail_slots(memory) == 200
    places = expert_places(memory, LoadOptions())
    assert (len(places.ram), len(places.disk)) == (564, 300)
    told = []
    residency = residency_of(memory, NoCopy(), LoadOptions(), told.append)
    assert residency is not None
    assert residency.num_slots <= 200
    assert residency.num_slots * (memory.sizes.expert_nbytes + 4096) <= 200 * 6_270_000
    assert set(residency.first) == set(places.disk[:200])  # the most used of those on disk
    assert min(ROUTING[k.layer_idx][k.expert_idx] for k in residency.first) >= max(
        ROUTING[k.layer_idx][k.expert_idx] for k in places.disk[200:]
    )
    assert told == [
        "864 of 1,728 experts fit into the GPU's memory, 764 of 1,728 experts fit into RAM; the "
        "others are read from the disk when they are chosen"
    ]


def test_calibration_is_offered_wherever_experts_are_in_two_places_and_nothing_is_known():
    told = []
    fresh = plan(864, 864, None)
    for options in (LoadOptions(), LoadOptions(profile=False)):
        residency_of(fresh, NoCopy(), options, told.append)
    residency_of(plan(864, 864), NoCopy(), LoadOptions(), told.append)
    held = "864 of 1,728 experts fit into the GPU's memory; the others run from RAM"
    offer = " (erniechat profile calibrate finds out in a minute which are used most)"
    assert told == [held + offer, held, held]
    residency_of(plan(1728, 0, None), NoCopy(), LoadOptions(), told.append)
    assert len(told) == 3


@pytest.mark.parametrize(("num_ram", "counts"), [(200, ROUTING), (764, None)])
def test_a_large_rest_or_an_unknown_one_takes_all(num_ram, counts):
    memory = plan(864, num_ram, counts)
    places = expert_places(memory, LoadOptions())
    assert (len(places.ram), len(places.disk)) == (0, 864)
    residency = residency_of(memory, NoCopy(), LoadOptions(), lambda text: None)
    assert residency is not None
    assert 0.99 * num_ram - 1 <= residency.num_slots <= num_ram


def test_a_token_always_finds_room():
    memory = plan(864, 6)
    residency = residency_of(memory, NoCopy(), LoadOptions(), lambda text: None)
    assert residency is not None
    assert residency.num_slots == CONFIG.num_experts_per_tok


def test_without_a_copy_the_least_that_holds_all_is_named():
    with pytest.raises(MemoryLimitError, match="no quantized copy could be kept"):
        residency_of(plan(864, 100), MemoryWeights(), LoadOptions(), print)


def test_slots_for_those_who_may_leave_for_the_disk_begin_empty():
    memory = dataclasses.replace(plan(864, 864), num_read_slots=24)
    options = LoadOptions(adapt=False, stage=False)
    residency = residency_of(memory, NoCopy(), options, print)
    assert residency == Residency(24, (), memory.counts, by_use=False, stage=False)
    assert residency_of(memory, MemoryWeights(), options, print) is None


def test_options_say_who_runs_experts():
    memory = plan(864, 864)
    options = LoadOptions(cpu_share=0.5, prompt_cpu_share=0.25)
    places = expert_places(memory, options)
    assert (places.cpu_share, places.prompt_cpu_share) == (0.5, 0.25)
    default = expert_places(memory, LoadOptions())
    assert (default.cpu_share, default.prompt_cpu_share) == (None, None)
