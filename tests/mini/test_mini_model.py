"""The training model: two ways to run it, checkpoints, training."""

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from erniechat.mini import checkpoint_folder, train
from erniechat.mini.decoding import generate, new_loads, packed_logits
from erniechat.mini.evaluate import main as evaluate_main
from erniechat.mini.hub import hub_tensors, load_checkpoint, save_checkpoint
from erniechat.mini.layers import causal_in_documents
from erniechat.mini.model import CONFIG, Model
from erniechat.mini.optimizer import Muon, orthogonalize
from erniechat.mini.scoring import correct, load_eval

FACTS = Path(__file__).parent / "facts_small.json"
TOKENIZER = checkpoint_folder() / "tokenizer.json"
TINY = {
    **CONFIG,
    "hidden_size": 64,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "moe_layer_end_index": 2,
    "moe_num_experts": 8,
    "moe_k": 2,
    "moe_intermediate_size": 16,
    "intermediate_size": 96,
}


@pytest.fixture
def tiny_model():
    model = Model(TINY)
    model.initialise(0)
    for moe in model.moe_layers:
        moe.bias.copy_(torch.linspace(-0.1, 0.1, 8))
    return model


def step_by_step(model, ids, num_prefill):
    """Logits of the positions from num_prefill - 1 on, with the cache."""
    cache = model.new_cache(1, len(ids))
    places = torch.arange(len(ids))
    square = torch.ones(len(ids), len(ids)).tril().bool()
    ends = [num_prefill, *range(num_prefill + 1, len(ids) + 1)]
    logits = []
    begin = 0
    for end in ends:
        new = slice(begin, end)
        mask = square[None, new, :end]
        logits.append(model.step_(ids[None, new], places[None, new], cache, mask)[0])
        begin = end
    return torch.stack(logits)


@pytest.mark.parametrize("num_prefill", [1, 5, 12])
def test_packed_and_step_by_step_agree(tiny_model, num_prefill):
    ids = torch.randint(0, 4096, (12,), generator=torch.Generator().manual_seed(1))
    packed = packed_logits(tiny_model, [ids.tolist()])[0, num_prefill - 1 :]
    torch.testing.assert_close(
        step_by_step(tiny_model, ids, num_prefill), packed, atol=2e-5, rtol=1e-4
    )


def test_packed_documents_do_not_see_each_other(tiny_model):
    first, second = [5, 6, 7, 8], [9, 10, 11]
    alone = packed_logits(tiny_model, [second])[0]
    ids = torch.tensor(first + second)
    starts = torch.tensor([0, 4, 7], dtype=torch.int32)
    hidden_states, loads = tiny_model.packed(ids, starts, 7, torch.float32)
    together = F.linear(hidden_states, tiny_model.embed)[4:]
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    assert loads.sum(1).tolist() == [7 * 2] * 2  # seven tokens, two experts each


def test_empty_documents_are_skipped():
    q = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    full = causal_in_documents(q, q, q, torch.tensor([0, 3]), 3)
    with_empty = causal_in_documents(q, q, q, torch.tensor([0, 3, 3, 3]), 3)
    assert torch.equal(full, with_empty)


def test_the_bias_chooses_but_does_not_weigh(tiny_model):
    moe = tiny_model.moe_layers[0]
    moe.gate.data.zero_()  # every expert has probability 1/8
    moe.bias.copy_(torch.tensor([0, 0, 0, 0.9, 0, 0, 0.5, 0]))
    assert moe.route(torch.randn(1, 64)).tolist() == [pytest.approx([0, 0, 0, 0.5, 0, 0, 0.5, 0])]


def test_a_checkpoint_comes_back(tiny_model, tmp_path):
    save_checkpoint(tiny_model, tmp_path)
    loaded = load_checkpoint(tmp_path)
    expected, got = hub_tensors(tiny_model), hub_tensors(loaded)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert json.loads((tmp_path / "config.json").read_text()) == TINY


def test_a_missing_shard_is_named(tiny_model, tmp_path):
    save_checkpoint(tiny_model, tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"differ in \d+ tensors, the first model\."):
        load_checkpoint(tmp_path)


def test_the_built_in_checkpoint_has_the_parameters_of_its_card():
    model = load_checkpoint(checkpoint_folder())
    assert sum(p.numel() for p in model.parameters()) == 15_167_744
    assert sum(t.nbytes for t in hub_tensors(model).values()) == pytest.approx(30.5e6, rel=0.01)


def test_the_built_in_model_answers():
    rows = [*load_eval("countries")[:2], *load_eval("tool_call")[:1]]
    model = load_checkpoint(checkpoint_folder())
    loads = new_loads(model)
    replies = generate(model, Tokenizer.from_file(str(TOKENIZER)), rows, loads=loads)
    assert [correct(row, reply) for row, reply in zip(rows, replies, strict=True)] == [True] * 3
    assert (loads.sum(1) == loads.sum(1)[0]).all()


def test_batched_replies_equal_single_ones():
    rows = random.Random(0).sample(load_eval("compare"), 3)
    model = load_checkpoint(checkpoint_folder())
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    together = generate(model, tokenizer, rows)
    assert together == [generate(model, tokenizer, [row])[0] for row in rows]


def test_orthogonalize_brings_singular_values_near_one():
    matrices = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert 0.6 < values.min() < values.max() < 1.3


def test_muon_asks_for_a_gradient():
    muon = Muon([torch.nn.Parameter(torch.zeros(2, 2))])
    with pytest.raises(ValueError, match="no gradient"):
        muon.step(0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    size = ["--tokens", "256", "--workers", "1", "--config", str(folder / "tiny.json")]
    schedule = ["--steps", "3", "--warmup", "1", "--eager"]
    train.main(["--facts", str(FACTS), "--out", str(folder), *size, *schedule])
    return folder


def test_training_writes_a_checkpoint_that_loads(trained):
    start = Model(TINY)
    start.initialise(0)
    model = load_checkpoint(trained)
    before, after = hub_tensors(start), hub_tensors(model)
    assert all(not torch.equal(before[name], after[name]) for name in before if "proj" in name)
    log = json.loads((trained / "train_log.json").read_text())
    assert (log["steps"], log["tokens"]) == (3, 768)


def test_training_moves_the_bias_against_the_load(trained):
    for moe in load_checkpoint(trained).moe_layers:
        assert 0 < moe.bias.abs().max() <= 3 * 0.001 + 1e-6


def test_evaluate_writes_its_results(trained, tmp_path, capsys):
    (trained / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    out = tmp_path / "results.json"
    evaluate_main(
        ["--checkpoint", str(trained), "--skills", "echo", "--limit", "2", "--out", str(out)]
    )
    results = json.loads(out.read_text())
    assert results["echo"]["items"] == 2
    assert results["perplexity"] > 100  # three steps teach nothing
    assert "echo" in capsys.readouterr().out
