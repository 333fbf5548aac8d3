"""The parser: names, contradictions, order, and what a wrong flag is answered with."""

from collections.abc import Sequence

import pytest

from erniechat.errors import UsageError
from erniechat.options import OPTIONS, BenchOptions
from erniechat.ui.arguments import chat_parser, parse_arguments


def error_of(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_arguments(list(argv))
    return str(caught.value)


def test_every_option_of_the_table_has_its_flag_and_help():
    page = chat_parser().format_help()
    for option in OPTIONS.values():
        flag = "--no-" + option.flag[2:] if option.default is True else option.flag
        assert f"{flag} " in page or f"{flag}\n" in page


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--temperature", "0.5"], {"temperature": 0.5}),
        (["--top-k=3"], {"top_k": 3}),
        (["--no-copy"], {"copy": False}),
        (["--copy"], {"copy": True}),
        (["--offline"], {"offline": True}),
        (["--no-offline"], {"offline": False}),
        (["-qv"], {"quiet": True, "verbose": True}),
        (["-m", "x"], {"model": "x"}),
        (["--4bit"], {"quant": "nf4"}),
        (["--8bit"], {"quant": "int8"}),
        (["--4bit", "--quant", "nf4"], {"quant": "nf4"}),
    ],
)
def test_flags_become_settings(argv: Sequence[str], values: dict[str, object]):
    assert parse_arguments(argv).flags.values == values


@pytest.mark.parametrize(
    "argv",
    [
        ["tell", "me", "--seed", "1"],
        ["--seed", "1", "tell", "me"],
        ["tell", "--seed", "1", "me"],
        ["--seed", "1", "--", "tell", "me"],
    ],
)
def test_flags_stand_before_after_or_between_text(argv: Sequence[str]):
    found = parse_arguments(argv)
    assert (found.text, found.flags.values) == ("tell me", {"seed": 1})


def test_two_dashes_end_the_flags():
    assert parse_arguments(["-q", "--", "--seed", "-x"]).text == "--seed -x"


def test_wrong_flags_get_the_nearest_or_the_full_name():
    assert error_of("--temprature", "1").startswith(
        "unknown option --temprature. Did you mean --temperature?"
    )
    assert "in full: --temperature " in error_of("--temp", "1")
    assert "in full: --top-k, --top-p" in error_of("--top=1")
    assert error_of("-z") == "unknown option -z   (erniechat --help)"


def test_contradictions_are_errors():
    assert error_of("--4bit", "--8bit").startswith("--4bit and --8bit contradict each other")
    assert error_of("--8bit", "--quant", "fp4").startswith("--8bit and --quant fp4 contradict")
    assert "more than once" in error_of("-p", "a", "-p", "b")
    assert "contradict" in error_of("--raw", "--system", "x")
    assert "contradict" in error_of("-p", "-", "--no-stdin")
    assert "contradict" in error_of("--no-copy", "--discard-originals")


def test_missing_and_surplus_values_are_named():
    assert error_of("--seed").startswith("--seed needs a value")
    assert error_of("--json=1").startswith("--json takes no value")
    answer = '--completion must be one of bash, zsh, fish, tcsh, got "csh"'
    assert error_of("--completion", "csh").startswith(answer)
    answer = '--seed must be a whole number at least 0 and at most 9223372036854775807, got "-1"'
    assert error_of("--seed", "-1") == answer


def test_bench_has_its_own_flags_and_the_load_options():
    found = parse_arguments(["bench", "-p", "64", "-n", "8", "--4bit", "-m", "x", "--json"])
    assert found.bench == BenchOptions(prompt_tokens=64, new_tokens=8, json=True)
    assert found.flags.values == {"quant": "nf4", "model": "x"}
    assert parse_arguments(["bench", "-h"]).help.startswith("usage: erniechat bench")
    assert error_of("bench", "-n", "x") == '--new-tokens must be a whole number at least 1, got "x"'
    assert error_of("bench", "hello") == 'erniechat bench takes no text, got "hello"'
    assert error_of("-q", "bench").startswith("bench comes first")
