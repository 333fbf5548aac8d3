"""The thread that answers a GPU's requests for experts, asked from Python in the GPU's place."""

import time

import pytest
import torch

from quant.errors import QuantError
from quant.formats import FORMATS
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend
from quant.kernels.native.library import find_library
from quant.kernels.native.serve import MAX_ASKED, MAX_ROWS, VECTOR_OFFSET, ExpertServer

HIDDEN, WIDTH, NUM_EXPERTS = 128, 64, 8
pytestmark = pytest.mark.skipif(
    isinstance(find_library(), str), reason="the native library is not built"
)


def make_server(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int):
        return FORMATS["nf4"].quantize(torch.randn(rows, columns, generator=generator) * 0.1)

    layer = [
        ExpertWeights(matrix(2 * WIDTH, HIDDEN), matrix(HIDDEN, WIDTH)) for _ in range(NUM_EXPERTS)
    ]
    known = [*layer[:-1], None]
    server = ExpertServer({1: known}, 3, HIDDEN, NativeBackend(), pinned=False)
    return server, layer, generator


def ask(server, number, ids, weights, vector, layer_idx=1):
    """Write a request as the GPU does, the number last, and wait for its answer."""
    words = server.request[:VECTOR_OFFSET].view(torch.int32)
    floats = server.request.view(torch.float32)
    words[1], words[2], words[3] = layer_idx, len(ids), 0
    words[4 : 4 + min(len(ids), MAX_ASKED)] = torch.tensor(ids[:MAX_ASKED], dtype=torch.int32)
    floats[20 : 20 + len(weights)] = torch.tensor(weights)
    floats[VECTOR_OFFSET // 4 :] = vector
    server.answer[VECTOR_OFFSET:].view(torch.float32).fill_(float("nan"))
    return send(server, number)


def send(server, number):
    words = server.request[:VECTOR_OFFSET].view(torch.int32)
    words[0] = number
    done = server.answer[:4].view(torch.int32)
    end = time.monotonic() + 60
    while int(done) != number:
        assert time.monotonic() < end, "no answer"
    return server.answer[VECTOR_OFFSET:].view(torch.float32).clone()


def test_answers_equal_the_backend():
    server, layer, generator = make_server()
    for number in range(1, 30):
        count = 1 + number % 6
        ids = torch.randperm(NUM_EXPERTS - 1, generator=generator)[:count].tolist()
        weights = torch.rand(count, generator=generator).tolist()
        vector = torch.randn(HIDDEN, generator=generator)
        expected = NativeBackend().routed_experts(
            vector[None], torch.tensor([ids]), torch.tensor([weights]), layer
        )[0]
        assert torch.equal(ask(server, number, ids, weights, vector), expected)
    assert server.use[0] == 29
    server.close()


def test_asleep_it_still_answers_and_wakes():
    server, _, generator = make_server()
    vector = torch.randn(HIDDEN, generator=generator)
    first = ask(server, 1, [0], [1.0], vector)
    time.sleep(0.05)  # past its spinning
    assert torch.equal(ask(server, 2, [0], [1.0], vector), first)
    time.sleep(0.05)
    server.wake()
    assert torch.equal(ask(server, 3, [0], [1.0], vector), first)
    server.close()


@pytest.mark.parametrize(
    ("ids", "layer_idx"),
    [([7], 1), ([8], 1), ([-1], 1), ([0], 0), ([0], 3), ([0] * 17, 1)],
    ids=["not there", "too high", "negative", "dense layer", "no such layer", "too many"],
)
def test_bad_requests_give_zeros_and_an_error(ids, layer_idx):
    server, _, generator = make_server()
    vector = torch.randn(HIDDEN, generator=generator)
    answer = ask(server, 1, ids, [1.0] * min(len(ids), 16), vector, layer_idx)
    assert not answer.any()
    with pytest.raises(QuantError, match="does not have"):
        server.check()
    server.check()  # told once
    server.close()


def test_an_expert_can_be_placed_later():
    server, layer, generator = make_server()
    vector = torch.randn(HIDDEN, generator=generator)
    server.place(1, 7, layer[7])
    expected = NativeBackend().routed_experts(
        vector[None], torch.tensor([[7]]), torch.tensor([[0.5]]), layer
    )[0]
    assert torch.equal(ask(server, 1, [7], [0.5], vector), expected)


def test_not_finite_is_reported():
    server, _, _ = make_server()
    ask(server, 1, [0], [1.0], torch.full((HIDDEN,), float("inf")))
    with pytest.raises(QuantError, match="NaN or infinite"):
        server.check()


def test_rows_equal_the_backend():
    server, layer, generator = make_server()
    words, blocks = server.request[:VECTOR_OFFSET].view(torch.int32), server.blocks
    for number, count in enumerate((1, 40, MAX_ROWS), 1):
        blocks.rows.copy_(torch.randn(MAX_ROWS, HIDDEN, generator=generator))
        blocks.ids.copy_(torch.randint(0, 7, (MAX_ROWS,), generator=generator))
        blocks.weights.copy_(torch.rand(MAX_ROWS, generator=generator))
        blocks.answers.fill_(float("nan"))
        words[1], words[3] = 1, count
        send(server, number)
        expected = NativeBackend().routed_experts(
            blocks.rows[:count], blocks.ids[:count, None], blocks.weights[:count, None], layer
        )
        assert torch.equal(blocks.answers[:count], expected)
    assert server.use.num_rows == 41 + MAX_ROWS
    server.check()


@pytest.mark.parametrize(("count", "expert_idx"), [(-1, 0), (MAX_ROWS + 1, 0), (3, 7), (3, -1)])
def test_bad_rows_give_zeros_and_an_error(count, expert_idx):
    server, _, _ = make_server()
    words = server.request[:VECTOR_OFFSET].view(torch.int32)
    server.blocks.ids.fill_(expert_idx)
    server.blocks.answers.fill_(1.0)
    words[1], words[3] = 1, count
    send(server, 1)
    assert not server.blocks.answers.any()
    with pytest.raises(QuantError, match="does not have"):
        server.check()
