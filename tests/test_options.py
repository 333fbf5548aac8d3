"""The option table: names, rules, and messages that tell the rule."""

import pytest

from erniechat.errors import UsageError
from erniechat.options import OPTIONS, BenchOptions, LoadOptions, SamplingOptions


def test_every_setting_has_one_name_for_flag_variable_and_set():
    assert OPTIONS["top_p"].flag == "--top-p"
    assert OPTIONS["top_p"].variable == "ERNIECHAT_TOP_P"
    assert OPTIONS["model"].spec.short == "-m"


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("temperature", "hot", "a number at least 0 and at most 5"),
        ("temperature", "-1", "a number at least 0 and at most 5"),
        ("temperature", "nan", "a number at least 0 and at most 5"),
        ("temperature", "3000", "a number at least 0 and at most 5"),
        ("repetition_penalty", "11", "a number above 0 and at most 5"),
        ("top_p", "0", "a number above 0 and at most 1"),
        ("top_k", "1.5", "a whole number at least 0"),
        ("thoughts", "some", "one of auto, full, summary, none"),
        ("offline", "maybe", "true or false"),
    ],
)
def test_a_bad_value_is_answered_with_flag_rule_and_what_was_typed(name: str, text: str, rule: str):
    with pytest.raises(UsageError) as caught:
        OPTIONS[name].parse(text)
    assert str(caught.value) == f'{OPTIONS[name].flag} must be {rule}, got "{text}"'
    with pytest.raises(UsageError, match=r"^ERNIECHAT_X must be"):
        OPTIONS[name].parse(text, "ERNIECHAT_X")


def test_options_are_checked_on_creation():
    with pytest.raises(UsageError, match=r'--quant must be one of .*, got "int3"'):
        LoadOptions(quant="int3")
    with pytest.raises(UsageError, match="--top-p"):
        SamplingOptions(top_p=1.5)


def test_given_sampling_wins_over_defaults():
    mine, theirs = SamplingOptions(temperature=0.2), SamplingOptions(temperature=0.8, top_p=0.9)
    assert mine.over(theirs) == SamplingOptions(temperature=0.2, top_p=0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runs": 0}, '--runs must be a whole number at least 1, got "0"'),
        ({"layers": 2}, "--layers needs --synthetic CONFIG_DIR"),
        ({"synthetic": "dir", "quality": "file"}, "--quality and --synthetic contradict"),
    ],
)
def test_bench_options_refuse_what_cannot_be_measured(values: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        BenchOptions(**values)  # type: ignore[arg-type]  # wrong on purpose
