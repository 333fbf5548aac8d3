"""Experts that move beside the tokens of a reply: its text is that of one in which none moved."""

import itertools

import pytest
import torch

from erniechat.generation.generate import Limits, decode
from erniechat.generation.sampling import Sampler
from quant.experts.adaptation import AdaptationPolicy
from quant.experts.adapter import ADAPT_EVERY, ExpertAdapter
from tests.cuda.test_device_step import CONFIG, HAS_CUDA
from tests.cuda.test_growth import MOST, make

pytestmark = pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")


def pairs_of(store, generator):
    """Four of those in RAM, each for one on the GPU."""
    outside = [key for key in sorted(store.pinned) if store.is_in_ram(key)]
    resident = sorted(store.resident)
    order = torch.randperm(len(resident), generator=generator).tolist()
    return list(zip(outside, (resident[i] for i in order), strict=False))[:4]


def reply(decoder, kv_cache, num_tokens, between):
    """A prompt in two chunks, and greedy tokens; between two of them something may be done."""
    with torch.inference_mode():
        decoder.forward(list(range(20)), kv_cache)
        logits = decoder.forward(list(range(30, 50)), kv_cache)[-1]
    limits = Limits((), num_tokens, 96)
    sampler = Sampler(0.0, repetition_penalty=1.3)
    found = []
    for token_id in decode(
        decoder, kv_cache, logits, sampler, limits, torch.Generator(), lambda: False
    ):
        between()
        found.append(token_id)
    return found


def mover(store):
    """Asks for other pairs whenever nothing moves, and goes on between all tokens."""
    generator = torch.Generator().manual_seed(0)

    def between():
        if store.moves.is_idle:
            store.moves.ask(pairs_of(store, generator))
        store.moves.advance()

    return between


@pytest.mark.parametrize("planned", [MOST, 8])
def test_a_reply_has_the_same_text_while_experts_move(planned):
    """With the smaller cache experts also leave for it in between."""
    moving, still = make(planned), make(MOST)
    caches = moving.new_kv_cache(MOST), still.new_kv_cache(MOST)
    texts = [
        reply(moving, caches[0], 60, mover(moving.experts)),
        reply(still, caches[1], 60, lambda: None),
    ]
    assert texts[0] == texts[1]
    assert moving.experts.moves.num_done > 10
    held = len(caches[0])
    assert torch.equal(caches[0].data[:, :, :, :held], caches[1].data[:, :, :, :held])
    for decoder in (moving, still):
        decoder.experts.close()


def test_logits_stay_close_where_the_cpu_runs_who_left():
    moving, still = make(MOST, cpu_share=1.0), make(MOST, cpu_share=1.0)
    caches = moving.new_kv_cache(MOST), still.new_kv_cache(MOST)
    between = mover(moving.experts)
    for token_id in itertools.islice(itertools.cycle(range(40, 90)), 60):
        logits = []
        for decoder, kv_cache in zip((moving, still), caches, strict=True):
            with torch.inference_mode():
                logits.append(decoder.forward([token_id], kv_cache)[-1])
        between()
        assert float((logits[0] - logits[1]).norm() / logits[1].norm()) < 0.03
    assert moving.experts.moves.num_done > 20
    for decoder in (moving, still):
        decoder.experts.close()


def test_a_reply_that_is_broken_off_leaves_everybody_where_the_next_one_finds_them():
    moving, still = make(MOST), make(MOST)
    kv_cache, other = moving.new_kv_cache(MOST), still.new_kv_cache(MOST)
    expected = reply(still, other, 40, lambda: None)
    for after in range(1, 9):
        left, go_on = after, mover(moving.experts)

        def between() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            go_on()  # noqa: B023  # of this round

        with pytest.raises(KeyboardInterrupt):
            reply(moving, kv_cache, 40, between)
        kv_cache.forget_from(0)
        assert reply(moving, kv_cache, 40, lambda: None) == expected
        kv_cache.forget_from(0)
    moving.experts.close()
    still.experts.close()


def test_nothing_between_two_tokens_waits_for_the_device():
    decoder = make(MOST)
    store = decoder.experts
    adapter = ExpertAdapter(
        store, CONFIG.moe_layers, None, 0.0, AdaptationPolicy(horizon_tokens=10**9)
    )
    store.moves.exchange(pairs_of(store, torch.Generator().manual_seed(0)))
    hot = min(store.pinned)
    store.routing_counts[hot] += 1000
    torch.cuda.synchronize()
    done, num_tokens = store.moves.num_done, ADAPT_EVERY - 1
    while store.moves.num_done == done:
        num_tokens += 1
        assert num_tokens < 2 * ADAPT_EVERY
        torch.cuda._sleep(200_000_000)  # a tenth of a second: a token that is long under way
        mark = store.lanes.main.mark()
        adapter.follow(num_tokens)
        assert not mark.query()
        mark.synchronize()
        torch.cuda.synchronize()
    assert hot in store.resident
    store.close()
