"""The captured step's launches against the plain decoder: on a GPU, or in Triton's interpreter."""

import importlib.util
import os

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"

from erniechat.generation.generate import Limits, decode, drawing_of  # noqa: E402
from erniechat.generation.sampling import Sampler  # noqa: E402
from erniechat.model.decoder import Decoder, DecoderWeights  # noqa: E402
from erniechat.model.device_step import CapturedStep  # noqa: E402
from erniechat.model.families import family_of  # noqa: E402
from erniechat.model.kv_cache import KVCache  # noqa: E402
from erniechat.model.run_ahead import Drawing  # noqa: E402
from erniechat.model.step_assembly import build_chunk, build_step  # noqa: E402
from quant.experts.pool import ExpertPool, PooledExpertStore, split_gated  # noqa: E402
from quant.experts.store import ResidentExpertStore  # noqa: E402
from quant.formats import FORMATS  # noqa: E402
from quant.kernels.base import ExpertWeights  # noqa: E402
from quant.kernels.reference import ReferenceBackend  # noqa: E402
from quant.linear import QuantLinear  # noqa: E402
from quant.tensor import QuantTensor  # noqa: E402
from quant.upload import Uploader  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # interpreter
    pytest.mark.skipif(
        not HAS_CUDA and not INTERPRETS,
        reason="there is no CUDA device; TRITON_INTERPRET=1 runs this file alone, slowly",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed"
    ),
]
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
CONFIG = family_of({"model_type": "ernie4_5_moe"}).parse_config(
    {
        "model_type": "ernie4_5_moe",
        "vocab_size": 96,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_intermediate_size": 64,
        "moe_num_shared_experts": 2,
        "tie_word_embeddings": True,
    }
)
# Of the logits after three layers whose products each err by up to 0.4 % (bfloat16 in a
# chunk; a token's 0.3 % in 4 bits make 0.004 here).
BOUNDS = {"nf4": 0.03, "fp4": 0.03, "int8": 0.03, "bf16": 0.02}
POOL_ORDER = list(range(19, -1, -1))  # slots need not go by experts


