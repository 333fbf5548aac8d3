"""What a refusal advises: on hundreds of machines, every way that is named is one that is taken."""

import dataclasses
import itertools
import random
import re
from typing import Any

import pytest
import torch

from erniechat import placing, start_plan
from erniechat.errors import DiskLimitError, ErnieChatError, MemoryLimitError
from erniechat.fetch_plan import Disk
from erniechat.fit import GPU_CONTEXT_NBYTES, GPU_WORKSPACE_NBYTES, Machine
from erniechat.hub.listing import HubFile, HubModel
from erniechat.options import LoadOptions
from erniechat.planning import Plan, make_plan
from erniechat.resolve import ModelFiles
from quant.memory import DeviceMemory
from tests.bench.first_start import write_sparse_checkpoint

BESIDE = GPU_CONTEXT_NBYTES + GPU_WORKSPACE_NBYTES - (60 << 20)
SHAPE = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "vocab_size": 4096,
    "moe_num_experts": 16,
}
SMALLER = {"bf16": ("int8", "nf4"), "int8": ("nf4",), "nf4": ()}
FLAGS = {
    "--4bit": {"quant": "nf4"},
    "--8bit": {"quant": "int8"},
    "--copy": {"copy": True},
    "--discard-originals": {"discard_originals": True},
    "--device cpu": {"device": "cpu", "gpu_memory": None},
}


class Missing(HubModel):
    """A model on the hub of which nothing is here."""

    @property
    def missing(self) -> list[HubFile]:
        return list(self.shards)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Plan]:
    """By format and device; on the GPU with kernels that cannot run here and need not."""
    folder = tmp_path_factory.mktemp("model")
    write_sparse_checkpoint(folder, 3, **SHAPE)
    shards = tuple(
        HubFile(path.name, path.stat().st_size, "0" * 64) for path in folder.glob("*.safetensors")
    )
    hub = Missing("owner/model", "0" * 40, folder / "snapshot", shards)
    found = {}
    for quant in ("bf16", "int8", "nf4"):
        options = LoadOptions(quant=quant, device="cpu")
        plan = dataclasses.replace(make_plan(ModelFiles(folder), options), hub=hub)
        found[quant, "cpu"] = plan
        triton = type("Triton", (), {"name": "triton"})()
        formats = dataclasses.replace(plan.formats, linear_backend=triton, embedding_backend=triton)
        device = torch.device("cuda")
        found[quant, "cuda"] = dataclasses.replace(plan, formats=formats, device=device)
    return found


def random_machine(chance: random.Random, unit: int) -> tuple[Machine, list[Disk]]:
    def memory() -> DeviceMemory:
        total = int(unit * chance.choice([2, 4, 8, 16, 32]))
        return DeviceMemory(int(total * chance.uniform(0.2, 1)), total)

    gpu = None
    if chance.random() < 0.5:
        less = memory()  # what the driver and torch take there is no matter of the model's size
        gpu = DeviceMemory(less.free_nbytes + BESIDE, less.total_nbytes + BESIDE)
    ram = memory()
    disks = [
        Disk(number, f"/disk{number}", int(unit * chance.uniform(0.3, 6)) + (256 << 20))
        for number in (0, chance.choice([0, 1]))
    ]
    return Machine(DeviceMemory(ram.free_nbytes, ram.total_nbytes), unit // 20, gpu), disks


def ways_in(text: str) -> list[dict[str, Any]]:
    """The changes that a message names."""
    ways = []
    for way in re.findall(r"((?:--[a-z4-8-]+(?: [a-z0-9]+)? )+)\(weights", text):
        changes: dict[str, Any] = {}
        for flag in re.findall(r"--[a-z4-8-]+(?: [a-z0-9]+)?", way):
            is_ctx = flag.startswith("--ctx ")
            changes |= {"ctx": int(flag[6:])} if is_ctx else FLAGS[flag]
        ways.append(changes)
    return ways


def all_changes(asked: LoadOptions) -> list[dict[str, Any]]:
    """All that may be advised, in every combination."""
    values = {
        "quant": (asked.quant, *SMALLER[asked.quant]),
        "ctx": (asked.ctx, 2048),
        "copy": (asked.copy, True),
        "discard_originals": (asked.discard_originals, True),
        "device": ("auto", "cpu"),
    }
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def test_what_is_advised_is_taken_and_nothing_that_would_be_is_missed(
    plans: dict[tuple[str, str], Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(20261122)
    seen = {"fits": 0, "advised": 0, "hopeless": 0}
    monkeypatch.setattr(placing, "known_profile", lambda key, warn: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # nothing is asked
    monkeypatch.setattr(
        start_plan,
        "choose_formats",
        lambda quant, options, device: plans[quant, device.type].formats,
    )
    for _ in range(150):
        machine, disks = random_machine(chance, 24 << 20)
        has_gpu = machine.gpu is not None
        monkeypatch.setattr(
            placing,
            "this_machine",
            lambda device, m=machine: (
                m if device.type == "cuda" else dataclasses.replace(m, gpu=None)
            ),
        )
        monkeypatch.setattr(
            start_plan, "disk_of", lambda folder, d=disks: d["snapshot" in str(folder)]
        )
        asked = LoadOptions(
            quant=chance.choice(["bf16", "int8", "nf4"]),
            device="auto",
            ctx=chance.choice([None, 4096, 32768, 131072]),
            copy=chance.random() < 0.8,
            discard_originals=chance.random() < 0.2,
        )

        def start(options: LoadOptions, has_gpu: bool = has_gpu) -> None:
            plan = plans[options.quant, "cuda" if has_gpu and options.device != "cpu" else "cpu"]
            placing.check_memory(plan, options)
            start_plan.check_disk(plan, options)

        try:
            start(asked)
            seen["fits"] += 1
            continue
        except (MemoryLimitError, DiskLimitError) as exc:
            ways = ways_in(str(exc))
        for changes in ways:
            start(dataclasses.replace(asked, **changes))
        seen["advised" if ways else "hopeless"] += 1
        for changes in () if ways else all_changes(asked):
            with pytest.raises(ErnieChatError):
                start(dataclasses.replace(asked, **changes))
    assert min(seen.values()) > 20, seen
