"""A routing profile as a map: a line a layer, a cell an expert, the more used the fuller."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

LEVELS = {True: " ▁▂▃▄▅▆▇█", False: " .:-=+*#@"}
# From cold to hot in the 256 colours that nearly all terminals have.
COLORS = (17, 18, 19, 54, 90, 126, 161, 197, 203)
MAX_RATIO = 4.0  # times the average: the fullest cell
MAX_CELLS = 64  # in a line; layers with more experts take several
LABEL_WIDTH = 9


def profile_page(
    facts: Mapping[str, Any], *, color: bool, utf8: bool, width: int | None = None
) -> str:
    """`erniechat profile show`.

    Args:
        facts: ``model``, ``num_tokens``, and ``counts`` by layer.
        color: Whether cells are coloured.
        utf8: Whether the terminal shows more than ASCII.
        width: Its columns; None for a pipe.
    """
    counts: Mapping[str, Sequence[float]] = facts["counts"]
    if not any(map(any, counts.values())):
        return _wrapped(
            f"{facts['model']}: no routing profile yet; it grows with every chat, and "
            "erniechat profile calibrate makes one in a minute",
            width,
        )
    lines = [f"{facts['model']} · {facts['num_tokens']:,.0f} recent tokens"]
    levels, cells_a_line = LEVELS[utf8], _cells_a_line(width)
    for layer, row in counts.items():
        ratios = [count * len(row) / (sum(row) or 1.0) for count in row]
        for first in range(0, len(row), cells_a_line):
            some = ratios[first : first + cells_a_line]
            cells = "".join(_cell(ratio, levels, color) for ratio in some)
            label = f"layer {layer:>2}" if first == 0 else ""
            lines.append(f"{label:<{LABEL_WIDTH}}|{cells}|")
    scale = "".join(_cell(step / 2, levels, color) for step in range(9))
    lines.append(f"{'':<{LABEL_WIDTH}}|{scale}| 0 to {MAX_RATIO:g} times the average")
    shares = [f"{percent} % take {100 * _taken(counts, percent):.0f} %" for percent in (25, 50, 75)]
    told = f"the busiest {', '.join(shares)} of the uses"
    return "\n".join([*lines, _wrapped(told, width)])


def _wrapped(text: str, width: int | None) -> str:
    lines = [text] if width is None else textwrap.wrap(text, max(1, width - 1))
    return "\n".join(lines) + "\n"


def _cells_a_line(width: int | None) -> int:
    """As many as there is room for: all, a half, a quarter, so that rows begin alike."""
    cells = MAX_CELLS
    while width is not None and cells > 8 and LABEL_WIDTH + cells + 2 > width:
        cells //= 2
    return cells


def _cell(ratio: float, levels: str, color: bool) -> str:
    level = min(len(levels) - 1, round(ratio / MAX_RATIO * (len(levels) - 1)))
    if level == 0 and ratio > 0:
        level = 1
    return f"\x1b[38;5;{COLORS[level]}m{levels[level]}\x1b[0m" if color else levels[level]


def _taken(counts: Mapping[str, Sequence[float]], percent: int) -> float:
    """Share of the uses that so many of the busiest experts of all layers take."""
    ranked = sorted((count for row in counts.values() for count in row), reverse=True)
    return sum(ranked[: len(ranked) * percent // 100]) / (sum(ranked) or 1.0)
