"""Amounts of memory as users write them: 6GiB, 6G, 500MB, 50%."""

import math
import re
from fractions import Fraction

RULE = "a size such as 6GiB, 500MB or 50%"
# One letter means 1,024, as it does to other programs that limit memory; with a B it says which.
UNITS: dict[str, int] = {
    "B": 1,
    **{unit: 1024**power for power, unit in enumerate("KMGT", 1)},
    **{unit + "IB": 1024**power for power, unit in enumerate("KMGT", 1)},
    **{unit + "B": 1000**power for power, unit in enumerate("KMGT", 1)},
}
_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Z]+|%)")
MAX_NBYTES = 1 << 60


def is_size(text: str) -> bool:
    """Whether `size_nbytes` understands a text."""
    return size_nbytes(text, MAX_NBYTES) is not None


def size_nbytes(text: str, total_nbytes: int) -> int | None:
    """Bytes that a text stands for, None if it is no size.

    Args:
        text: A number and a unit; a number alone is refused, since it could mean any unit.
        total_nbytes: What 100 % is.
    """
    found = _FORM.fullmatch(text.strip().upper())
    if not found:
        return None
    number, unit = Fraction(found[1]), found[2]
    if unit == "%":
        return math.floor(number * total_nbytes / 100) if number <= 100 else None
    if unit not in UNITS or number * UNITS[unit] > MAX_NBYTES:
        return None
    return math.floor(number * UNITS[unit])


def shown_size(nbytes: float) -> str:
    """Bytes for people: ``6.3 GiB``, ``512 MiB``."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << power:
            value = nbytes / (1 << power)
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{nbytes:.0f} B"


def shown_file_size(nbytes: float) -> str:
    """Bytes of files as hubs and disks tell them: ``43.7 GB``, ``512 MB``, ``8.8 MB``."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.1f} GB"
    return f"{nbytes / 1e6:.0f} MB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def least_size(nbytes: int) -> str:
    """The shortest size to type that is not less than so many bytes: ``2.4GiB``, ``35MiB``."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << power:
            tenths = -(-nbytes * 10 >> power)
            return f"{tenths // 10}.{tenths % 10}{unit}" if tenths % 10 else f"{tenths // 10}{unit}"
    return f"{nbytes}B"
