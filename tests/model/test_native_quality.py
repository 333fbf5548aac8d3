"""What int8 activations in the native kernels cost the built-in model, beside what 4 bits cost."""

import math

import pytest
import torch
from torch import Tensor

from erniechat.engine import Engine
from erniechat.loader import load_engine
from erniechat.mini.scoring import heldout_documents
from erniechat.options import LoadOptions
from quant.kernels.native import library

FOUND = library.find_library()
NUM_LINES = 64  # 1,925 tokens, over which the excess scatters by a percent


def log_probabilities(engine: Engine, ids: list[int]) -> Tensor:
    kv_cache = engine.decoder.new_kv_cache(len(ids))
    logits = engine.decoder.forward(ids[:-1], kv_cache, all_logits=True)
    return logits[:, : engine.prompts.tokenizer.num_tokens].log_softmax(-1)


@pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))
def test_int8_activations_cost_little_beside_four_bits():
    # Over 12,840 tokens: KL 0.1297 against 0.1270, in bfloat16 0.1302 against 0.1284; perplexity
    # 20.74 against 20.76. With 64 steps of activations instead of 127 it is 8 % more.
    exact = load_engine(LoadOptions(quant="bf16", dtype="float32"))
    engines = {
        kernels: load_engine(LoadOptions(quant="nf4", kernels=kernels, dtype="float32"))
        for kernels in ("reference", "native")
    }
    tokenizer = exact.prompts.tokenizer
    begin = [tokenizer.token_id("<s>") or 0]
    kl, nll = dict.fromkeys(engines, 0.0), dict.fromkeys(engines, 0.0)
    num_tokens = 0
    for document in heldout_documents(num_lines=NUM_LINES):
        ids = [*begin, *tokenizer.encode(document)]
        num_tokens += len(ids) - 1
        expected = log_probabilities(exact, ids)
        for name, engine in engines.items():
            actual = log_probabilities(engine, ids)
            kl[name] += float((expected.exp() * (expected - actual)).sum())
            nll[name] -= float(actual.gather(-1, torch.tensor(ids[1:])[:, None]).sum())
    assert 0.05 < kl["reference"] / num_tokens < 0.3
    assert kl["native"] / kl["reference"] == pytest.approx(1.02, abs=0.025)
    assert math.exp((nll["native"] - nll["reference"]) / num_tokens) == pytest.approx(1, abs=0.01)
