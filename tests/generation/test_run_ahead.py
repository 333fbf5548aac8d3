"""Decoding over a device that is one token ahead, played on the CPU by a table."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from erniechat.generation.generate import Limits, decode
from erniechat.generation.sampling import Sampler
from erniechat.model.device_run import DeviceRun
from erniechat.model.kv_cache import FIRST_CAPACITY, KVCache
from erniechat.model.run_ahead import Drawing, TokenRun
from quant.errors import QuantError

NUM_TOKENS = 5000
NO_STOP: frozenset[int] = frozenset()


class Post:
    """Ids in the order they were sent; those not yet launched cannot be waited for."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.num_taken = 0
        self.most_waiting = 0

    def post(self, token: Tensor) -> None:
        self.ids.append(int(token))
        self.most_waiting = max(self.most_waiting, len(self.ids) - self.num_taken)

    def take(self) -> int:
        self.num_taken += 1
        return self.ids[self.num_taken - 1]


class Device:
    """After token n comes n + 1. What is read leaves its id in the cache, where it was placed."""

    def __init__(self) -> None:
        self.token = torch.zeros(1, dtype=torch.int64)
        self.post = Post()
        self.num_replays = 0
        self.drawings: list[Drawing] = []
        self._held: tuple[KVCache, int] | None = None

    def forward(self, input_ids: list[int], kv_cache: KVCache) -> Tensor:
        begin = len(kv_cache)
        kv_cache.append_tokens(input_ids)
        for offset, token_id in enumerate(input_ids):
            kv_cache.data[:, :, :, begin + offset] = token_id
        logits = torch.zeros(1, NUM_TOKENS)
        logits[0, input_ids[-1] + 1] = 9.0
        return logits

    def start_run(self, drawing: Drawing, logits: Tensor, kv_cache: KVCache) -> TokenRun | None:
        self.drawings.append(drawing)
        self.token.fill_(int(logits.argmax()))
        self.post = Post()
        return DeviceRun(self, kv_cache, self._place, self._replay, self.post, self._check)

    def _check(self, seconds: float) -> None:
        """Nothing fails here."""

    def _place(self, kv_cache: KVCache, position: int) -> None:
        if position >= kv_cache.storage[1]:
            raise AssertionError(f"position {position} is beyond {kv_cache.storage}")
        self._held = kv_cache, position

    def _replay(self) -> None:
        assert self._held is not None
        kv_cache, position = self._held
        kv_cache.data[:, :, :, position] = int(self.token)
        self.token.add_(1)
        self.num_replays += 1


class HostOnly(Device):
    def start_run(self, drawing: Drawing, logits: Tensor, kv_cache: KVCache) -> TokenRun | None:
        return None


def reply(
    device: Device,
    kv_cache: KVCache,
    prompt: list[int],
    limits: Limits,
    cancelled: Callable[[], bool] = lambda: False,
    sampler: Sampler | None = None,
) -> list[int]:
    logits = device.forward(prompt[kv_cache.keep_prefix(prompt) :], kv_cache)[-1]
    generator = torch.Generator().manual_seed(11)
    greedy = sampler or Sampler(temperature=0)
    return list(decode(device, kv_cache, logits, greedy, limits, generator, cancelled))


def new_cache(max_tokens: int = 4096) -> KVCache:
    return KVCache(1, 1, 2, max_tokens, dtype=torch.float32)


def held(kv_cache: KVCache) -> list[int]:
    """The ids that were computed for the places the cache counts."""
    return [int(x) for x in kv_cache.data[1, 0, 0, : len(kv_cache), 1]]


@pytest.mark.parametrize(
    ("limits", "expected", "num_replays"),
    [
        (Limits({10}, 99, NUM_TOKENS), [7, 8, 9, 10], 4),  # the stop token was read in vain
        (Limits({7}, 99, NUM_TOKENS), [7], 1),
        (Limits(NO_STOP, 3, NUM_TOKENS), [7, 8, 9], 2),  # known to be the last: not read
        (Limits(NO_STOP, 1, NUM_TOKENS), [7], 0),
        (Limits(NO_STOP, 0, NUM_TOKENS), [], 0),
    ],
)
def test_a_reply_ends_where_it_would_without_running_ahead(limits, expected, num_replays):
    device, kv_cache, plain = Device(), new_cache(), new_cache()
    assert reply(device, kv_cache, [5, 6], limits) == expected
    assert reply(HostOnly(), plain, [5, 6], limits) == expected
    assert device.num_replays == num_replays
    assert kv_cache.token_ids == plain.token_ids
    assert held(kv_cache) == kv_cache.token_ids


def test_the_device_is_ahead_by_one_token_and_no_more():
    device = Device()
    reply(device, new_cache(), [5], Limits(NO_STOP, 40, NUM_TOKENS))
    assert device.post.most_waiting == 2


def test_cancelling_stops_after_the_current_token():
    device, kv_cache = Device(), new_cache()
    limits = Limits(NO_STOP, 99, NUM_TOKENS)
    written = reply(device, kv_cache, [5], limits, lambda: device.post.num_taken == 4)
    assert written == [6, 7, 8, 9]
    assert held(kv_cache) == kv_cache.token_ids == [5, 6, 7, 8]


