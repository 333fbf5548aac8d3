"""Amounts of memory: what users write, what it means, and what is told back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniechat.errors import UsageError
from erniechat.options import OPTIONS, LoadOptions
from erniechat.sizes import least_size, shown_size, size_nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("6GiB", 6 * 2**30),
        ("6G", 6 * 2**30),
        ("6gb", 6 * 10**9),
        ("500MB", 500_000_000),
        ("1.5 GiB", 3 * 2**29),
        (".5K", 512),
        ("50%", 500),
        ("12.5%", 125),
        ("100%", 1000),
        ("0B", 0),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, nbytes: int):
    assert size_nbytes(text, 1000) == nbytes


@pytest.mark.parametrize(
    "text", ["", "6", "GiB", "-1G", "101%", "6 Gbit", "1e3M", "nan%", "6GiB4", "9999999999T"]
)
def test_all_else_is_refused_with_the_rule(text: str):
    assert size_nbytes(text, 1000) is None
    with pytest.raises(UsageError) as caught:
        OPTIONS["gpu_memory"].parse(text)
    rule = "a size such as 6GiB, 500MB or 50%"
    assert str(caught.value) == f'--gpu-memory must be {rule}, got "{text}"'
    with pytest.raises(UsageError, match="--cpu-memory must be a size"):
        LoadOptions(cpu_memory=text)


@given(st.integers(0, 1 << 50))
def test_the_least_size_is_enough_and_little_more(nbytes: int):
    typed = size_nbytes(least_size(nbytes), 0)
    assert typed is not None
    assert nbytes <= typed <= nbytes + max(1, nbytes) * 0.11


def test_sizes_are_told_in_three_digits():
    assert shown_size(6.25 * 2**30) == "6.2 GiB"
    assert shown_size(300 * 2**20) == "300 MiB"
    assert shown_size(2048) == "2.0 KiB"
    assert shown_size(17) == "17 B"
