"""A cache that grows into the experts' memory: on a GPU, or as far as Triton's interpreter goes."""

import pytest
import torch

from erniechat.generation.generate import Limits, decode
from erniechat.generation.sampling import Sampler
from erniechat.model import assembly
from erniechat.model.conversion import Formats
from erniechat.model.disk_assembly import Residency
from erniechat.model.expert_assembly import ExpertPlaces
from erniechat.model.families import FAMILIES
from erniechat.model.synthetic import random_weights
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.experts import host_pool
from quant.experts.placement import ExpertKey
from quant.formats import FORMATS
from quant.kernels import backend_for
from quant.kernels.native.library import find_library
from tests.cuda.test_device_step import (
    CONFIG,
    DEVICE,
    HAS_CUDA,
    pytestmark,  # noqa: F401  # the same conditions
)

if isinstance(find_library(), str):
    pytest.skip("the native library is not built", allow_module_level=True)

needs_gpu = pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
KEYS = [ExpertKey(i, j) for i in CONFIG.moe_layers for j in range(8)]
PLENTY = 1 << 40
LONGEST = 64  # of 1,536 bytes each a token; an expert has 13,056, and 12 may leave


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr("erniechat.model.lent_memory.LEAST_STEP", 5)


def make(planned, num_hosted=4, cpu_share=0.0, folder=None):
    """A decoder of random weights whose cache has so many tokens' memory of its own.

    With a folder there is no RAM for experts that leave, and a copy there to read them from.
    """
    backend = backend_for("nf4", DEVICE, "triton" if HAS_CUDA else "reference")
    formats = Formats(FORMATS["nf4"], FORMATS["int8"], backend, backend)
    weights = random_weights(CONFIG, FAMILIES["ernie4_5_moe"], formats)
    places = ExpertPlaces(
        ram=KEYS[:num_hosted],
        cpu_share=cpu_share,
        prompt_cpu_share=cpu_share,
        cache_tokens=planned,
        ram_nbytes=0 if folder else PLENTY,
        ram_free=lambda: PLENTY,
    )
    residency = Residency(4) if folder else None
    given = copied(weights, folder) if folder else weights
    return assembly._assemble_pooled(
        CONFIG, given, formats, DEVICE, torch.bfloat16, places, residency
    )


def copied(weights, folder):
    """The same weights as a copy on disk."""
    with CopyWriter(folder, {}) as writer:
        for name in weights:
            writer[name] = weights[name]
        writer.finish()
    return QuantizedCopy(folder)


def launched(decoder, token_id, kv_cache):
    """Logits of the launches of one token, outside of a graph."""
    step = decoder.step.step
    kv_cache.append_tokens([token_id])
    step.state.copy_(torch.tensor([len(kv_cache) - 1, *kv_cache.storage]))
    step.token.fill_(token_id)
    step.forward(96)
    return step.logits.cpu().clone()


@pytest.mark.parametrize("cpu_share", [0.0, 1.0])
def test_logits_are_the_same_while_experts_leave(cpu_share):
    """Whoever runs an expert; where only the GPU does, to the last bit."""
    growing, whole = make(1, cpu_share=cpu_share), make(LONGEST, cpu_share=cpu_share)
    caches = growing.new_kv_cache(LONGEST), whole.new_kv_cache(LONGEST)
    before = len(growing.experts.resident)
    generator = torch.Generator().manual_seed(0)
    num_tokens = 60 if HAS_CUDA else 3  # the second and third make experts leave
    for token_id in torch.randint(0, 96, (num_tokens,), generator=generator).tolist():
        one, other = launched(growing, token_id, caches[0]), launched(whole, token_id, caches[1])
        if cpu_share:
            assert float((one - other).norm() / other.norm()) < 0.03
        else:
            assert torch.equal(one, other)
    growing.experts.server.check()
    assert len(growing.experts.resident) < before == len(whole.experts.resident)
    for decoder in (growing, whole):
        decoder.experts.close()


def reply(decoder, kv_cache, num_tokens):
    """A prompt in two chunks, and greedy tokens that the device draws itself."""
    with torch.inference_mode():
        decoder.forward(list(range(20)), kv_cache)
        logits = decoder.forward(list(range(30, 50)), kv_cache)[-1]
    limits = Limits((), num_tokens, 96)
    sampler = Sampler(0.0, repetition_penalty=1.3)
    return list(
        decode(decoder, kv_cache, logits, sampler, limits, torch.Generator(), lambda: False)
    )


