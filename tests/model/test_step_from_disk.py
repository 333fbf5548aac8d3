"""Decoding in native calls with experts on the disk: what it gives, whoever is in RAM."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import erniechat
from erniechat.model.assembly import assemble
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.delivery import convert
from erniechat.model.disk_assembly import Residency
from erniechat.model.families import family_of
from erniechat.model.kv_cache import KVCache
from erniechat.model.readings import plan_readings
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.experts.disk import DiskExpertStore
from quant.experts.placement import ExpertKey
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend, library
from tests.model.checkpoints import random_ids

FOUND = library.find_library()
pytestmark = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))

MINI = Path(erniechat.__file__).parent / "mini" / "checkpoint"
IDS = random_ids(40, 300, 11)
FEW, MANY = 9, 190  # slots; a token uses 28 of 224 experts, 4 in a layer

Build = Callable[..., Decoder]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The built-in model from a copy, with so many experts in RAM, or all if it is not said."""
    folder: Path = tmp_path_factory.mktemp("copies") / "copy"
    checkpoint = Checkpoint(MINI)
    family = family_of(checkpoint.config)
    config: ModelConfig = family.parse_config(checkpoint.config)
    backend = NativeBackend()
    formats = Formats(FORMATS["nf4"], FORMATS["int8"], backend, backend)
    with CopyWriter(folder, {}) as writer:
        convert(plan_readings(checkpoint, family, config), formats, writer)
        writer.finish()

    def decoder(
        num_slots: int | None = None, dtype: torch.dtype = torch.float32, **options: bool
    ) -> Decoder:
        residency = None if num_slots is None else Residency(num_slots, **options)
        copy = QuantizedCopy(folder)
        return assemble(config, copy, formats, torch.device("cpu"), dtype, residency=residency)

    return decoder


def store_of(decoder: Decoder) -> DiskExpertStore:
    assert isinstance(decoder.experts, DiskExpertStore)
    return decoder.experts


def in_ram(store: DiskExpertStore) -> list[ExpertKey]:
    keys = [ExpertKey(i, e) for i in store.layers for e in range(store.counts.shape[1])]
    return [key for key in keys if key in store]


def by_layer(decoder: Decoder) -> Decoder:
    decoder.step = None
    return decoder


def read_all(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Logits of each token, and the keys and values that were written."""
    kv_cache = decoder.new_kv_cache(len(IDS))
    logits = torch.cat([decoder.forward([token_id], kv_cache) for token_id in IDS])
    return logits, kv_cache.data[:, :, :, : len(IDS)].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_slots", [FEW, MANY])
def test_results_are_bit_for_bit_those_of_experts_in_ram(build: Build, num_slots: int, dtype):
    decoder, resident = build(num_slots, dtype), build(None, dtype)
    assert decoder.step is not None
    expected, found = read_all(resident), read_all(decoder)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(decoder.experts.counts, resident.experts.counts)
    assert sum(use.experts_run for use in decoder.experts.uses) == 28 * len(IDS)


def test_experts_that_leave_at_random_between_tokens_and_prompts_change_nothing(build: Build):
    decoder, resident = build(MANY), build()
    store, generator = store_of(decoder), torch.Generator().manual_seed(0)
    caches = decoder.new_kv_cache(len(IDS)), resident.new_kv_cache(len(IDS))
    at = 0
    for size in [1, 1, 1, 5, 1, 1, 8, 1, 1, 1, 1, 4, 1, 1, 1, 1, 1, 1]:
        ids, at = IDS[at : at + size], at + size
        logits = decoder.forward(ids, caches[0])
        assert torch.equal(logits, resident.forward(ids, caches[1]))
        held = in_ram(store)
        for i in torch.randperm(len(held), generator=generator)[: len(held) // 3].tolist():
            store.drop(held[i])
    assert store.num_read > 200


def test_greedy_text_is_that_of_the_layers_one_by_one(build: Build):
    texts, generator = [], torch.Generator().manual_seed(3)
    for decoder in (build(60, torch.bfloat16), by_layer(build(60, torch.bfloat16))):
        kv_cache, store = decoder.new_kv_cache(64), store_of(decoder)
        logits, text = decoder.forward(IDS[:12], kv_cache), []
        for _ in range(40):
            text.append(int(logits[0].argmax()))
            held = in_ram(store)
            store.drop(held[int(torch.randint(len(held), (1,), generator=generator))])
            logits = decoder.forward(text[-1:], kv_cache)
        texts.append(text)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5


class Interrupt:
    """Stands for something that raises when a read has been asked for so many times."""

    def __init__(self, reads_left: int, error: BaseException) -> None:
        self.reads_left, self.error = reads_left, error

    def __call__(self, *arguments: object) -> int:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise self.error
        return preadv(*arguments)  # type: ignore[arg-type]  # as it was called


preadv = os.preadv


def read_again_and_again(decoder: Decoder, kv_cache: KVCache) -> None:
    for _ in range(3):
        decoder.forward(IDS[1:2], kv_cache)
        kv_cache.forget_from(1)


@pytest.mark.parametrize("reads_left", [0, 6, 30])
def test_a_failing_disk_is_told_as_layer_by_layer_and_forgotten(
    build: Build, monkeypatch: pytest.MonkeyPatch, reads_left: int
):
    expected, _ = read_all(build())
    told = []
    for decoder in (build(FEW), by_layer(build(FEW))):
        kv_cache = decoder.new_kv_cache(8)
        decoder.forward(IDS[:1], kv_cache)
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", Interrupt(reads_left, OSError(5, "Input/output error")))
            with pytest.raises(QuantError, match="Input/output error; check the disk") as caught:
                read_again_and_again(decoder, kv_cache)
        told.append(str(caught.value))
        assert len(kv_cache) == 1
        if decoder.step is not None:
            assert torch.equal(decoder.forward(IDS[1:2], kv_cache), expected[1:2])
    assert told[0] == told[1]


def test_an_interrupt_while_an_expert_is_waited_for_loses_nothing(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    expected, _ = read_all(build())
    decoder = build(FEW)
    kv_cache, store = decoder.new_kv_cache(8), store_of(decoder)
    decoder.forward(IDS[:1], kv_cache)
    for after in (0, 3, 17):
        with monkeypatch.context() as patch:
            take = Interrupt(after, KeyboardInterrupt())
            patch.setattr(store, "take", lambda key, take=take: interrupted(store, key, take))
            with pytest.raises(KeyboardInterrupt):
                decoder.forward(IDS[1:2], kv_cache)
        assert len(kv_cache) == 1
        assert torch.equal(decoder.forward(IDS[1:2], kv_cache), expected[1:2])
        kv_cache.forget_from(1)


def interrupted(store: DiskExpertStore, key: ExpertKey, interrupt: Interrupt):
    interrupt.reads_left -= 1
    if interrupt.reads_left < 0:
        raise interrupt.error
    return DiskExpertStore.take(store, key)


def test_a_store_that_guesses_goes_layer_by_layer(build: Build):
    assert build(MANY, read_ahead=True).step is None
