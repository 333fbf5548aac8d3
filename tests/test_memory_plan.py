"""The memory plan: every byte in its place, hand-worked, and errors that name what would do."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erniechat.errors import MemoryLimitError, UsageError
from erniechat.fit import (
    PROGRAM_NOISE_NBYTES,
    Machine,
    budget,
    expert_places,
    fit,
    gpu_workspace_nbytes,
)
from erniechat.memory_plan import (
    Budget,
    Item,
    Needs,
    Speeds,
    plan_memory,
)
from erniechat.model.families import FAMILIES
from erniechat.model_sizes import ModelSizes, model_sizes
from erniechat.options import LoadOptions
from erniechat.plan_text import format_plan, plan_facts
from erniechat.planning import choose_formats
from erniechat.sizes import size_nbytes
from quant.kernels.reference import ReferenceBackend
from quant.memory import DeviceMemory

FAMILY = FAMILIES["ernie4_5_moe"]
CONFIG = FAMILY.parse_config({})  # the 21B model
REFERENCE = choose_formats("nf4", LoadOptions(kernels="reference"), torch.device("cpu"))
KERNELS = type("Kernels", (ReferenceBackend,), {"name": "triton"})()  # that read packed weights
FORMATS = dataclasses.replace(REFERENCE, linear_backend=KERNELS, embedding_backend=KERNELS)
SLOTS = [s for s in FAMILY.tensors(CONFIG).values() if not getattr(s, "optional", False)]
# 3 · 1536 · 2560 weights of 4 bits, and a float16 for 64 of them.
EXPERT = 3 * 1536 * 2560 // 2 + 3 * 1536 * 2560 // 64 * 2
KV = 2 * 28 * 4 * 128 * 2
GIB = 1 << 30
NEEDS = Needs(1000, gpu=(Item("driver", 500),), ram=(Item("program", 300),), least_ram_experts=6)
SMALL = ModelSizes(CONFIG, 10_000, 9_000, 100)  # 1,728 experts of 100 bytes
SMALL_KV = 1000 * KV


def small_plan(gpu, ram, counts=None, has_disk=True):
    return plan_memory(
        SMALL,
        NEEDS,
        counts,
        gpu=None if gpu is None else Budget(gpu, f"{gpu}B"),
        ram=Budget(ram, f"{ram}B"),
        has_disk=has_disk,
    )


def test_sizes_of_the_21b_model_are_those_of_its_shape():
    sizes = model_sizes(CONFIG, SLOTS, FORMATS)
    assert sizes.expert_nbytes == EXPERT == 6_266_880
    assert sizes.num_experts == 27 * 64
    assert sizes.num_chosen == 27 * 6
    embedding = 103424 * 2560 + 103424 * 4
    bits = 4 + 16 / 64
    attention = 28 * (2 * 2560 * 2560 + 2 * 512 * 2560)
    mlps = 3 * 2560 * (12288 + 27 * 3072)
    plain = 27 * (64 * 2560 + 64) + 57 * 2560
    assert sizes.fixed_nbytes == embedding + (attention + mlps) * bits / 8 + 4 * plain
    assert sizes.fixed_read_nbytes == sizes.fixed_nbytes  # the embedding is the head


def test_a_head_of_its_own_is_read_and_the_embedding_is_not():
    slots = list(FAMILY.tensors(CONFIG).values())
    sizes = model_sizes(CONFIG, slots, FORMATS)
    assert sizes.fixed_nbytes - sizes.fixed_read_nbytes == 103424 * 2560 + 103424 * 4


def test_kernels_that_unpack_whole_matrices_get_room_for_the_largest():
    sizes = model_sizes(CONFIG, SLOTS, REFERENCE)
    head, gate_up = 103424 * 2560, 2 * 12288 * 2560
    assert sizes.unpacked_nbytes == max(head * 8.5, gate_up * 17.5)
    assert model_sizes(CONFIG, SLOTS, FORMATS).unpacked_nbytes == 0
    assert (sizes.library_nbytes, model_sizes(CONFIG, SLOTS, FORMATS).library_nbytes) == (
        160 << 20,
        0,
    )
    torch_kernels = choose_formats("bf16", LoadOptions(kernels="torch"), torch.device("cpu"))
    of = {t: model_sizes(CONFIG, SLOTS, torch_kernels, t) for t in (torch.bfloat16, torch.float32)}
    assert of[torch.bfloat16].unpacked_nbytes == head * 0.5
    assert of[torch.float32].unpacked_nbytes == head * 4.5
    on_cpu = Machine(DeviceMemory(60 * GIB, 64 * GIB), GIB)
    on_gpu = Machine(DeviceMemory(60 * GIB, 64 * GIB), GIB, DeviceMemory(60 * GIB, 64 * GIB))
    for machine, place in ((on_cpu, "RAM"), (on_gpu, "GPU")):
        plans = [
            fit(found, LoadOptions(), 4096, None, machine)
            for found in (sizes, dataclasses.replace(sizes, unpacked_nbytes=0))
        ]
        assert plans[0].nbytes(place) - plans[1].nbytes(place) == sizes.unpacked_nbytes


def test_a_gpus_workspaces_grow_with_the_buffers_of_a_chunk():
    large = FAMILY.parse_config(
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "moe_intermediate_size": 3584,
            "moe_k": 8,
            "moe_num_shared_experts": 0,
        }
    )
    rows = {  # of 512 tokens, as quant/kernels/triton/chunk.py has them
        "float32 x and what the router reads, normed, delta": 8192 * (4 + 4 + 2 + 2),
        "qkv, q, attended": 2 * (8192 + 2 * 1024) + 2 * 8192 + 2 * 8192,
        "act": 2 * 28672,
        "float32 results": 4 * 8 * 8192,
    }
    assert gpu_workspace_nbytes(large) == (256 - 76) * 2**20 + 512 * sum(rows.values())
    assert gpu_workspace_nbytes(CONFIG) == 256 * 2**20


def test_the_least_that_is_named_is_enough_for_a_program_that_holds_more():
    def machine(program: int) -> Machine:
        return Machine(DeviceMemory(60 * GIB, 64 * GIB), program)

    sizes = model_sizes(CONFIG, SLOTS, FORMATS)
    with pytest.raises(MemoryLimitError) as caught:
        fit(sizes, LoadOptions(cpu_memory="1GiB"), 4096, None, machine(GIB))
    least = re.search(r"give (\S+) or more", str(caught.value))[1]
    chat = machine(GIB + PROGRAM_NOISE_NBYTES)
    assert fit(sizes, LoadOptions(cpu_memory=least), 4096, None, chat).num_experts("RAM") >= 6
    much = machine(GIB + PROGRAM_NOISE_NBYTES + GIB // 10 + 1)  # beyond what rounding up adds
    with pytest.raises(MemoryLimitError):
        fit(sizes, LoadOptions(cpu_memory=least), 4096, None, much)


def test_every_byte_has_its_place():
    plan = small_plan(10_000 + SMALL_KV + 500 + 250, 300 + 699)
    assert plan.places == ("GPU", "RAM", "disk")
    assert [plan.num_experts(p) for p in plan.places] == [2, 6, 1720]
    assert plan.nbytes("GPU") == 10_000 + SMALL_KV + 500 + 200
    assert plan.nbytes("RAM") == 300 + 600


def test_without_a_gpu_everything_is_in_ram_and_the_rest_on_disk():
    plan = small_plan(None, 10_000 + SMALL_KV + 300 + 1000)
    assert plan.places == ("RAM", "disk")
    assert plan.num_experts("RAM") == 10
    assert plan.nbytes("RAM") == 10_000 + SMALL_KV + 300 + 1000
    assert plan.fixed_place == "RAM"


def test_the_most_used_experts_get_the_fastest_place():
    counts = {i: [0.0] * 64 for i in range(1, 28)}
    counts[5][7], counts[9][1] = 30.0, 10.0
    plan = small_plan(10_000 + SMALL_KV + 500 + 100, 10**6, counts)
    assert plan.placement.experts[0] == ((5, 7),)
    assert plan.hit_rate("GPU") == 0.75
    assert plan.hit_rate("RAM") == 0.25
    assert plan.nbytes_per_token("GPU") == 9_000 + 0.75 * 162 * 100


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 * SMALL_KV), st.integers(0, 2 * SMALL_KV), st.booleans(), st.booleans())
def test_a_plan_keeps_its_budgets_or_names_the_least_that_work(gpu, ram, has_gpu, has_disk):
    budgets = {"GPU": gpu if has_gpu else None, "RAM": ram}
    for _ in range(3):
        try:
            plan = small_plan(budgets["GPU"], budgets["RAM"], has_disk=has_disk)
            break
        except MemoryLimitError as exc:
            found = re.search(
                r"--(gpu|cpu)-memory .* is too little .*; give (\S+) or more", str(exc)
            )
            if not found:
                raise
            place = {"gpu": "GPU", "cpu": "RAM"}[found[1]]
            named = size_nbytes(found[2], 0)
            assert named > budgets[place]
            budgets[place] = named
    else:
        pytest.fail("two budgets need at most two corrections")
    assert sum(plan.num_experts(place) for place in plan.places) == 1728
    for place in plan.budgets:
        assert plan.nbytes(place) <= budgets[place]
    assert sum(plan.hit_rate(place) for place in plan.places) == pytest.approx(1)
    assert has_disk or plan.num_experts("disk") == 0


def test_the_named_least_is_the_least():
    least = 10_000 + SMALL_KV + 500
    assert small_plan(least, 10**6).num_experts("GPU") == 0
    with pytest.raises(MemoryLimitError, match="driver 500 B"):
        small_plan(least - 1, 10**6)
    with pytest.raises(MemoryLimitError, match=r"give \S+ or more$"):
        small_plan(None, least, has_disk=False)


def test_no_more_is_advised_than_the_machine_has():
    asked = budget("RAM", "10KiB", DeviceMemory(15_000, 20_000), 0)
    with pytest.raises(MemoryLimitError, match=r"B are needed, and the machine has 19.5 KiB$"):
        plan_memory(SMALL, NEEDS, None, gpu=None, ram=asked, has_disk=False)


def test_speed_is_bytes_over_bandwidth_with_the_slower_side_deciding():
    counts = {i: [1.0] * 32 + [0.0] * 32 for i in range(1, 28)}
    half = 27 * 32 * 100
    plan = small_plan(10_000 + SMALL_KV + 500 + half, 10**6, counts)
    assert plan.hit_rate("GPU") == 1
    # 9,000 + 16,200 bytes at 1,000 bytes a second.
    assert plan.tokens_per_second(Speeds(gpu=1e3)) == pytest.approx(1 / 25.2)
    even = small_plan(10_000 + SMALL_KV + 500 + half, 10**6)
    # GPU: 9 s and then 8.1 s, meanwhile the CPU 16.2 s.
    assert even.tokens_per_second(Speeds(gpu=1e3, ram=500.0)) == pytest.approx(1 / (9 + 16.2))
    on_cpu = small_plan(None, 10_000 + SMALL_KV + 300 + half)
    # All at 1,000 bytes a second, and half the experts at 500 from the disk before.
    speeds = Speeds(ram=1e3, disk=500.0, token_seconds=1.0)
    assert on_cpu.tokens_per_second(speeds) == pytest.approx(1 / (1 + 9 + 16.2 + 16.2))


def test_a_handoff_costs_in_the_layers_that_need_it():
    even = small_plan(10_000 + SMALL_KV + 500 + 27 * 32 * 100, 10**6)
    seconds = 1 / even.tokens_per_second(Speeds(handoff_seconds=1.0))
    assert seconds == pytest.approx(27 * (1 - 0.5**6))


def test_a_dense_model_has_no_experts_to_place():
    family = FAMILIES["ernie4_5"]
    config = family.parse_config({})
    slots = [s for s in family.tensors(config).values() if not s.optional]
    sizes = model_sizes(config, slots, FORMATS)
    plan = plan_memory(sizes, Needs(100), None, gpu=None, ram=Budget(GIB), has_disk=True)
    assert plan.nbytes("RAM") == sizes.fixed_nbytes + 100 * config.kv_nbytes_per_token
    assert "experts" not in format_plan(plan)


def test_without_flags_it_takes_what_is_free_but_a_reserve():
    memory = DeviceMemory(8 * GIB, 16 * GIB)
    assert budget("RAM", None, memory, GIB) == Budget(8 * GIB + GIB * 3 // 4)
    assert budget("RAM", "50%", memory, GIB) == Budget(8 * GIB, "50%")
    with pytest.raises(UsageError, match=r'--cpu-memory must be at most the 16.0GiB .* got "17G"'):
        budget("RAM", "17G", memory, 0)


def test_the_21b_model_in_six_gib_of_gpu():
    sizes = model_sizes(CONFIG, SLOTS, FORMATS)
    machine = Machine(DeviceMemory(20 * GIB, 24 * GIB), GIB // 2, DeviceMemory(7 * GIB, 8 * GIB))
    plan = fit(sizes, LoadOptions(gpu_memory="6GiB"), 8192, None, machine)
    assert plan.nbytes("GPU") <= 6 * GIB < plan.nbytes("GPU") + EXPERT
    assert plan.num_experts("disk") == 0
    facts = plan_facts(plan, Speeds(gpu=1e12, ram=6e10))
    assert facts["places"]["GPU"]["experts"] == plan.num_experts("GPU")
    page = format_plan(plan)
    assert re.search(r"GPU: 6\.0 GiB of 6\.0 GiB asked for", page)
    assert "KV cache of 8,192 tokens" in page
    assert "erniechat doctor" in page
    assert "tok/s" in format_plan(plan, Speeds(gpu=1e12, ram=6e10))


def plan_21b(gpu_gib: float, ram_gib: float = 20, longest: int | None = 131_072, **options):
    sizes = model_sizes(CONFIG, SLOTS, FORMATS)
    gpu = DeviceMemory(int(gpu_gib * GIB), 80 * GIB)
    machine = Machine(DeviceMemory(int(ram_gib * GIB), 64 * GIB), GIB // 2, gpu)
    asked = LoadOptions(gpu_memory=f"{gpu_gib}GiB", **options)
    return fit(sizes, asked, 32_768, None, machine, longest)


def test_a_context_that_does_not_fit_beside_all_experts_is_planned_short_and_grows():
    plan = plan_21b(10)
    whole = plan_21b(10, longest=None)
    assert (plan.context_length, plan.longest_context) == (8192, 131_072)
    assert (whole.context_length, whole.longest_context) == (32_768, 32_768)
    # 24,576 tokens of 57,344 bytes are 224.9 experts of 6,266,880.
    assert plan.num_experts("GPU") - whole.num_experts("GPU") in (224, 225)
    assert plan.nbytes("GPU") <= 10 * GIB
    assert plan.leaving_per_token == pytest.approx(57_344 / 6_266_880)
    page = format_plan(plan)
    assert (
        "context: 8,192 tokens planned, grows to 131,072; 9.2 experts leave the GPU for each 1,000 "
        "tokens more\n"
    ) in page
    assert "grows to" not in format_plan(whole)
    assert plan_facts(plan)["context"] == {
        "planned": 8192,
        "longest": 131_072,
        "experts_per_1000_tokens": pytest.approx(9.15, abs=0.01),
    }
    places = expert_places(plan, LoadOptions())
    assert (places.cache_tokens, places.ram_nbytes) == (8192, plan.left_nbytes("RAM"))


def test_what_fits_as_a_whole_does_not_grow():
    plan = plan_21b(15)
    assert plan.num_experts("GPU") == plan.sizes.num_experts
    assert plan.context_length == plan.longest_context == 32_768
    assert not expert_places(plan, LoadOptions()).has_tiers


def test_between_the_two_all_experts_begin_on_the_gpu():
    """All of them fit beside the planned context, but not beside the whole one."""
    plan = plan_21b(13.5)
    assert plan.num_experts("GPU") == plan.sizes.num_experts
    assert plan.grows
    assert expert_places(plan, LoadOptions()).has_tiers


def test_it_grows_until_the_last_expert_has_left():
    plan = plan_21b(6)
    assert plan.longest_context == 8192 + plan.num_experts("GPU") * EXPERT // 57_344 < 131_072


def test_it_grows_only_as_far_as_ram_takes_experts():
    taken = plan_21b(6).nbytes("RAM") / GIB
    # 500 experts are 2.918 GiB; 16 of them are for the beginnings of what is pinned.
    ram = taken + 256 / 1024 - 0.5 + 500.5 * EXPERT / GIB
    plan = plan_21b(6, ram, copy=False)
    assert plan.longest_context == 8192 + int(484 * EXPERT / 57_344)
    assert plan.num_read_slots == 0


@pytest.mark.parametrize(("left", "num_slots"), [(500.5, 24), (24.1, 24), (9.5, 9), (6.1, 6)])
def test_where_ram_takes_no_more_experts_leave_for_the_copy(left, num_slots):
    """Through slots that are planned; until then nobody is on disk."""
    taken = plan_21b(6).nbytes("RAM") / GIB
    plan = plan_21b(6, taken + 256 / 1024 - 0.5 + left * EXPERT / GIB)
    assert plan.context_length == 8192
    assert plan.longest_context == 8192 + plan.num_experts("GPU") * EXPERT // 57_344
    assert (plan.num_experts("disk"), plan.num_read_slots) == (0, num_slots)
    assert plan.left_nbytes("RAM") < (left + 0.5 - num_slots) * EXPERT
    assert "slots for experts from disk" in format_plan(plan)
    assert expert_places(plan, LoadOptions()).ram_nbytes == plan.left_nbytes("RAM") >= 0


def test_where_ram_is_full_the_whole_context_is_planned():
    taken = plan_21b(6).nbytes("RAM") / GIB
    plan = plan_21b(6, taken + 256 / 1024 - 0.5 + 5.9 * EXPERT / GIB)  # a token reads six
    assert plan.context_length == plan.longest_context == 32_768
    # 24,576 tokens are 224.9 experts, as with --ctx; without staging there are 32 slots more,
    # and five fit into RAM.
    assert plan.num_experts("disk") in (187, 188)


def slots_of(plan, place="GPU") -> int:
    (item,) = [item for item in plan.items[place] if item.name == "slots for moving experts"]
    assert item.nbytes % EXPERT == 0
    return item.nbytes // EXPERT


def test_slots_for_staging_are_planned_only_where_prompts_stage():
    staged, unstaged = plan_21b(6), plan_21b(6, stage=False)
    assert (slots_of(staged), slots_of(unstaged)) == (36, 4)
    assert unstaged.num_experts("GPU") == staged.num_experts("GPU") + 32
    on_disk = plan_21b(6, 3)  # prompts go layer by layer there
    assert on_disk.num_experts("disk") > 0
    assert slots_of(on_disk) == 4
    assert {slots_of(plan, "RAM") for plan in (staged, unstaged, on_disk)} == {4}
    places = [expert_places(plan, LoadOptions()) for plan in (staged, unstaged, on_disk)]
    assert [found.num_staged for found in places] == [16, 0, 0]


def test_a_gpu_too_small_for_staging_does_without():
    plan = plan_21b(6, longest=None)
    gib = (plan.nbytes("GPU") - (plan.num_experts("GPU") + 9.5) * EXPERT) / GIB
    small = plan_21b(gib, longest=None)
    assert (slots_of(small), small.num_experts("GPU")) == (4, 22)


def test_experts_that_leave_may_join_those_on_disk():
    plan = plan_21b(6, 3)
    assert plan.num_experts("disk") > 0
    assert plan.longest_context == 8192 + plan.num_experts("GPU") * EXPERT // 57_344


def test_a_cache_that_leaves_no_room_for_experts_is_planned_short():
    """With the cache of 32,768 tokens 2.9 GiB hold not even what every token uses."""
    with pytest.raises(MemoryLimitError, match="KV cache of 32,768 tokens"):
        plan_21b(2.9, longest=None)
    plan = plan_21b(2.9)
    assert plan.context_length == 8192
    assert plan.num_experts("GPU") > 0


def test_a_length_that_was_asked_for_is_kept():
    plan = plan_21b(6, longest=None, ctx=32_768)
    places = expert_places(plan, LoadOptions(ctx=32_768))
    assert plan.context_length == places.cache_tokens == 32_768


def test_ram_must_hold_what_the_gpu_does_not_and_no_more():
    gpu = 10_000 + SMALL_KV + 500 + 1000 * 100
    plan = small_plan(gpu, 300 + 728 * 100, has_disk=False)
    assert [plan.num_experts(place) for place in plan.places] == [1000, 728]
    with pytest.raises(MemoryLimitError, match=r"experts 71\.1 KiB; give 71\.4KiB or more"):
        small_plan(gpu, 300 + 728 * 100 - 1, has_disk=False)
