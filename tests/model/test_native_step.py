"""Decoding in native calls against the same decoder in torch, with the same native products."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import erniechat
from erniechat.model.assembly import assemble
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.delivery import convert
from erniechat.model.families import family_of
from erniechat.model.kv_cache import KVCache
from erniechat.model.readings import plan_readings
from quant.copy import MemoryWeights
from quant.errors import QuantError
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend, library, num_threads, set_num_threads
from tests.model.checkpoints import MOE, Raw, cached_reference, random_ids, save_hub
from tests.model.test_against_transformers import VARIATIONS
from tests.model.test_mini_against_transformers import prompts_of

FOUND = library.find_library()
pytestmark = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))

MINI = Path(erniechat.__file__).parent / "mini" / "checkpoint"
NUM_TOKENS, NUM_PREFILLED = 40, 20
# Relative error of logits in float32, where only the order of sums differs. Now and then that moves
# an activation across the boundary between two int8 codes, which costs up to a step of 1/127.
SAME, ONE_STEP = 1e-5, 0.1
NUM_PROMPTS, NUM_NEW_TOKENS = 32, 12
TIE = 0.25  # of logits: bfloat16's step for logits from 32 to 64
LEAST_SAME = 0.9  # of the tokens: the others have such an activation


def decoder_of(
    folder: Path, format_name: str, dtype: torch.dtype = torch.float32, path: str = "auto"
) -> Decoder:
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.config)
    config = family.parse_config(checkpoint.config)
    backend, weights = NativeBackend(path), MemoryWeights()
    formats = Formats(FORMATS[format_name], FORMATS["int8"], backend, backend)
    convert(plan_readings(checkpoint, family, config), formats, weights)
    return assemble(config, weights, formats, torch.device("cpu"), dtype)


def small_decoder(folder: Path, raw: Raw, format_name: str, dtype: torch.dtype) -> Decoder:
    return decoder_of(save_hub(folder, raw, cached_reference(json.dumps(raw))), format_name, dtype)


def in_torch(decoder: Decoder, input_ids: list[int], kv_cache: KVCache) -> Tensor:
    step, decoder.step = decoder.step, None
    try:
        return decoder.forward(input_ids, kv_cache)
    finally:
        decoder.step = step


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def poisoned(decoder: Decoder, num_tokens: int) -> KVCache:
    """A cache of NaN, which only what was written may be read from."""
    kv_cache = decoder.new_kv_cache(num_tokens)
    kv_cache.data.fill_(float("nan"))
    return kv_cache


def decode_both(
    decoder: Decoder, input_ids: list[int], num_prefilled: int
) -> tuple[list[float], list[float]]:
    """Relative errors of logits and of written keys and values, each token after one history."""
    kv_cache = poisoned(decoder, len(input_ids))
    if num_prefilled:
        in_torch(decoder, input_ids[:num_prefilled], kv_cache)
    logits_errors, cache_errors = [], []
    for position in range(num_prefilled, len(input_ids)):
        token = [input_ids[position]]
        native = decoder.forward(token, kv_cache)
        written = kv_cache.data[:, :, :, position].clone()
        kv_cache.forget_from(position)
        kv_cache.data[:, :, :, position] = float("nan")
        expected = in_torch(decoder, token, kv_cache)
        assert native.shape == expected.shape
        assert native.dtype == torch.float32
        logits_errors.append(relative_error(native, expected))
        cache_errors.append(relative_error(written, kv_cache.data[:, :, :, position]))
    return logits_errors, cache_errors


def share_below(errors: list[float], bound: float) -> float:
    return sum(error < bound for error in errors) / len(errors)


WITHOUT_EFFECT = ("unused", "unused_moe", "max_position_embeddings", "use_bias_untied")
VARIED = [name for name in VARIATIONS if name.partition("-")[2] not in WITHOUT_EFFECT]


@pytest.mark.parametrize("variation", VARIED)
def test_logits_in_float32_are_those_of_torch(tmp_path, variation):
    raw = VARIATIONS[variation]
    decoder = small_decoder(tmp_path, raw, "nf4", torch.float32)
    if raw["use_bias"]:
        assert decoder.step is None
        return
    ids = random_ids(NUM_TOKENS, raw["vocab_size"], 1)
    for errors in decode_both(decoder, ids, NUM_PREFILLED):
        assert share_below(errors, SAME) >= LEAST_SAME
        assert max(errors) < ONE_STEP


@pytest.mark.parametrize("format_name", ["fp4", "int8"])
@pytest.mark.parametrize("variation", ["dense-as_it_is", "moe-as_it_is"])
def test_every_served_format_is_read(tmp_path, format_name, variation):
    raw = VARIATIONS[variation]
    decoder = small_decoder(tmp_path, raw, format_name, torch.float32)
    errors, _ = decode_both(decoder, random_ids(NUM_TOKENS, raw["vocab_size"], 2), NUM_PREFILLED)
    assert share_below(errors, SAME) >= LEAST_SAME
    assert max(errors) < ONE_STEP


def test_greedy_text_of_the_built_in_model_is_that_of_torch():
    decoder = decoder_of(MINI, "nf4", torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI)
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompts = sorted(prompts_of(tokenizer), key=lambda prompt: len(prompt.input_ids))[:NUM_PROMPTS]
    num_apart = 0
    for prompt in prompts:
        caches = decoder.new_kv_cache(512), decoder.new_kv_cache(512)
        logits, native = (in_torch(decoder, prompt.input_ids, cache) for cache in caches)
        for _ in range(NUM_NEW_TOKENS):
            token_id = int(logits.argmax())
            if token_id != int(native.argmax()):
                best = logits[0].topk(2).values
                assert float(best[0] - best[1]) < TIE
                num_apart += 1
                break
            if token_id == end_id:
                break
            logits = in_torch(decoder, [token_id], caches[0])
            native = decoder.forward([token_id], caches[1])
    assert len(prompts) == NUM_PROMPTS
    assert num_apart <= 1


@pytest.mark.parametrize("path", () if isinstance(FOUND, str) else FOUND.paths)
def test_every_instruction_set_decodes_from_the_first_token_on(path):
    decoder = decoder_of(MINI, "nf4", torch.float32, path)
    errors, _ = decode_both(decoder, random_ids(12, 300, 3), 0)
    assert share_below(errors, SAME) >= 0.5  # more layers have more activations at a boundary
    assert max(errors) < ONE_STEP


# Around what one split of the positions holds, and where splits grow longer than that.
@pytest.mark.parametrize("num_held", [62, 63, 64, 127, 1023, 1024, 4095, 4096, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_reads_every_position_of_a_long_context(tmp_path, dtype, num_held):
    decoder = small_decoder(tmp_path, {**MOE, "num_hidden_layers": 2}, "int8", dtype)
    kv_cache = decoder.new_kv_cache(5200)
    kv_cache.append_tokens([3] * num_held)
    kv_cache.data.normal_(generator=torch.Generator().manual_seed(num_held))
    kv_cache.data[:, :, :, num_held:] = float("nan")
    native = decoder.forward([7], kv_cache)
    kv_cache.forget_from(num_held)
    expected = in_torch(decoder, [7], kv_cache)
    assert relative_error(native, expected) < ONE_STEP


@pytest.mark.parametrize("variation", ["dense-as_it_is", "moe-as_it_is"])
def test_bfloat16_is_as_near_to_float32_as_torch(tmp_path, variation):
    raw = VARIATIONS[variation]
    decoder = small_decoder(tmp_path / "16", raw, "nf4", torch.bfloat16)
    exact = small_decoder(tmp_path / "32", raw, "nf4", torch.float32)
    ids = random_ids(NUM_TOKENS, raw["vocab_size"], 4)
    caches = [poisoned(held, len(ids)) for held in (decoder, decoder, exact)]
    native_errors, torch_errors = 0.0, 0.0
    for token_id in ids:
        truth = in_torch(exact, [token_id], caches[2])
        native_errors += relative_error(decoder.forward([token_id], caches[0]), truth)
        torch_errors += relative_error(in_torch(decoder, [token_id], caches[1]), truth)
    assert native_errors < 1.1 * torch_errors
    assert torch_errors < 1.1 * native_errors  # it rounds where torch does


@pytest.mark.parametrize("variation", ["dense-as_it_is", "moe-as_it_is"])
def test_bfloat16_is_rounded_where_torch_rounds(tmp_path, variation):
    raw = VARIATIONS[variation]
    decoder = small_decoder(tmp_path, raw, "nf4", torch.bfloat16)
    ids = random_ids(NUM_TOKENS, raw["vocab_size"], 7)
    num_equal = 0
    for token_id in ids:  # attention over one position sums nothing
        native = decoder.forward([token_id], decoder.new_kv_cache(1))
        expected = in_torch(decoder, [token_id], decoder.new_kv_cache(1))
        num_equal += torch.equal(native, expected)
    assert num_equal >= 0.8 * len(ids)
    caches = poisoned(decoder, len(ids)), poisoned(decoder, len(ids))
    for token_id in ids:
        decoder.forward([token_id], caches[0])
        in_torch(decoder, [token_id], caches[1])
    written, expected = (cache.data[:, 0].float() for cache in caches)
    assert float((written == expected).float().mean()) > 0.999


def test_results_do_not_depend_on_the_number_of_threads():
    decoder = decoder_of(MINI, "nf4")
    before, results = num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            set_num_threads(threads)
            kv_cache = poisoned(decoder, 200)
            kv_cache.append_tokens([5] * 150)
            kv_cache.data[:, :, :, :150].normal_(generator=torch.Generator().manual_seed(0))
            logits = [decoder.forward([token_id], kv_cache) for token_id in (5, 9, 30)]
            results.append((torch.cat(logits), kv_cache.data[:, :, :, 150:153].clone()))
    finally:
        set_num_threads(before)
    for logits, written in results[1:]:
        assert torch.equal(logits, results[0][0])
        assert torch.equal(written, results[0][1])


def test_the_correction_bias_chooses_in_float32(tmp_path):
    decoder = small_decoder(tmp_path, MOE, "nf4", torch.float32)
    ids = random_ids(NUM_TOKENS, MOE["vocab_size"], 5)
    counts = {}
    for name in ("torch", "native", "rounded"):
        if name == "rounded":  # the spread of the biases is far below bfloat16's step at 30
            for layer_idx in decoder.config.moe_layers:
                bias = decoder.weights.tensors[f"layers.{layer_idx}.correction_bias"]
                bias.copy_(bias.bfloat16())
        kv_cache, before = decoder.new_kv_cache(len(ids)), decoder.experts.counts.clone()
        read = in_torch if name == "torch" else Decoder.forward
        for token_id in ids:
            read(decoder, [token_id], kv_cache)
        counts[name] = decoder.experts.counts - before
    assert torch.equal(counts["native"], counts["torch"])
    assert not torch.equal(counts["rounded"], counts["torch"])
    assert int(counts["native"].sum()) == len(ids) * 3 * 2  # three of two layers' experts


def test_a_cache_that_grows_is_followed(tmp_path):
    decoder = small_decoder(tmp_path, MOE, "nf4", torch.float32)
    caches = decoder.new_kv_cache(1030), decoder.new_kv_cache(1030)
    errors = []
    for kv_cache in caches:
        in_torch(decoder, random_ids(1021, MOE["vocab_size"], 6), kv_cache)
    for token_id in range(6):  # a cache begins with room for 1,024 tokens
        native = decoder.forward([token_id], caches[0])
        errors.append(relative_error(native, in_torch(decoder, [token_id], caches[1])))
    assert share_below(errors, SAME) >= 0.5
    assert max(errors) < ONE_STEP


def test_several_tokens_and_all_logits_come_from_torch(tmp_path):
    decoder = small_decoder(tmp_path, MOE, "nf4", torch.float32)
    assert decoder.forward([1, 2, 3], decoder.new_kv_cache(8)).shape == (1, MOE["vocab_size"])
    out = decoder.forward([1, 2, 3], decoder.new_kv_cache(8), all_logits=True)
    assert out.shape == (3, MOE["vocab_size"])


@pytest.mark.parametrize("where", ["embedding", "router", "values"])
def test_what_is_not_finite_is_refused_and_forgotten(tmp_path, where):
    decoder = small_decoder(tmp_path, MOE, "nf4", torch.float32)
    kv_cache = decoder.new_kv_cache(8)
    decoder.forward([1], kv_cache)
    damaged = {
        "embedding": decoder.weights.embedding.parts["absmax"][3:4],
        "router": decoder.weights.tensors["layers.1.router"][0],
        "values": kv_cache.data[1, 0, :, 0],
    }
    damaged[where].fill_(float("nan"))
    with pytest.raises(QuantError, match="NaN or infinite"):
        decoder.forward([3], kv_cache)
    assert len(kv_cache) == 1


def test_a_token_that_does_not_exist_is_refused(tmp_path):
    decoder = small_decoder(tmp_path, MOE, "nf4", torch.float32)
    kv_cache = decoder.new_kv_cache(8)
    with pytest.raises(QuantError, match="token 208 is not one of 208"):
        decoder.forward([208], kv_cache)
    assert len(kv_cache) == 0
