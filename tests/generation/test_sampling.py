"""Sampling against distributions worked out by hand."""

import math

import pytest
import torch

from erniechat.generation.sampling import Sampler
from quant.errors import QuantError

# softmax of these is 0.5, 0.25, 0.125, 0.125
LOGITS = torch.tensor([math.log(8), math.log(4), math.log(2), math.log(2)])


def distribution(sampler: Sampler, seen_ids: tuple[int, ...] = ()) -> list[float]:
    return sampler.probabilities(LOGITS, seen_ids).tolist()


def test_neutral_options_leave_the_softmax_as_it_is() -> None:
    assert distribution(Sampler()) == pytest.approx([0.5, 0.25, 0.125, 0.125])


def test_temperature_one_half_squares_the_odds() -> None:
    # 8², 4², 2², 2² over their sum of 88
    expected = [64 / 88, 16 / 88, 4 / 88, 4 / 88]
    assert distribution(Sampler(temperature=0.5)) == pytest.approx(expected)


def test_temperature_zero_is_the_likeliest_token() -> None:
    assert distribution(Sampler(temperature=0)) == [1.0, 0.0, 0.0, 0.0]
    assert Sampler(temperature=0).choose(LOGITS, (), torch.Generator()) == 0


def test_top_k_keeps_the_k_likeliest() -> None:
    assert distribution(Sampler(top_k=2)) == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_top_k_larger_than_the_vocabulary_keeps_all() -> None:
    assert distribution(Sampler(top_k=99)) == pytest.approx([0.5, 0.25, 0.125, 0.125])


def test_top_p_keeps_the_token_that_reaches_p() -> None:
    # 0.5 < 0.6, so the second token is needed to reach it; the third is not
    assert distribution(Sampler(top_p=0.6)) == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_top_p_reached_exactly_keeps_no_more() -> None:
    assert distribution(Sampler(top_p=0.5)) == pytest.approx([1, 0, 0, 0])


def test_a_tiny_top_p_still_keeps_the_likeliest() -> None:
    assert distribution(Sampler(top_p=1e-9)) == pytest.approx([1, 0, 0, 0])


def test_min_p_is_a_share_of_the_likeliest() -> None:
    # 0.3 of 0.5 is 0.15: 0.125 falls below it
    assert distribution(Sampler(min_p=0.3)) == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_min_p_comes_after_top_p() -> None:
    # Before it, the two that it leaves would have 2/3 and 1/3, and the first reach 0.6 alone
    assert distribution(Sampler(top_p=0.6, min_p=0.3)) == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_filters_apply_after_temperature() -> None:
    # At temperature 0.5 the first token has 64/88 = 0.727 and reaches 0.7 alone
    assert distribution(Sampler(temperature=0.5, top_p=0.7)) == pytest.approx([1, 0, 0, 0])


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    penalized = Sampler(repetition_penalty=2.0).probabilities(logits, [0, 1, 1, 0])
    expected = torch.tensor([1.0, -2.0, 0.5]).softmax(-1)
    assert penalized.tolist() == pytest.approx(expected.tolist())


def test_penalized_ids_outside_the_sampled_range_are_ignored() -> None:
    assert distribution(Sampler(repetition_penalty=1.5), (77,)) == pytest.approx(
        [0.5, 0.25, 0.125, 0.125]
    )


def test_greedy_choice_heeds_the_penalty() -> None:
    sampler = Sampler(temperature=0, repetition_penalty=4.0)
    assert sampler.choose(LOGITS, [0], torch.Generator()) == 1


def test_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [Sampler().choose(LOGITS, (), generator) for _ in range(4000)]
    shares = [draws.count(token_id) / 4000 for token_id in range(4)]
    # three standard deviations of a share of 0.5 over 4,000 draws are 0.024
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.025)


@pytest.mark.parametrize("point", [0.0, 0.999, 1.0])
def test_what_cannot_be_drawn_is_not_drawn_at_the_ends_either(
    monkeypatch: pytest.MonkeyPatch, point: float
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([point]).double())
    logits = torch.tensor([-1e9, 0.0, 1.0, -1e9])
    drawn = Sampler().choose(logits, (), torch.Generator())
    assert drawn == (1 if point == 0 else 2)


def test_a_seed_repeats_the_draws() -> None:
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    sampler = Sampler(temperature=1.5)
    assert [sampler.choose(LOGITS, (), first) for _ in range(20)] == [
        sampler.choose(LOGITS, (), second) for _ in range(20)
    ]


def test_the_logits_given_are_not_changed() -> None:
    logits = LOGITS.clone()
    Sampler(0.7, 2, 0.5, 0.1, 1.3).probabilities(logits, [0])
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("num_tokens", [20_000, 4096, 200])
def test_top_p_finds_the_likeliest_wherever_they_are_in_a_vocabulary(num_tokens: int) -> None:
    halves = torch.full((num_tokens,), -1e4)
    ids = torch.tensor([num_tokens - 1, 3, num_tokens // 2, 7, 150])
    halves[ids] = -math.log(2) * torch.arange(5)  # 1/2, 1/4, 1/8, 1/16 and 1/32, of 31/32
    kept = Sampler(top_p=0.95).probabilities(halves).nonzero().flatten()
    assert kept.tolist() == sorted(ids[:4].tolist())  # 28/31 is 0.90, 30/31 is 0.97


@pytest.mark.parametrize(("num_equal", "num_others"), [(512, 9_000), (8192, 16_384), (64, 100)])
def test_of_tokens_as_likely_as_each_other_top_p_takes_those_with_the_lowest_ids(
    num_equal: int, num_others: int
) -> None:
    # At a quarter of the equal ones; the list of the likeliest that is tried ends among them.
    order = torch.randperm(num_equal + num_others, generator=torch.Generator().manual_seed(0))
    equal = order[:num_equal].sort().values
    logits = torch.full((num_equal + num_others,), -1e4)
    logits[equal] = 2.0
    kept = Sampler(top_p=0.25).probabilities(logits).nonzero().flatten()
    assert kept.tolist() == equal[: num_equal // 4].tolist()


@pytest.mark.parametrize(
    "sampler",
    [Sampler(temperature=1e-40), Sampler(temperature=1e-320), Sampler(top_p=1e-50), Sampler(1e-9)],
)
def test_what_rounds_to_nothing_takes_the_likeliest(sampler: Sampler) -> None:
    assert distribution(sampler) == [1.0, 0.0, 0.0, 0.0]
    assert sampler.choose(LOGITS, (), torch.Generator()) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(), Sampler(0.8, 2, 0.8, 0.1)])
def test_logits_that_are_no_numbers_choose_no_token(value: float, sampler: Sampler) -> None:
    logits = LOGITS.clone()
    logits[2] = value
    with pytest.raises(QuantError, match=str(value)):
        sampler.choose(logits, (), torch.Generator())


def test_where_no_token_is_allowed_none_is_chosen() -> None:
    with pytest.raises(QuantError, match="-inf"):
        Sampler(0.0).choose(torch.full((4,), -math.inf), (), torch.Generator())
