"""`erniechat bench --ab`: the same measurement with some settings changed, in turns."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from erniechat.errors import UsageError
from erniechat.options import OPTIONS, LoadOptions

MEASURED = {"prefill": "tok/s", "decode": "tok/s", "first_token": "s", "hit_rate": "share"}
LEAST = 1e-9  # of a hit rate, to be divided by


def changed(load: LoadOptions, settings: str) -> LoadOptions:
    """Options with some of them changed.

    Args:
        load: As given.
        settings: ``name=value,name=value``.

    Raises:
        UsageError: If there is no such setting of a model, or its value breaks its rule.
    """
    values: dict[str, Any] = {}
    for text in settings.split(","):
        name, has_value, value = text.strip().partition("=")
        name = name.replace("-", "_")
        option = OPTIONS.get(name)
        if not has_value or option is None or option.owner is not LoadOptions:
            raise UsageError(
                f'--ab takes settings of a model as name=value, got "{text.strip()}"',
                "for instance --ab stage=off",
            )
        values[name] = option.parse(value, f"{name} in --ab")
    return dataclasses.replace(load, **values)


def compare(
    load: LoadOptions,
    settings: str,
    num_rounds: int,
    measure: Callable[[LoadOptions], Mapping[str, float]],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Load and measure in turns, the order turned round each time.

    Args:
        load: As given.
        settings: Of the other side.
        num_rounds: Measurements of each side.
        measure: Loads a model, measures, and lets go of it.
        report: Told in a line what is being done.

    Returns:
        By what was measured the median of each side and of the ratios within a round.
    """
    sides = {"given": load, "changed": changed(load, settings)}
    rounds: list[dict[str, Mapping[str, float]]] = []
    for number in range(num_rounds):
        found = {}
        for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
            report(
                f"round {number + 1} of {num_rounds}, {'as given' if side == 'given' else settings}"
            )
            found[side] = measure(sides[side])
        rounds.append(found)
    return {
        "ab": settings,
        "rounds": num_rounds,
        "model": load.model,
        "measured": {
            name: {
                "given": statistics.median(each["given"][name] for each in rounds),
                "changed": statistics.median(each["changed"][name] for each in rounds),
                "ratio": statistics.median(
                    each["changed"][name] / max(each["given"][name], LEAST) for each in rounds
                ),
            }
            for name in MEASURED
        },
    }


def format_comparison(result: Mapping[str, Any]) -> str:
    """The result as a table for people."""
    lines = [
        f"{result['model']} · {result['rounds']} rounds in turns, medians · ratio: {result['ab']}"
        " to as given",
        "",
        f"  {'':<14}{'as given':>12}{'changed':>12}{'ratio':>9}",
    ]
    for name, row in result["measured"].items():
        label = f"{name.replace('_', ' ')}, {MEASURED[name]}"
        lines.append(
            f"  {label:<18}{row['given']:>8.4g}{row['changed']:>12.4g}{row['ratio']:>8.2f}×"
        )
    return "\n".join(lines) + "\n"