MOST = 100  # a prompt of 40 and 60 tokens: fewer than the 110 for which all experts make room


@needs_gpu
def test_a_reply_that_grows_has_the_tokens_of_one_that_had_the_room():
    growing, whole = make(8), make(MOST)
    caches = growing.new_kv_cache(MOST), whole.new_kv_cache(MOST)
    texts = [reply(d, c, 60) for d, c in zip((growing, whole), caches, strict=True)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 60
    growth = caches[0].take_growth()
    assert growth.num_experts == 12 - len(growing.experts.resident) > 0
    held = len(caches[0])
    assert held == len(caches[1]) == MOST - 1
    assert torch.equal(caches[0].data[:, :, :, :held], caches[1].data[:, :, :, :held])


@needs_gpu
def test_where_ram_is_full_experts_leave_for_the_disk_and_the_reply_goes_on(tmp_path):
    growing, whole = make(8, folder=tmp_path / "copy"), make(MOST)
    cache, other = growing.new_kv_cache(MOST), whole.new_kv_cache(MOST)
    assert not growing.experts.has_unaddressable
    text, expected = reply(growing, cache, 60), reply(whole, other, 60)
    assert growing.experts.has_unaddressable
    assert len(text) == len(expected) == 60
    # The CPU runs who left, in 8-bit activations: the keys of the same tokens are close to equal.
    pairs = enumerate(zip(text, expected, strict=True))
    same = 40 + next((i for i, (token_id, other_id) in pairs if token_id != other_id), 59)
    one, two = (c.data[:, :, :, :same].float() for c in (cache, other))
    assert float((one - two).norm() / two.norm()) < 0.03
    with torch.inference_mode():  # a prompt, layer by layer now
        cache.forget_from(40)
        other.forget_from(40)
        ids = list(range(20, 50))
        found, known = growing.forward(ids, cache), whole.forward(ids, other)
    assert float((found - known).norm() / known.norm()) < 0.05
    cache.forget_from(0)
    cache.shrink(1)
    assert not growing.experts.has_unaddressable
    assert growing.step.reads(20)
    for decoder in (growing, whole):
        decoder.experts.close()


@needs_gpu
def test_where_no_expert_can_leave_any_more_the_reply_ends():
    decoder = make(8)
    kv_cache = decoder.new_kv_cache(10_000)
    most = kv_cache.most_tokens
    text = reply(decoder, kv_cache, 10_000)
    assert decoder.experts.resident == set()
    assert len(kv_cache) == kv_cache.max_tokens == most
    assert len(text) == most - 40 + 1


@needs_gpu
def test_growing_takes_no_more_of_the_gpu():
    decoder = make(8)
    kv_cache = decoder.new_kv_cache(10_000)
    reply(decoder, kv_cache, 3)  # graphs are captured, kernels compiled
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for num_tokens in range(len(kv_cache) + 8, kv_cache.most_tokens, 8):
        kv_cache.reserve(num_tokens)
    torch.cuda.synchronize()
    # Tables on their way, some kilobytes; the cache itself has become as large as it could.
    assert torch.cuda.max_memory_allocated() - before < 1 << 20
    assert kv_cache.nbytes > 12 * decoder.experts.pool.slot_nbytes


@needs_gpu
def test_experts_return_to_their_slots_and_the_text_stays():
    decoder, whole = make(8), make(MOST)
    kv_cache = decoder.new_kv_cache(MOST)
    first = reply(decoder, kv_cache, 60)
    kv_cache.forget_from(0)
    kv_cache.shrink(1)
    assert len(decoder.experts.resident) > 4
    assert reply(decoder, kv_cache, 60) == first == reply(whole, whole.new_kv_cache(MOST), 60)


@needs_gpu
def test_memory_that_cannot_be_pinned_is_told_and_hurts_nothing_else():
    memory = torch.empty(1 << 16, dtype=torch.uint8)
    unpin = host_pool._pin(memory, DEVICE)
    with pytest.raises(QuantError, match="cannot be pinned"):
        host_pool._pin(memory, DEVICE)  # it is already
    assert float(torch.ones(8, device=DEVICE).sum()) == 8.0  # no error waits for the next kernel
    unpin()
    host_pool._pin(memory, DEVICE)()
