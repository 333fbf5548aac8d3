"""A prompt over experts on disk: what it reads, and who is in RAM afterwards."""

import pytest
import torch

from quant.experts.disk import DiskExpertStore
from quant.experts.placement import ExpertKey
from quant.experts.prompt_layer import MAX_ROWS, MAX_STAGED
from quant.formats import FORMATS
from quant.kernels import ExpertWeights
from quant.kernels.reference import ReferenceBackend

HIDDEN, WIDTH, NUM_EXPERTS, NUM_LAYERS = 64, 64, 8, 24
LAYERS = range(NUM_LAYERS)
NUM_SLOTS = 128  # of 192
SEED = torch.Generator().manual_seed(0)
SHAPES = ((2 * WIDTH, HIDDEN), (HIDDEN, WIDTH))
ONE = ExpertWeights(*(FORMATS["nf4"].random(shape, SEED) for shape in SHAPES))


class FakeCache:
    """A cache whose reads are done at once, all of the same expert."""

    num_slots, slot_nbytes = NUM_SLOTS, ONE.nbytes

    def __init__(self) -> None:
        self.held: dict[ExpertKey, None] = {}
        self.num_reads = self.nbytes_read = 0

    def __contains__(self, key):
        return key in self.held

    def __len__(self):
        return len(self.held)

    def is_here(self, key):
        return key in self.held

    def fetch(self, key):
        assert len(self.held) < NUM_SLOTS
        self.held[key] = None
        self.num_reads += 1

    def drop(self, key):
        del self.held[key]

    def take(self, key):
        assert key in self.held
        return ONE


def read_prompts(store: DiskExpertStore, num_prompts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_prompts):
        for layer in LAYERS:
            ids = torch.rand(24, NUM_EXPERTS, generator=generator).topk(3).indices
            assert len(ids.unique()) == NUM_EXPERTS
            store.forward(layer, torch.ones(24, HIDDEN), ids, torch.ones(24, 3))


@pytest.mark.parametrize("by_use", [True, False])
@pytest.mark.parametrize("stage", [True, False])
def test_a_prompt_reads_what_is_missing_once(by_use, stage):
    cache = FakeCache()
    store = DiskExpertStore(
        cache, LAYERS, NUM_EXPERTS, NUM_LAYERS, ReferenceBackend(), by_use=by_use, stage=stage
    )
    store.warm([ExpertKey(layer, e) for e in range(NUM_EXPERTS) for layer in LAYERS])
    missing = NUM_LAYERS * NUM_EXPERTS - NUM_SLOTS
    for _ in range(3):
        before = cache.num_reads
        read_prompts(store, 1)
        assert missing <= cache.num_reads - before <= missing + 2 * MAX_STAGED


def test_a_prompt_leaves_what_a_profile_calls_hot_in_ram():
    cache = FakeCache()
    heat = torch.rand(NUM_LAYERS, NUM_EXPERTS, generator=torch.Generator().manual_seed(1)) * 100
    order = heat.flatten().argsort(descending=True).tolist()
    keys = [ExpertKey(*divmod(at, NUM_EXPERTS)) for at in order]
    counts = {layer: heat[layer].tolist() for layer in LAYERS}
    store = DiskExpertStore(
        cache, LAYERS, NUM_EXPERTS, NUM_LAYERS, ReferenceBackend(), counts=counts
    )
    store.warm(keys)
    read_prompts(store, 4)
    gone = [place for place, key in enumerate(keys[:NUM_SLOTS]) if key not in cache]
    assert len(gone) <= 2 * MAX_STAGED
    assert min(gone) >= NUM_SLOTS - 3 * MAX_STAGED  # the coldest of those that were there


class CountingBackend(ReferenceBackend):
    """Remembers the rows of each call."""

    def __init__(self):
        self.num_rows = []

    def routed_experts(self, hidden_states, *rest):
        self.num_rows.append(len(hidden_states))
        return super().routed_experts(hidden_states, *rest)


def test_a_chunk_whose_tokens_choose_alike_runs_in_calls_of_bounded_size():
    backend, cache = CountingBackend(), FakeCache()
    store = DiskExpertStore(cache, [0], NUM_EXPERTS, 1, backend)
    x, weights = torch.randn(300, HIDDEN), torch.rand(300, NUM_EXPERTS)
    ids = torch.arange(NUM_EXPERTS).expand(300, -1)
    out = store.forward(0, x, ids, weights)
    assert backend.num_rows == [900, 900, 600]  # 300 each: three at once, and the rest
    assert max(backend.num_rows) <= MAX_ROWS
    expected = ReferenceBackend().routed_experts(x, ids, weights, [ONE] * NUM_EXPERTS)
    assert torch.allclose(out, expected, atol=1e-5)