class Model:
    """A small random model as a plain decoder in float32 and as a step, with the same weights."""

    def __init__(self, format_name: str, seed: int = 0, bias_step: float = 1.0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.format = FORMATS[format_name]
        embedding_format = FORMATS["bf16" if format_name == "bf16" else "int8"]
        backend = ReferenceBackend()
        hidden, width = CONFIG.hidden_size, CONFIG.moe_intermediate_size
        linears, tensors = {}, {"norm": self._norm()}
        embedding = embedding_format.quantize(self._normal(96, hidden, std=1.0))
        experts = {}
        for layer_idx in range(CONFIG.num_hidden_layers):
            at = f"layers.{layer_idx}."
            linears[at + "qkv"] = self._matrix(8 * 64, hidden)
            linears[at + "o"] = self._matrix(hidden, 4 * 64)
            tensors[at + "input_norm"], tensors[at + "post_attention_norm"] = (
                self._norm(),
                self._norm(),
            )
            if layer_idx in CONFIG.moe_layers:
                tensors[at + "router"] = self._normal(8, hidden, std=0.1)
                # Apart by more than probabilities differ: a near-tie would hide what is tested.
                order = torch.randperm(8, generator=self.generator)
                tensors[at + "correction_bias"] = order * bias_step
                linears[at + "shared.gate_up"] = self._matrix(4 * width, hidden)
                linears[at + "shared.down"] = self._matrix(hidden, 2 * width)
                experts[layer_idx] = [
                    ExpertWeights(self._matrix(2 * width, hidden), self._matrix(hidden, width))
                    for _ in range(8)
                ]
            else:
                linears[at + "mlp.gate_up"] = self._matrix(512, hidden)
                linears[at + "mlp.down"] = self._matrix(hidden, 256)
        plain = {name: QuantLinear(weight, backend) for name, weight in linears.items()}
        plain["lm_head"] = QuantLinear(embedding, backend)
        store = ResidentExpertStore(experts, CONFIG.num_hidden_layers, backend)
        self.plain = Decoder(
            CONFIG, DecoderWeights(plain, tensors, embedding), store, torch.float32
        )
        self._on_device(linears, tensors, embedding, experts)

    def _on_device(self, linears, tensors, embedding, experts) -> None:
        backend = ReferenceBackend()
        example = experts[CONFIG.moe_layers[0]][0]
        pool = ExpertPool(example, 20, DEVICE)
        slots = {}
        with Uploader(DEVICE) as upload:
            for order, layer_idx in enumerate(CONFIG.moe_layers):
                slots[layer_idx] = POOL_ORDER[order * 10 : order * 10 + 10]
                shared = split_gated(
                    linears[f"layers.{layer_idx}.shared.gate_up"],
                    linears[f"layers.{layer_idx}.shared.down"],
                    2,
                )
                for slot, expert in zip(slots[layer_idx], experts[layer_idx] + shared, strict=True):
                    pool.write(slot, expert, upload)
        self.store = PooledExpertStore(pool, slots, CONFIG.num_hidden_layers, 2, backend)
        embedding = embedding.to(DEVICE)
        on_device = {n: QuantLinear(w.to(DEVICE), backend) for n, w in linears.items()}
        on_device["lm_head"] = QuantLinear(embedding, backend)
        tensors = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
        self.step = build_step(CONFIG, on_device, tensors, embedding, self.store)

    def _normal(self, *shape: int, std: float) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * std

    def _norm(self) -> torch.Tensor:
        return (torch.rand(CONFIG.hidden_size, generator=self.generator) + 0.5).bfloat16()

    def _matrix(self, rows: int, columns: int) -> QuantTensor:
        return self.format.quantize(self._normal(rows, columns, std=0.08))

    def ids(self, count: int) -> list[int]:
        return torch.randint(0, 96, (count,), generator=self.generator).tolist()

    def caches(self, prompt: list[int]):
        """The plain decoder's cache of a prompt, and the same in bfloat16 on the device."""
        plain = self.plain.new_kv_cache(1024)
        self.plain.forward(prompt, plain)
        other = Decoder(
            CONFIG, self.plain.weights, self.plain.experts, torch.bfloat16
        ).new_kv_cache(1024)
        other._data = plain._data.to(torch.bfloat16).to(DEVICE)
        other.token_ids.extend(prompt)
        return plain, other


@pytest.fixture(params=BOUNDS)
def model(request):
    return Model(request.param)


def read_launched(model: Model, token_id: int, kv_cache) -> torch.Tensor:
    """Logits of the launches outside of a graph, whose buffers are poisoned before."""
    step = model.step
    kv_cache.append_tokens([token_id])
    step.state.copy_(torch.tensor([len(kv_cache) - 1, *kv_cache.storage]))
    step.token.fill_(token_id)
    for name in ("_x", "_squares", "_xs", "_as", "_os", "_qkv", "_partial", "logits"):
        getattr(step, name).fill_(float("nan"))
    step.forward(96)
    return step.logits.cpu()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("length", [1, 63, 64, 140])
def test_the_launches_give_the_logits_of_the_plain_decoder(model, length):
    plain, on_device = model.caches(model.ids(length))
    for token_id in model.ids(3):
        expected = model.plain.forward([token_id], plain)[0]
        actual = read_launched(model, token_id, on_device)
        assert relative_error(actual, expected) < BOUNDS[model.format.name]


def test_the_step_counts_the_experts_that_the_router_of_the_plain_decoder_chooses():
    model = Model("int8", bias_step=0.01)
    plain, on_device = model.caches(model.ids(5))
    before = model.plain.experts.counts.clone()
    for token_id in model.ids(8):
        model.plain.forward([token_id], plain)
        read_launched(model, token_id, on_device)
    expected = model.plain.experts.counts - before
    assert int((model.store.counts - expected).abs().sum()) <= 2  # a near-tie may fall otherwise
    assert model.store.counts.sum() == 8 * 2 * 2


def test_pick_takes_the_best_of_the_tokens_that_may_be_sampled(model):
    _, on_device = model.caches(model.ids(5))
    logits = read_launched(model, 7, on_device)
    model.step.pick(96)
    assert int(model.step.token) == int(logits.argmax())
    allowed = max(16, int(logits.argmax()) // 2)
    model.step.token.fill_(7)
    model.step.forward(allowed)
    model.step.pick(allowed)
    assert int(model.step.token) < allowed


def test_the_penalty_changes_seen_tokens_only(model):
    _, on_device = model.caches(model.ids(5))
    plain = read_launched(model, 7, on_device).clone()
    model.step.seen[3], model.step.seen[50] = 1, 1
    model.step.penalty.fill_(2.0)
    model.step.token.fill_(7)
    model.step.forward(96)
    penalized = model.step.logits.cpu()
    for token_id in (3, 50):
        value = float(plain[token_id])
        wanted = value / 2 if value > 0 else value * 2
        assert float(penalized[token_id]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    others = [i for i in range(96) if i not in (3, 50)]
    assert relative_error(penalized[others], plain[others]) < 1e-5


@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
def test_replays_of_one_graph_serve_every_length_and_cache(model):
    captured = CapturedStep(model.step, None, DEVICE)
    for length in (3, 200, 900):
        plain, on_device = model.caches(model.ids(length))
        for token_id in model.ids(3):
            expected = model.plain.forward([token_id], plain)[0]
            on_device.append_tokens([token_id])
            actual = captured.read([token_id], on_device)[0].cpu()
            assert relative_error(actual, expected) < BOUNDS[model.format.name]
    assert len(captured._graphs) == 1


def run_of(captured: CapturedStep, kv_cache, logits: torch.Tensor, sampler: Sampler, seed: int):
    """Ten ids of a reply that is drawn on the device, in a copy of a cache."""
    limits, model = Limits((), 10, 90), Captured(captured)
    copy = KVCache(3, 2, 64, 1024, device=DEVICE)
    copy.data.copy_(kv_cache.data)
    copy.token_ids.extend(kv_cache.token_ids)
    generator = torch.Generator().manual_seed(seed)
    return list(decode(model, copy, logits, sampler, limits, generator, lambda: False)), copy


class Captured:
    """A captured step as a model that generation takes."""

    def __init__(self, captured: CapturedStep, ahead: bool = True) -> None:
        self.captured, self.ahead = captured, ahead

    def forward(self, input_ids: list[int], kv_cache: KVCache) -> torch.Tensor:
        kv_cache.append_tokens(input_ids)
        return self.captured.read(input_ids, kv_cache)

    def start_run(self, drawing: Drawing, logits: torch.Tensor, kv_cache: KVCache):
        return self.captured.start_run(drawing, logits, kv_cache) if self.ahead else None


@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_greedy_reply_drawn_on_the_device_is_the_one_chosen_on_the_host(model, penalty):
    captured = CapturedStep(model.step, None, DEVICE)
    _, kv_cache = model.caches(model.ids(70))
    logits = Captured(captured).forward([7], kv_cache)[-1]
    sampler, limits = Sampler(0.0, repetition_penalty=penalty), Limits((), 10, 90)
    on_device, held = run_of(captured, kv_cache, logits, sampler, 0)
    host = Captured(captured, ahead=False)
    generator = torch.Generator()
    found = list(decode(host, kv_cache, logits, sampler, limits, generator, lambda: False))
    assert on_device == found
    assert held.token_ids == kv_cache.token_ids
    end = len(held)
    assert torch.equal(held.data[:, :, :, :end], kv_cache.data[:, :, :, :end])


@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
def test_replies_drawn_on_the_device_repeat_by_their_seed(model):
    captured = CapturedStep(model.step, None, DEVICE)
    _, kv_cache = model.caches(model.ids(70))
    logits = Captured(captured).forward([7], kv_cache)[-1]
    # Hot: the model prefers the token just read by far.
    for sampler in (Sampler(20.0), Sampler(20.0, 30, 0.9, 0.01, 1.1), Sampler(30.0, top_p=0.95)):
        texts = [run_of(captured, kv_cache, logits, sampler, seed)[0] for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        assert max(texts[0]) < 90


@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
def test_a_reply_after_the_preparations_captures_nothing_and_is_the_same(model):
    _, kv_cache = model.caches(model.ids(1))
    prompt, sampler = model.ids(45), Sampler(20.0, top_p=0.9)
    replies = []
    for is_prepared in (False, True):
        captured = CapturedStep(model.step, build_chunk(model.step, model.store), DEVICE)
        if is_prepared:
            counts = model.store.counts.clone()
            for prepare in captured.preparations(drawing_of(sampler, 90, 0)):
                prepare()
            assert torch.equal(model.store.counts, counts)
        num_graphs = len(captured._graphs)
        kv_cache.forget_from(0)
        logits = Captured(captured).forward(prompt, kv_cache)[-1]
        replies.append(run_of(captured, kv_cache, logits, sampler, 1)[0])
        assert len(captured._graphs) == (num_graphs if is_prepared else 2)
    assert replies[0] == replies[1]


@pytest.mark.parametrize(("held", "length"), [(0, 2), (0, 16), (70, 9), (130, 40)])
def test_a_chunk_gives_the_logits_and_the_cache_of_the_plain_decoder(model, held, length):
    if held:
        plain, on_device = model.caches(model.ids(held))
    else:
        plain, on_device = model.plain.new_kv_cache(1024), model.caches(model.ids(1))[1]
        on_device.forget_from(0)
    chunk = build_chunk(model.step, model.store)
    ids = model.ids(length)
    expected = model.plain.forward(ids, plain)
    on_device.append_tokens(ids)
    chunk.state.copy_(torch.tensor([held, *on_device.storage, length]))
    chunk.ids[:length] = torch.tensor(ids)
    chunk.logits.fill_(float("nan"))
    before = model.store.counts.sum()
    chunk.forward(64)  # more than there are: the rest is padding
    assert relative_error(chunk.logits[0].cpu(), expected[0]) < BOUNDS[model.format.name]
    end = held + length
    actual = on_device._data[:, :, :, :end].cpu().float()
    assert relative_error(actual, plain._data[:, :, :, :end].float()) < 0.02
    assert model.store.counts.sum() - before == 2 * length * CONFIG.num_experts_per_tok
