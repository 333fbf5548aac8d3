"""Export: what transformers and bitsandbytes load is the model that is run here."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from erniechat.errors import UsageError
from erniechat.export import export
from erniechat.model.checkpoint import Checkpoint
from erniechat.options import LoadOptions
from tests.model.checkpoints import (
    DENSE,
    MOE,
    SPELLINGS,
    load,
    prefill_logits,
    random_ids,
    reference_model,
)

WIDE = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def likeness(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().float(), b.flatten().float(), 0))


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8", "bf16"])
@pytest.mark.parametrize("raw", [{**DENSE, **WIDE}, {**MOE, **WIDE}], ids=["dense", "moe"])
def test_transformers_computes_what_we_compute(tmp_path, raw, quant):
    folder = SPELLINGS["hub"](tmp_path / "model", raw, reference_model(raw))
    target = tmp_path / "exported"
    line = export(LoadOptions(model=str(folder), quant=quant, kernels="reference"), str(target))
    assert str(target) in line
    ids = random_ids(20, 208)
    ours = prefill_logits(load(folder, format_name=quant).decoder, ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("Linear4bit" in kinds) == (quant in ("nf4", "fp4"))
    assert ("Linear8bitLt" in kinds) == (quant == "int8")
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0]
    # LLM.int8 quantizes activations too; otherwise bfloat16 rounds values and scales.
    assert likeness(ours, theirs) > (0.99 if quant == "int8" else 0.998)
    if quant in ("nf4", "fp4"):
        exact = prefill_logits(load(folder).decoder, ids)
        assert likeness(ours, theirs) > likeness(ours, exact)


def test_what_is_exported_can_be_opened_here_again_with_the_same_codes(tmp_path):
    raw = {**MOE, **WIDE}
    folder = SPELLINGS["hub"](tmp_path / "model", raw, reference_model(raw))
    options = LoadOptions(model=str(folder), quant="nf4", kernels="reference")
    export(options, str(tmp_path / "exported"))
    assert Checkpoint(tmp_path / "exported").quantized_format == "nf4"
    ours, again = (load(f, format_name="nf4").weights for f in (folder, tmp_path / "exported"))
    assert set(ours) == set(again)
    for name in ("layers.1.qkv", "layers.0.mlp.gate_up", "layers.2.shared.down"):
        assert torch.equal(ours[name].parts["codes"], again[name].parts["codes"]), name
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


def test_a_folder_that_is_there_is_not_written_to(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="is there already; name a folder that is not"):
        export(LoadOptions(), str(tmp_path / "there"))
    assert list((tmp_path / "there").iterdir()) == []
