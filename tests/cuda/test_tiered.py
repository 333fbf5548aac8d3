"""Experts on the GPU, in pinned memory and in the copy: on a GPU, or in Triton's interpreter."""

import os
import shutil
import tempfile
import weakref
from pathlib import Path

import pytest
import torch

from erniechat.model.device_step import CapturedStep
from erniechat.model.step_assembly import build_chunk, build_step
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.experts.cache import ExpertCache, StoredExpert
from quant.experts.disk import DiskExpertStore
from quant.experts.host_pool import HostPool
from quant.experts.placement import ExpertKey
from quant.experts.pool import NO_SLOT, ExpertPool, split_gated
from quant.experts.sharing import SharingCosts
from quant.experts.tail import ExpertTail
from quant.experts.tiered import TieredExpertStore
from quant.kernels.native import NativeBackend
from quant.kernels.native.library import find_library
from quant.kernels.native.serve import ExpertServer
from quant.kernels.reference import ReferenceBackend
from quant.linear import QuantLinear
from quant.upload import Uploader
from tests.cuda.test_device_step import (
    BOUNDS,
    CONFIG,
    DEVICE,
    HAS_CUDA,
    Model,
    pytestmark,  # noqa: F401  # the same conditions
    read_launched,
    relative_error,
)

if isinstance(find_library(), str):
    pytest.skip("the native library is not built", allow_module_level=True)

NUM_RESIDENT = 7  # of 16 routed experts
NUM_STAGED = 2
NUM_SLOTS = 3  # in RAM for experts on disk


class TieredModel(Model):
    """The small model with its experts in three places.

    Args:
        format_name: Of the weights.
        seed: Of the weights and of who lives where.
        num_copies: Experts that are nowhere but in the copy.
        cpu_share: See `TieredExpertStore`.
    """

    def __init__(self, format_name, seed=0, num_copies=0, cpu_share=(0, 1, 1)) -> None:
        self.num_copies, self.shares = num_copies, cpu_share
        self.row_share = 0.0 if not any(cpu_share) else 0.5 if cpu_share[1] else 1.0
        super().__init__(format_name, seed, bias_step=0.01)

    def _on_device(self, linears, tensors, embedding, experts) -> None:
        backend = ReferenceBackend()
        keys = [ExpertKey(i, j) for i in CONFIG.moe_layers for j in range(8)]
        order = torch.randperm(len(keys), generator=self.generator).tolist()
        keys = [keys[i] for i in order]
        resident, rest = keys[:NUM_RESIDENT], keys[NUM_RESIDENT:]
        copies, hosted = rest[: self.num_copies], rest[self.num_copies :]
        pool = ExpertPool(experts[1][0], NUM_RESIDENT + 4 + 1 + 2 * NUM_STAGED, DEVICE)
        host = HostPool(pool, len(hosted), 1)
        slots = {i: [NO_SLOT] * 10 for i in CONFIG.moe_layers}
        with Uploader(DEVICE) as upload:
            for slot, key in enumerate(resident):
                slots[key.layer_idx][key.expert_idx] = slot
                pool.write(slot, experts[key.layer_idx][key.expert_idx], upload)
            for row, key in enumerate(hosted):
                slots[key.layer_idx][key.expert_idx] = host.slot(row)
                pool.write_in(
                    host.data[row], experts[key.layer_idx][key.expert_idx], lambda a, b: a.copy_(b)
                )
            for order, layer_idx in enumerate(CONFIG.moe_layers):
                shared = split_gated(
                    linears[f"layers.{layer_idx}.shared.gate_up"],
                    linears[f"layers.{layer_idx}.shared.down"],
                    2,
                )
                for i, expert in enumerate(shared):
                    slot = NUM_RESIDENT + 2 * order + i
                    slots[layer_idx][8 + i] = slot
                    pool.write(slot, expert, upload)
        on_cpu = {
            i: [
                None
                if ExpertKey(i, j) not in hosted
                else pool.expert_in(host.data[hosted.index(ExpertKey(i, j))])
                for j in range(8)
            ]
            for i in CONFIG.moe_layers
        }
        tail = self._tail(experts, copies) if copies else None
        server = ExpertServer(
            on_cpu, CONFIG.num_hidden_layers, CONFIG.hidden_size, NativeBackend(),
            pinned=HAS_CUDA, fetch=tail.fetch if tail else None,
        )  # fmt: skip
        if tail:
            tail.serve(server)
        self.store = TieredExpertStore(
            pool, host, slots, CONFIG.num_hidden_layers, 2, backend, server, tail, self.shares,
            {32: self.row_share, 128: self.row_share, 512: self.row_share}, NUM_STAGED,
            costs=SharingCosts(ram=1e10, bus=1e10),
        )  # fmt: skip
        embedding = embedding.to(DEVICE)
        on_device = {n: QuantLinear(w.to(DEVICE), backend) for n, w in linears.items()}
        on_device["lm_head"] = QuantLinear(embedding, backend)
        tensors = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
        self.step = build_step(CONFIG, on_device, tensors, embedding, self.store)

    def _tail(self, experts, keys) -> ExpertTail:
        """Experts of a file, of which three are in RAM: one more than a layer chooses."""
        folder = Path(tempfile.mkdtemp()) / "copy"
        weakref.finalize(self, shutil.rmtree, folder.parent)
        with CopyWriter(folder, {}) as writer:
            for i, layer in experts.items():
                for j, expert in enumerate(layer):
                    writer[f"{i}.{j}.gate_up"], writer[f"{i}.{j}.down"] = (
                        expert.gate_up,
                        expert.down,
                    )
            writer.finish()
        copy = QuantizedCopy(folder)
        stored = {
            ExpertKey(i, j): StoredExpert(
                copy.place(f"{i}.{j}.gate_up"), copy.place(f"{i}.{j}.down")
            )
            for i in experts
            for j in range(8)
        }
        self.path = copy.path
        cache = ExpertCache(copy.path, stored, NUM_SLOTS)
        disk = DiskExpertStore(
            cache, CONFIG.moe_layers, 8, CONFIG.num_hidden_layers, NativeBackend()
        )
        return ExpertTail(disk, keys)


