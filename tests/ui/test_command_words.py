"""Words that look like commands: told at once, where a wrong guess would load a model."""

import re

import pytest

from erniechat.ui.arguments import parse_arguments
from tests.ui.test_arguments import error_of


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["bnech"], 'there is no command "bnech"; did you mean erniechat bench?'),
        (["session"], 'there is no command "session"; did you mean erniechat sessions?'),
        (["--4bit", "info"], "info comes first: erniechat info …"),
        (["--offline", "cache", "ls"], "cache comes first: erniechat cache ls …"),
        (["chat"], 'there is no command "chat": erniechat alone chats'),
        (["run", "baidu/X"], 'there is no command "run": erniechat --model NAME'),
        (["run", "mini"], 'there is no command "run": erniechat --model NAME'),
        (["pull", "ernie4.5:21b"], 'there is no command "pull": erniechat --model NAME'),
        (["run", "ernie.gguf"], 'there is no command "run": erniechat --model NAME'),
        (["version"], 'there is no command "version": erniechat --version'),
        (["show", "baidu/X"], 'there is no command "show": erniechat plan MODEL'),
        (["quantize", "baidu/X"], 'there is no command "quantize": the first start quantizes'),
        (["help", "cahce"], 'there is no command "cahce"; did you mean erniechat help cache?'),
        (["help", "me"], 'there is no command "me"; erniechat help lists them'),
    ],
)
def test_a_command_that_is_none_is_told_before_a_model_is_loaded(argv: list[str], answer: str):
    message = error_of(*argv)
    assert message.startswith(answer)
    words = " ".join(word for word in argv if not word.startswith("-"))
    assert re.search(rf'[;?.:] [Tt]o ask the model: erniechat -p "{words}"$', message)
    assert "?;" not in message


@pytest.mark.parametrize(
    "argv",
    [
        ["explain"],
        ["hello"],
        ["run", "to", "the", "hills"],
        ["run", "fast"],
        ["list", "primes:"],
        ["list", "three", "capitals"],
        ["cache", "or", "cash?"][1:],
        ["help", "me", "please"],
        ["--", "bench"],
        ["-p", "x", "bench"],
    ],
)
def test_a_question_stays_a_question(argv: list[str]):
    assert parse_arguments(argv).text == " ".join(w for w in argv if w not in ("--", "-p", "x"))


def test_each_command_has_its_line_and_its_page_in_help():
    page = parse_arguments(["help"]).help
    for name in ("plan", "export", "bench", "sessions", "config", "cache", "profile", "doctor"):
        assert f"\n  erniechat {name} " in page
        assert parse_arguments(["help", name]).help.startswith(f"usage: erniechat {name}")
