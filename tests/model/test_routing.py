"""The router by hand: softmax, biased choice, unbiased weights."""

import math

import pytest
import torch

from erniechat.model.routing import route

# One token whose logits are the logarithms of these, so that softmax gives them back.
PROBABILITIES = [0.70, 0.20, 0.05, 0.05]
HIDDEN = torch.tensor([[math.log(p) for p in PROBABILITIES]])
NO_BIAS = torch.zeros(4)
NORM_MIN = 1e-12


def test_weights_are_the_chosen_probabilities_scaled_to_a_sum_of_one():
    ids, weights = route(HIDDEN, torch.eye(4), NO_BIAS, 2, NORM_MIN)
    assert ids.tolist() == [[0, 1]]
    assert weights[0].tolist() == pytest.approx([0.70 / 0.90, 0.20 / 0.90])


def test_correction_bias_changes_the_choice_but_not_the_weights():
    bias = torch.tensor([0.0, 0.0, 0.0, 0.9])  # lifts expert 3 over expert 0
    ids, weights = route(HIDDEN, torch.eye(4), bias, 2, NORM_MIN)
    assert ids.tolist() == [[3, 0]]
    assert weights[0].tolist() == pytest.approx([0.05 / 0.75, 0.70 / 0.75])


def test_a_large_common_bias_changes_nothing():
    ids, weights = route(HIDDEN, torch.eye(4), torch.full((4,), 63.0), 2, NORM_MIN)
    assert ids.tolist() == [[0, 1]]
    assert weights[0].tolist() == pytest.approx([0.70 / 0.90, 0.20 / 0.90])


def test_a_bias_of_0_01_on_top_of_a_large_constant_still_decides():
    hidden = torch.tensor([[0.255, 0.25, 0.25, 0.245]]).log()
    bias = torch.tensor([40.0, 40.0, 40.0, 40.012])  # all 40 in bfloat16, whose step is 0.25 here
    ids, _ = route(hidden, torch.eye(4), bias, 1, NORM_MIN)
    assert ids.tolist() == [[3]]


def test_norm_min_bounds_the_divisor():
    ids, weights = route(HIDDEN, torch.eye(4), NO_BIAS, 1, norm_min=0.875)
    assert ids.tolist() == [[0]]
    assert weights[0].tolist() == pytest.approx([0.70 / 0.875])


def test_everything_is_float32_whatever_the_activations_are():
    gate = torch.eye(4)
    gate[0, 0] = 1 + 2**-9  # lost in bfloat16
    hidden = torch.tensor([[256.0, 256.0, 0.0, 0.0]], dtype=torch.bfloat16)
    ids, weights = route(hidden, gate, NO_BIAS, 2, NORM_MIN)
    assert weights.dtype == torch.float32
    assert ids.tolist() == [[0, 1]]
    odds = math.exp(0.5)  # logits 256.5 and 256
    assert weights[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])


def test_tokens_are_routed_each_by_itself():
    hidden = torch.cat((HIDDEN, HIDDEN.flip(-1)))
    ids, weights = route(hidden, torch.eye(4), NO_BIAS, 1, NORM_MIN)
    assert ids.tolist() == [[0], [3]]
    assert weights.tolist() == [[1.0], [1.0]]