NUM_TOKENS = 12 if HAS_CUDA else 3
CASES = [
    ("nf4", 0, (0, 0, 0)),
    ("nf4", 0, (0, 1, 2)),
    ("nf4", 9, (0, 1, 1)),
    ("int8", 4, (0, 0, 1)),
]


@pytest.fixture(params=CASES, ids=str)
def tiered(request):
    format_name, num_copies, shares = request.param
    model = TieredModel(format_name, 0, num_copies, shares)
    yield model
    model.store.close()


def test_a_token_gets_the_same_logits_wherever_its_experts_live(tiered):
    plain, on_device = tiered.caches(tiered.ids(20))
    before = tiered.plain.experts.counts.clone()
    for token_id in tiered.ids(NUM_TOKENS):
        expected = tiered.plain.forward([token_id], plain)[0]
        actual = read_launched(tiered, token_id, on_device)
        assert relative_error(actual, expected) < BOUNDS[tiered.format.name]
    tiered.store.server.check()
    chosen = tiered.plain.experts.counts - before
    resident = sum(int(chosen[key]) for key in tiered.store.resident)
    used = {use.name: use.experts_run for use in tiered.store.uses}
    assert sum(used.values()) == NUM_TOKENS * 2 * 2
    assert abs(used["GPU"] - resident) <= 2  # a near-tie may fall otherwise
    on_cpu = used["RAM"] + used.get("disk", 0)
    assert (on_cpu > 0) == (tiered.num_copies > 0 or any(tiered.shares))
    assert (used.get("disk", 0) > 0) == (tiered.num_copies > 0)
    assert tiered.store.hit_rate == pytest.approx(used["GPU"] / (4 * NUM_TOKENS))


def test_results_do_not_depend_on_moves_between_tokens(tiered):
    """Experts change places before every token; the text is that of the plain decoder."""
    plain, on_device = tiered.caches(tiered.ids(20))
    store = tiered.store
    for token_id in tiered.ids(NUM_TOKENS):
        hosted = [
            ExpertKey(i, j)
            for i in CONFIG.moe_layers
            for j in range(8)
            if store.is_in_ram(ExpertKey(i, j))
        ]
        resident = sorted(store.resident)
        picks = torch.randperm(min(len(hosted), len(resident)), generator=tiered.generator)
        store.swap_all([(hosted[i], resident[i]) for i in picks[:3].tolist()])
        assert len(store.resident) == NUM_RESIDENT
        expected = tiered.plain.forward([token_id], plain)[0]
        actual = read_launched(tiered, token_id, on_device)
        assert relative_error(actual, expected) < BOUNDS[tiered.format.name]
    store.server.check()


