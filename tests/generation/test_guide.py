"""The budget of thinking, on tokens that are chosen by hand."""

import torch

from erniechat.generation.guide import ThinkingBudget

OPEN, NEWLINE, CLOSE, WORD = range(4)


def test_a_reopened_section_is_closed_again_at_once():
    is_open = True
    budget = ThinkingBudget(2, [NEWLINE, CLOSE], lambda: is_open)

    def allowed() -> list[int]:
        return torch.isfinite(budget.constrain(torch.zeros(4))).nonzero().flatten().tolist()

    for token_id in (WORD, WORD):
        assert len(allowed()) == 4
        budget.accept(token_id)
    for _ in range(2):
        assert allowed() == [NEWLINE]
        budget.accept(NEWLINE)
        assert allowed() == [CLOSE]
        budget.accept(CLOSE)
        is_open = False
        assert len(allowed()) == 4
        budget.accept(OPEN)  # the model thinks again, as it may at a high temperature
        is_open = True


def test_a_closing_that_closes_nothing_is_not_repeated_for_ever():
    budget = ThinkingBudget(0, [CLOSE], lambda: True)
    budget.accept(CLOSE)
    assert torch.isfinite(budget.constrain(torch.zeros(4))).all()