def test_a_cache_that_grows_below_the_device_keeps_what_was_computed():
    device, kv_cache = Device(), new_cache()
    prompt = list(range(FIRST_CAPACITY - 3))
    written = reply(device, kv_cache, prompt, Limits(NO_STOP, 9, NUM_TOKENS))
    assert written == list(range(len(prompt), len(prompt) + 9))
    assert kv_cache.storage[1] == 2 * FIRST_CAPACITY
    assert held(kv_cache) == list(range(len(prompt) + 8))


def test_a_reply_that_fills_the_context_does_not_run_beyond_it():
    device, kv_cache = Device(), new_cache(max_tokens=12)
    written = reply(device, kv_cache, [1, 2, 3], Limits(NO_STOP, 9, NUM_TOKENS))
    assert written == list(range(4, 13))
    assert held(kv_cache) == list(range(1, 12))


@pytest.mark.parametrize("kind", [Device, HostOnly])
def test_where_memory_ends_before_the_context_does_the_reply_ends_too(kind):
    device, kv_cache = kind(), new_cache(max_tokens=6)
    written = reply(device, kv_cache, [1, 2, 3], Limits(NO_STOP, 99, NUM_TOKENS))
    assert written == [4, 5, 6, 7]
    assert held(kv_cache) == kv_cache.token_ids == [1, 2, 3, 4, 5, 6]


def test_turns_reuse_what_earlier_ones_computed_but_not_what_was_run_ahead():
    device, kv_cache = Device(), new_cache()
    first = reply(device, kv_cache, [5, 6], Limits({9}, 99, NUM_TOKENS))
    second = [5, 6, *first, 70, 71]
    assert reply(device, kv_cache, second, Limits(NO_STOP, 2, NUM_TOKENS)) == [72, 73]
    assert held(kv_cache) == [*second, 72]
    assert reply(device, kv_cache, [5, 30], Limits(NO_STOP, 2, NUM_TOKENS)) == [31, 32]
    assert held(kv_cache) == [5, 30, 31]


def test_a_reply_that_nobody_reads_to_its_end_leaves_a_cache_that_can_be_used():
    device, kv_cache = Device(), new_cache()
    logits = device.forward([5, 6], kv_cache)[-1]
    limits = Limits(NO_STOP, 99, NUM_TOKENS)
    ids = decode(
        device, kv_cache, logits, Sampler(temperature=0), limits, torch.Generator(), lambda: False
    )
    assert [next(ids), next(ids)] == [7, 8]
    ids.close()  # type: ignore[attr-defined]
    assert reply(device, kv_cache, [5, 6, 7, 8], Limits(NO_STOP, 2, NUM_TOKENS)) == [9, 10]
    assert held(kv_cache) == [5, 6, 7, 8, 9]


def test_the_device_is_told_how_to_draw():
    device = Device()
    sampler = Sampler(0.7, 5, 0.9, 0.1, 1.3)
    reply(device, new_cache(), [5], Limits(NO_STOP, 2, NUM_TOKENS), sampler=sampler)
    assert device.drawings == [Drawing(0.7, 5, 0.9, 0.1, 1.3, NUM_TOKENS, seed=11)]


class Rule:
    """A guide that forbids nothing."""

    def constrain(self, logits: Tensor) -> Tensor:
        return logits

    def accept(self, token_id: int) -> None:
        pass


def test_a_guide_sees_every_token_on_the_host():
    device, kv_cache = Device(), new_cache()
    logits = device.forward([5], kv_cache)[-1]
    limits = Limits(NO_STOP, 3, NUM_TOKENS)
    sampler = Sampler(temperature=0)
    ids = decode(
        device, kv_cache, logits, sampler, limits, torch.Generator(), lambda: False, [Rule()]
    )
    assert list(ids) == [6, 7, 8]
    assert device.drawings == []


class Failing(Device):
    """Reads garbage from its third replay on, and says so when an id is taken."""

    def _replay(self) -> None:
        super()._replay()
        if self.num_replays == 3:
            assert self._held is not None
            kv_cache, position = self._held
            kv_cache.data[:, :, :, position] = -1

    def _check(self, seconds: float) -> None:
        if self.num_replays == 4:  # the fourth runs while the third's id is waited for
            raise QuantError("the disk is gone")


def test_what_a_failure_left_in_the_cache_is_computed_again():
    device, kv_cache = Failing(), new_cache()
    logits = device.forward([10], kv_cache)[-1]
    limits = Limits(NO_STOP, 9, NUM_TOKENS)
    ids = decode(
        device, kv_cache, logits, Sampler(temperature=0), limits, torch.Generator(), lambda: False
    )
    assert [next(ids), next(ids), next(ids)] == [11, 12, 13]
    with pytest.raises(QuantError, match="the disk is gone"):
        next(ids)  # 14 was chosen from what the third replay left
    assert kv_cache.token_ids == [10, 11, 12]
    prompt = [10, 11, 12, 13, 50]
    assert reply(Device(), kv_cache, prompt, Limits(NO_STOP, 2, NUM_TOKENS)) == [51, 52]
    assert kv_cache.data[0, 0, 0, :5, 0].tolist() == prompt