def test_a_prompt_reads_experts_where_they_are(tiered):
    chunk = build_chunk(tiered.step, tiered.store)
    assert (chunk is None) == (tiered.num_copies > 0)
    if chunk is None:
        return
    plain, on_device = tiered.plain.new_kv_cache(1024), tiered.caches(tiered.ids(1))[1]
    on_device.forget_from(0)
    ids = tiered.ids(30)
    expected = tiered.plain.forward(ids, plain)
    on_device.append_tokens(ids)
    chunk.state.copy_(torch.tensor([0, *on_device.storage, 30]))
    chunk.ids[:30] = torch.tensor(ids)
    before = tiered.store.server.use.num_rows
    chunk._pairs.fill_(float("nan"))
    chunk._pairs[30 * 4 :] = 0.0
    chunk.forward(32)
    tiered.store.server.check()
    assert (tiered.store.server.use.num_rows > before) == (tiered.row_share > 0)
    assert relative_error(chunk.logits[0].cpu(), expected[0]) < BOUNDS[tiered.format.name]


def test_the_plain_path_runs_what_the_gpu_cannot_read_on_the_cpu(tiered):
    hidden = torch.randn(9, CONFIG.hidden_size, generator=tiered.generator)
    ids = torch.stack([torch.randperm(8, generator=tiered.generator)[:2] for _ in range(9)])
    weights = torch.rand(9, 2, generator=tiered.generator)
    if not HAS_CUDA:
        pytest.skip("the backend's products by address need a GPU")
    before = tiered.store.counts
    actual = tiered.store.forward(1, hidden.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE))
    assert torch.isfinite(actual).all()
    counted = (tiered.store.counts - before)[1]
    assert torch.equal(counted, torch.bincount(ids.flatten(), minlength=8))


def test_swaps_of_experts_that_are_elsewhere_are_refused():
    model = TieredModel("nf4")
    one, other = sorted(model.store.resident)[:2]
    with pytest.raises(QuantError, match="is not in RAM or"):
        model.store.swap(one, other)


@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
def test_replays_ask_the_cpu_and_find_moved_experts(tiered):
    captured = CapturedStep(tiered.step, None, DEVICE, tiered.store)
    plain, on_device = tiered.caches(tiered.ids(100))
    errors = []
    for token_id in tiered.ids(30):
        expected = tiered.plain.forward([token_id], plain)[0]
        on_device.append_tokens([token_id])
        actual = captured.read([token_id], on_device)[0].cpu()
        errors.append(relative_error(actual, expected))
        hosted = [
            ExpertKey(i, j)
            for i in CONFIG.moe_layers
            for j in range(8)
            if tiered.store.is_in_ram(ExpertKey(i, j))
        ]
        if hosted:
            tiered.store.swap(hosted[0], sorted(tiered.store.resident)[0])
    assert sum(error > BOUNDS[tiered.format.name] for error in errors) <= 3, errors  # near-ties
    assert len(captured._graphs) == 1


def read_all(captured, ids, kv_cache) -> None:
    for token_id in ids:
        kv_cache.append_tokens([token_id])
        captured.read([token_id], kv_cache)


@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
def test_a_disk_that_fails_ends_the_reply_and_the_conversation_goes_on():
    """Its tokens are then those of another that never failed."""
    model, sound = (TieredModel("nf4", 0, 9, (0, 1, 1)) for _ in range(2))
    captured, other = (CapturedStep(m.step, None, DEVICE, m.store) for m in (model, sound))
    context = model.ids(40)
    on_device, beside = model.caches(context)[1], sound.caches(context)[1]
    whole = model.path.read_bytes()
    ids = model.ids(12)
    read_all(captured, ids[:4], on_device)
    read_all(other, ids[:4], beside)
    os.truncate(model.path, 4096)
    with pytest.raises(QuantError, match="it is shorter than it was"):
        read_all(captured, ids[4:], on_device)
    model.path.write_bytes(whole)
    on_device.forget_from(44)
    for token_id in ids[4:]:
        on_device.append_tokens([token_id])
        beside.append_tokens([token_id])
        actual, expected = captured.read([token_id], on_device), other.read([token_id], beside)
        assert relative_error(actual[0].cpu(), expected[0].cpu()) < 1e-3
    model.store.close()
    sound.store.close()
