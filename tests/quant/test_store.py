"""The store of resident experts: exact counts, its bytes, and layers that it refuses."""

import pytest
import torch

from quant.errors import QuantError
from quant.experts.store import ResidentExpertStore, TierUse
from quant.formats import FORMATS
from quant.kernels import ExpertWeights, backend_for

HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_LAYERS = 6, 2, 4
BACKEND = backend_for("bf16", torch.device("cpu"), "reference")


def expert(seed: int) -> ExpertWeights:
    generator = torch.Generator().manual_seed(seed)
    bf16 = FORMATS["bf16"]
    return ExpertWeights(
        gate_up=bf16.random((2 * INTERMEDIATE_SIZE, HIDDEN_SIZE), generator),
        down=bf16.random((HIDDEN_SIZE, INTERMEDIATE_SIZE), generator),
    )


def layer(num_experts: int, first_seed: int = 0) -> list[ExpertWeights]:
    return [expert(first_seed + i) for i in range(num_experts)]


def run(store, layer_idx, topk_ids):
    ids = torch.tensor(topk_ids)
    return store.forward(layer_idx, torch.ones(len(ids), HIDDEN_SIZE), ids, torch.ones(ids.shape))


def test_every_routing_is_counted_once_in_its_layer():
    store = ResidentExpertStore({1: layer(3), 3: layer(3, 10)}, NUM_LAYERS, BACKEND)
    assert store.counts.dtype == torch.int64
    assert store.counts.count_nonzero() == 0
    run(store, 1, [[0, 2], [2, 1], [2, 0]])
    run(store, 3, [[1, 0]])
    run(store, 1, [[2, 1]])
    assert store.counts.tolist() == [[0, 0, 0], [2, 2, 4], [0, 0, 0], [1, 1, 0]]


def test_counting_changes_neither_the_ids_nor_the_result():
    store = ResidentExpertStore({1: layer(3)}, NUM_LAYERS, BACKEND)
    ids = torch.tensor([[0, 2], [1, 0]])
    hidden_states, weights = torch.ones(2, HIDDEN_SIZE), torch.tensor([[0.5, 0.25], [1.0, 2.0]])
    out = store.forward(1, hidden_states, ids, weights)
    assert ids.tolist() == [[0, 2], [1, 0]]
    assert torch.equal(out, BACKEND.routed_experts(hidden_states, ids, weights, layer(3)))
    assert torch.equal(out, store.forward(1, hidden_states, ids, weights))


def test_layers_have_their_own_experts():
    store = ResidentExpertStore({1: layer(2), 2: layer(2, 50)}, NUM_LAYERS, BACKEND)
    assert not torch.allclose(run(store, 1, [[0, 1]]), run(store, 2, [[0, 1]]))


def test_nbytes_counts_every_expert():
    store = ResidentExpertStore({1: layer(3), 2: layer(3)}, NUM_LAYERS, BACKEND)
    weights_an_expert = 3 * HIDDEN_SIZE * INTERMEDIATE_SIZE
    assert store.nbytes == 6 * weights_an_expert * 2


def test_ragged_layers_are_refused():
    with pytest.raises(QuantError, match=r"layers have \[2, 3\] experts; all must have as many"):
        ResidentExpertStore({1: layer(3), 2: layer(2)}, NUM_LAYERS, BACKEND)


def test_a_dense_model_has_no_counts_and_no_bytes():
    store = ResidentExpertStore({}, NUM_LAYERS, BACKEND)
    assert store.counts.shape == (NUM_LAYERS, 0)
    assert store.nbytes == 0


def test_use_counts_each_expert_once_a_chunk_and_each_choice_of_a_single_token():
    store = ResidentExpertStore({1: layer(3)}, NUM_LAYERS, BACKEND)
    run(store, 1, [[0, 2], [2, 1], [2, 0]])  # a chunk that uses all three
    run(store, 1, [[2, 1]])
    counts = torch.zeros(NUM_LAYERS, 3, dtype=torch.int64)
    counts[1] = torch.tensor([1, 0, 1])
    store.count(counts)
    nbytes = 3 * HIDDEN_SIZE * INTERMEDIATE_SIZE * 2
    assert store.uses == (TierUse("RAM", 7, 7 * nbytes),)
    assert ResidentExpertStore({}, NUM_LAYERS, BACKEND).uses == ()
