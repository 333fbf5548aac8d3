"""Where a part of a reply stands in the prompt, by the templates of the two real models."""

from pathlib import Path

import pytest

from erniechat.chat.conversation import Message
from erniechat.chat.template import ChatTemplate

FIXTURES = Path(__file__).parent / "fixtures"
USER = [Message("user", "hi")]


def continued(name: str, part: Message, think: str = "auto") -> tuple[str, bool]:
    template = ChatTemplate((FIXTURES / f"{name}.jinja").read_text())
    prompt = template.render(USER, think=think)  # type: ignore[arg-type]  # one of the modes
    text, in_thinking = template.frame().join(prompt.text, prompt.starts_in == "thinking", part)
    assert text.startswith(prompt.text.rstrip("\n"))
    return text[len(prompt.text.rstrip("\n")) :], in_thinking


@pytest.mark.parametrize(
    ("name", "think", "part", "tail", "in_thinking"),
    [
        ("pt", "auto", Message("assistant", "So it"), "So it", False),
        ("thinking", "auto", Message("assistant", "", "Hm"), "\nHm", True),
        ("thinking", "auto", Message("assistant", "So it", "Hm"),
         "\nHm\n</think>\n<response>\nSo it", False),
        ("thinking", "off", Message("assistant", "So it"), "\n<response>\nSo it", False),
        ("switchable", "auto", Message("assistant", "So it", "Hm"),
         "\nHm\n</think>\n\nSo it", False),
    ],
)  # fmt: skip  # a case a line or two
def test_the_part_stands_as_the_model_was_trained_to_write_it(
    name: str, think: str, part: Message, tail: str, in_thinking: bool
):
    assert continued(name, part, think) == (tail, in_thinking)
