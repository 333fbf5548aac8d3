"""A linear layer with a quantized weight, and rows of a quantized embedding."""

import pytest
import torch

from quant.errors import QuantError
from quant.formats import FORMATS
from quant.kernels import backend_for
from quant.linear import QuantLinear, embed

CPU = torch.device("cpu")
WEIGHT = torch.tensor([[1.0, 2.0], [0.5, -127.0], [0.0, 4.0]])


def test_linear_multiplies_and_adds_its_bias():
    backend = backend_for("bf16", CPU)
    weight = backend.prepare(FORMATS["bf16"].quantize(WEIGHT))
    hidden_states = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    assert QuantLinear(weight, backend)(hidden_states).tolist() == [[3, -126.5, 4], [2, 1, 0]]
    bias = torch.tensor([1.0, 0.5, -4.0])
    with_bias = QuantLinear(weight, backend, bias)(hidden_states)
    assert with_bias.tolist() == [[4, -126, 0], [3, 1.5, -4]]


def test_linear_keeps_the_dtype_of_its_input():
    backend = backend_for("bf16", CPU)
    layer = QuantLinear(FORMATS["bf16"].quantize(WEIGHT), backend, torch.zeros(3))
    assert layer(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_embedding_looks_up_rows_in_any_order():
    ids = torch.tensor([2, 0, 2])
    rows = embed(FORMATS["bf16"].quantize(WEIGHT), ids, torch.float32)
    assert torch.equal(rows, WEIGHT[ids])
    # int8: row 1 has steps of 1, so 0.5 rounds to the even 0; row 0 steps of 2 / 127.
    rows = embed(FORMATS["int8"].quantize(WEIGHT), torch.tensor([1, 0]), torch.float32)
    assert rows[0].tolist() == [0.0, -127.0]
    assert rows[1].tolist() == pytest.approx([64 * 2 / 127, 2.0])
    assert embed(FORMATS["int8"].quantize(WEIGHT), ids, torch.bfloat16).dtype == torch.bfloat16


def test_embedding_in_a_4bit_format_is_refused():
    weight = FORMATS["nf4"].quantize(torch.ones(16, 64))
    with pytest.raises(QuantError, match="an embedding must be in bf16 or int8, got nf4"):
        embed(weight, torch.tensor([0]), torch.float32)
