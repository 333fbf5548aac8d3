"""Choosing tokens on the device against the host's sampler; on a GPU or Triton interpreted."""

import importlib.util
import math
import os

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not HAS_CUDA and not INTERPRETS:
    pytest.skip(
        "there is no CUDA device; TRITON_INTERPRET=1 runs this file alone", allow_module_level=True
    )

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from erniechat.generation.sampling import Sampler  # noqa: E402
from quant.kernels.triton.choosing import TokenChoice  # noqa: E402
from quant.kernels.triton.sampling import ordered, race  # noqa: E402
from quant.kernels.triton.step_buffers import StepBuffers  # noqa: E402
from quant.kernels.triton.step_weights import ChoiceKind, StepSizes, Tuning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
NUM_DRAWS = 20_000 if HAS_CUDA else 400
REAL_VOCAB = 103_424


class Chooser:
    """Buffers of a step without a model, and what chooses from them."""

    def __init__(self, vocab_size: int, sampler: Sampler, num_tokens: int | None = None) -> None:
        sizes = StepSizes(64, 64, 1, 1, 1, 64, vocab_size, 0, 0, 0, 0, 1e-5, 0.0)
        self.step = StepBuffers(sizes, Tuning(), "int8", None, DEVICE)
        self.choice = TokenChoice(self.step, {"PDL": False})
        self.sampler, self.num_tokens = sampler, num_tokens or vocab_size
        self.kind = ChoiceKind(
            self.num_tokens,
            greedy=sampler.temperature == 0,
            top_k=0 < sampler.top_k < self.num_tokens,
            top_p=sampler.top_p < 1,
        )

    def choose(self, logits: torch.Tensor, seed: int = 0, seen: tuple[int, ...] = ()) -> int:
        s = self.sampler
        self.step.seen.zero_()
        self.step.seen[list(seen)] = 1
        self.step.penalty.fill_(s.repetition_penalty)
        self.choice.set(s.temperature, s.top_k, s.top_p, s.min_p, seed)
        self.choice.begin(logits.to(DEVICE), self.num_tokens)
        self.choice.launch(self.kind)
        return int(self.step.token)

    def draws(self, count: int) -> list[int]:
        """Ids drawn at so many places, from the logits that were chosen from last."""
        ids = torch.zeros(count, dtype=torch.int64, device=DEVICE)
        for position in range(count):
            self.step.state[0] = position
            self.choice._draw(self.kind)
            ids[position : position + 1] = self.step.token
        return ids.tolist()

    def kept(self) -> set[int]:
        """Tokens above the thresholds that the rounds found; min-p comes later."""
        logits = self.step.logits[: self.num_tokens].cpu()
        keys, ids = keys_of(logits), torch.arange(self.num_tokens)
        top_k, _, top_p, _, _, last = self.choice._found.tolist()
        ok = logits > -torch.inf
        if self.kind.top_k:
            ok &= keys >= top_k % 2**32
        if self.kind.top_p:
            ok &= (keys > top_p % 2**32) | ((keys == top_p % 2**32) & (ids <= last))
        return set(ids[ok].tolist())


def keys_of(logits: torch.Tensor) -> torch.Tensor:
    """int64 in the order of float32 logits, as IEEE 754 numbers them."""
    bits = torch.where(logits == 0, 0.0, logits).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return torch.where(bits >= 2**31, 2**32 - 1 - bits, bits + 2**31)


def wanted(sampler: Sampler, logits: torch.Tensor) -> tuple[set[int], set[int]]:
    """What the host's sampler keeps in float64, and tokens where a rounding decides."""
    without = Sampler(sampler.temperature, sampler.top_k)
    probabilities = without.probabilities(logits.double())
    ordered, order = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    near = set(order[(before - sampler.top_p).abs() < 3e-6].tolist())
    plain = Sampler(sampler.temperature, sampler.top_k, sampler.top_p)
    kept = plain.probabilities(logits.double()) > 0
    # A probability that float64 rounds to 0 is kept all the same where nothing cuts it off.
    if sampler.top_p == 1:
        near |= set((logits > -torch.inf).nonzero()[:, 0].tolist()) if not sampler.top_k else set()
    return set(kept.nonzero()[:, 0].tolist()), near


