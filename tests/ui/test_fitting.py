"""A document that is too long even to be counted: it is cut all the same."""

from collections.abc import Sequence
from typing import Any

from erniechat.chat.conversation import Message, ThinkMode
from erniechat.errors import ContextLengthError
from erniechat.ui.asking import Question
from erniechat.ui.fitting import CUT, fit
from erniechat.ui.oneshot import Request
from tests.fakes import FakeBackend


class Overwhelmed(FakeBackend):
    """Counts no prompt of more than 50,000 characters."""

    def count_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> int:
        if sum(len(message.content) for message in messages) > 50_000:
            raise ContextLengthError("more than any context holds")
        return super().count_prompt(messages, tools=tools, think=think)


def test_what_cannot_be_counted_is_cut_until_it_fits():
    question = Question("word " * 20_000, "sum up")
    text, share = fit(question, "tail", Overwhelmed(), Request("", None, ()))
    assert text.startswith(CUT)
    assert text.endswith("word \n\nsum up")
    assert 3500 < len(text.split()) <= 4096 - 512
    assert share > 0.8
