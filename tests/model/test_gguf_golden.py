"""Greedy replies to a GGUF file of the built-in model are llama.cpp's, token for token.

What llama.cpp does lies in ``gguf_golden.json``, which `gguf_llama` writes.
"""

import json
from pathlib import Path

import pytest
import torch

from erniechat.engine import Engine
from erniechat.loader import load_engine
from erniechat.mini import checkpoint_folder
from erniechat.options import LoadOptions
from tests.model.gguf_files import write_gguf
from tests.model.gguf_replies import reply_ids

GOLDEN = json.loads((Path(__file__).parent / "gguf_golden.json").read_text("utf-8"))
MAX_NEW_TOKENS = 64  # of the golden replies


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = write_gguf(tmp_path_factory.mktemp("golden") / "mini.gguf", checkpoint_folder(), "F32")
    return load_engine(LoadOptions(model=str(path), quant="bf16", dtype="float32", copy=False))


def test_prompts_have_the_tokens_of_llama_cpp(engine: Engine) -> None:
    assert len(GOLDEN) >= 50
    for row in GOLDEN:
        assert engine.prompts.tokenizer.encode(row["prompt"]) == row["prompt_ids"]


@torch.inference_mode()
def test_every_next_token_is_the_one_of_llama_cpp(engine: Engine) -> None:
    """Each reply read at once: a greedy reply is the same if every next token is."""
    for row in GOLDEN:
        ids = [*row["prompt_ids"], *row["reply_ids"][:-1]]
        cache = engine.decoder.new_kv_cache(len(ids))
        logits = engine.decoder.forward(ids, cache, all_logits=True)
        next_ids = logits[len(row["prompt_ids"]) - 1 :].argmax(-1).tolist()
        assert next_ids == row["reply_ids"], row["prompt"]


def test_replies_made_token_by_token_are_those_of_llama_cpp(engine: Engine) -> None:
    stop_ids = engine.prompts.tokenizer.turn_end_ids.values()
    for row in GOLDEN[::10]:
        found = reply_ids(engine, row["prompt_ids"], MAX_NEW_TOKENS, stop_ids)
        assert found == row["reply_ids"], row["prompt"]