def hostile(name: str, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    normal = torch.randn(count, generator=generator)
    if name == "normal":
        return 3 * normal + 5
    if name == "flat":
        return torch.full((count,), -1.5)
    if name == "peaky":
        return 40 * normal
    if name == "ties":
        return torch.randint(-3, 4, (count,), generator=generator).float()
    if name == "one hot":
        return torch.zeros(count).index_fill(0, torch.tensor(count // 2), 50.0)
    if name == "holes":
        return torch.where(normal > 0, 2 * normal, -torch.inf)
    raise ValueError(name)


SHAPES = ("normal", "flat", "peaky", "ties", "one hot", "holes")
FILTERS = (
    Sampler(0.8, 0, 0.79951),
    Sampler(1.0, 20, 1.0),
    Sampler(1.3, 40, 0.5003),
    Sampler(0.7, 0, 0.999999),
    Sampler(1.0, 0, 1e-9),
    Sampler(1.0, 10_000_000, 0.3001),
)


@pytest.mark.parametrize("sampler", FILTERS, ids=lambda s: f"{s.temperature}-{s.top_k}-{s.top_p}")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_filters_keep_what_the_sampler_keeps(shape, sampler):
    for count in (REAL_VOCAB, 1037, 3) if HAS_CUDA else (1037, 3):
        logits = hostile(shape, count)
        chooser = Chooser(count, sampler)
        token_id = chooser.choose(logits)
        kept, near = wanted(sampler, logits)
        assert kept ^ chooser.kept() <= near
        assert token_id in kept | near
        assert not chooser.choice._counts.any()
        assert not chooser.choice._masses.any()


def test_thresholds_are_found_anew_for_every_token():
    sampler = Sampler(1.0, 7, 0.9003)
    chooser = Chooser(700, sampler)
    for seed in range(3):
        logits = torch.randn(700, generator=torch.Generator().manual_seed(seed)) * 2 - seed
        chooser.choose(logits)
        kept, _ = wanted(sampler, logits)
        assert chooser.kept() == kept


def test_rows_of_padding_are_never_chosen():
    logits = torch.full((600,), 100.0)
    logits[:530] = torch.randn(530, generator=torch.Generator().manual_seed(0))
    for sampler in (Sampler(0.0), Sampler(1.0), Sampler(1.0, 3, 0.9)):
        chooser = Chooser(600, sampler, num_tokens=530)
        chooser.choose(logits)
        assert max(chooser.draws(40) if sampler.temperature else [int(chooser.step.token)]) < 530


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_takes_what_the_sampler_takes(penalty):
    sampler = Sampler(0.0, repetition_penalty=penalty)
    for shape in ("normal", "peaky", "holes", "flat"):
        logits = hostile(shape, 1037)
        seen = tuple(logits.topk(5).indices.tolist())
        expected = sampler._penalize(logits, seen)
        lowest = int((expected == expected.max()).nonzero()[0])  # of equals
        assert Chooser(1037, sampler).choose(logits, seen=seen) == lowest


def test_the_penalty_comes_before_the_filters():
    logits = torch.tensor([3.0, 2.0, -1.0, -2.0])
    chooser = Chooser(4, Sampler(1.0, 2, repetition_penalty=4.0))
    chooser.choose(logits, seen=(0, 2))  # 0.75, 2, -4, -2
    assert chooser.kept() == {0, 1}
    assert chooser.step.logits.tolist() == [0.75, 2.0, -4.0, -2.0]


@pytest.mark.parametrize(
    "sampler",
    [Sampler(1.0), Sampler(0.6, 12, 0.95), Sampler(1.5, min_p=0.1), Sampler(2.0, 0, 0.8, 0.05)],
)
def test_draws_follow_the_samplers_distribution(sampler):
    logits = 1.5 * torch.randn(40, generator=torch.Generator().manual_seed(3))
    chooser = Chooser(40, sampler)
    chooser.choose(logits, seed=5)
    drawn = torch.bincount(torch.tensor(chooser.draws(NUM_DRAWS)), minlength=40).double()
    expected = sampler.probabilities(logits.double()) * NUM_DRAWS
    assert drawn[expected == 0].sum() == 0
    common = expected >= 5
    rest = (~common).double()
    drawn = torch.cat([drawn[common], (drawn * rest).sum()[None]])
    expected = torch.cat([expected[common], (expected * rest).sum()[None]])
    drawn, expected = drawn[expected > 0], expected[expected > 0]
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_a_seed_repeats_its_draws_and_another_one_does_not():
    logits = torch.randn(600, generator=torch.Generator().manual_seed(0))
    chooser = Chooser(600, Sampler(1.0))
    texts = []
    for seed in (7, 7, 8, 7 + 2**32):
        chooser.choose(logits, seed=seed)
        texts.append(chooser.draws(8))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0] != texts[3]
    assert len(set(texts[0])) > 3  # places differ, too


@triton.jit
def race_kernel(out, seed, position, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, race(seed, position, i))


def test_variates_are_exponential_down_to_rare_ones():
    count = 1 << 20
    out = torch.zeros(count, device=DEVICE)
    race_kernel[(16,)](out, 123456789012, 70_000, BLOCK=count // 16)
    values = out.cpu().double().exp().sort().values
    uniform = 1 - torch.exp(-values)
    ideal = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    assert float((uniform - ideal).abs().max()) < 1.95 / math.sqrt(count)  # Kolmogorov, 0.1 %
    rare = values[values < 1e-3]  # who wins among 100,000 is decided here
    assert len(rare) == pytest.approx(1e-3 * count, abs=4 * math.sqrt(1e-3 * count))
    assert len(rare.unique()) > 0.999 * len(rare)


@triton.jit
def ordered_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, ordered(tl.load(x + i)))


def test_keys_order_as_logits_do():
    values = [-math.inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 3e38]
    x = torch.tensor(values + [math.inf] * 6, device=DEVICE)
    out = torch.zeros(16, dtype=torch.int32, device=DEVICE)
    ordered_kernel[(1,)](x, out, BLOCK=16)
    keys = [key % 2**32 for key in out.tolist()]
    assert keys == sorted(keys)
    assert len(set(keys)) == 10  # the zeros are one
