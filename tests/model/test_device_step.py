"""Captured graphs when something fails: the next token goes where it belongs. No GPU is needed."""

from types import SimpleNamespace

import pytest
import torch

from erniechat.generation.generate import drawing_of
from erniechat.generation.sampling import Sampler
from erniechat.model import device_step
from erniechat.model.device_step import CapturedStep
from erniechat.model.kv_cache import KVCache
from erniechat.model.machine_costs import BUCKETS
from quant.errors import QuantError
from quant.experts.tiered import TieredExpertStore

CPU = torch.device("cpu")
VOCAB = 7


class Server:
    """Fails as often as it is told to."""

    failures = 0

    def wake(self) -> None:
        """Nobody sleeps."""

    def check(self) -> None:
        if self.failures:
            self.failures -= 1
            raise QuantError("the disk is gone")


class Device:
    """In the place of launches and their graph: a replay writes its token into the cache."""

    def __init__(self, kv_cache: KVCache) -> None:
        self.cache = kv_cache
        sizes = SimpleNamespace(
            vocab_size=VOCAB, num_layers=1, num_kv_heads=1, head_dim=2, hidden_size=2
        )
        self.step = SimpleNamespace(
            sizes=sizes,
            state=torch.zeros(3, dtype=torch.int64),
            token=torch.zeros(1, dtype=torch.int64),
            seen=torch.zeros(VOCAB, dtype=torch.int8),
            penalty=torch.ones(1),
            logits=torch.zeros(VOCAB),
            _experts=None,
        )

    def replay(self) -> None:
        position, address, _ = self.step.state.tolist()
        assert address == self.cache.storage[0], "a token would be written to other memory"
        self.cache.data[:, :, :, position] = int(self.step.token)
        self.step.state[0] += 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    cache = KVCache(1, 1, 2, 64, dtype=torch.float32)
    device = Device(cache)
    captured = CapturedStep(device.step, None, CPU)
    monkeypatch.setattr(device_step, "capture", lambda launch, keep, where: device)
    monkeypatch.setattr(device_step, "sleep_until_done", lambda where: None)
    return captured, device, cache


def read(captured: CapturedStep, cache: KVCache, token_id: int) -> None:
    cache.append_tokens([token_id])
    captured.read([token_id], cache)


def held(cache: KVCache) -> list[float]:
    return cache.data[0, 0, 0, : len(cache), 0].tolist()


def test_a_prompt_is_captured_only_while_no_expert_is_on_disk():
    store = object.__new__(TieredExpertStore)
    store.server, store.tail = Server(), SimpleNamespace(is_empty=True)
    captured = CapturedStep(None, SimpleNamespace(), CPU, store)
    assert [captured.reads(n) for n in (0, 1, 2)] == [False, True, True]
    drawing = drawing_of(Sampler(), VOCAB, seed=0)
    assert len(captured.preparations(drawing)) == 1 + len(BUCKETS)
    store.tail.is_empty = False
    assert [captured.reads(n) for n in (0, 1, 2)] == [False, True, False]
    assert len(captured.preparations(drawing)) == 1  # a capture would run it, too
    store.tail = None
    assert captured.reads(2)


def test_tokens_follow_each_other(made):
    captured, _, cache = made
    for token_id in (5, 6, 4):
        read(captured, cache, token_id)
    assert held(cache) == [5, 6, 4]


def test_after_a_graph_for_which_there_was_no_memory_tokens_go_where_they_belong(
    made, monkeypatch: pytest.MonkeyPatch
):
    captured, device, cache = made
    read(captured, cache, 5)
    whole = device_step.capture

    def too_large(launch, keep, where):
        assert device.step.state[1] != cache.storage[0]  # the scratch
        raise torch.OutOfMemoryError("for a test")

    monkeypatch.setattr(device_step, "capture", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        captured.graph("another", lambda: None)
    monkeypatch.setattr(device_step, "capture", whole)
    read(captured, cache, 6)
    assert held(cache) == [5, 6]


def test_a_token_that_could_not_be_launched_does_not_move_the_next(made):
    captured, _, cache = made
    captured._server = server = Server()
    read(captured, cache, 5)
    server.failures = 1
    cache.append_tokens([6])
    with pytest.raises(QuantError, match="the disk is gone"):
        captured.read([6], cache)
    # A prompt of two is read by others meanwhile: the next token comes where one was counted.
    cache.data[:, :, :, 1] = 3
    cache.token_ids[1:] = [3]
    read(captured, cache, 4)
    assert held(cache) == [5, 3, 4]
