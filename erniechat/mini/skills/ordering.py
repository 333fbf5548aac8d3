"""Skills: comparing two numbers, sorting a few, continuing a sequence."""

from random import Random

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.ordering import (
    COMPARE,
    COUNT_DOWN,
    COUNT_UP,
    LARGEST,
    NEXT,
    SMALLEST,
    SORT_DOWN,
    SORT_UP,
    TIMES_TABLE,
)
from erniechat.mini.skills.sample import Sample
from erniechat.mini.skills.steps import random_number

STEP_SIZES = [1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12, 20, 25]


def _two_numbers(rng: Random) -> tuple[str, str]:
    """Two different numbers as text, some with decimals."""
    if rng.random() < 0.35:
        whole = rng.randrange(0, 20)
        first, second = (
            f"{whole if rng.random() < 0.7 else rng.randrange(0, 20)}"
            f".{rng.randrange(1, 10 ** rng.choice([1, 2, 2]))}"
            for _ in range(2)
        )
    else:
        num_digits = rng.choice([1, 2, 3, 3, 4])
        first = str(random_number(rng, num_digits))
        other_digits = num_digits if rng.random() < 0.75 else rng.choice([1, 2, 3, 4])
        second = str(random_number(rng, other_digits))
    return (first, second) if float(first) != float(second) else _two_numbers(rng)


def _digit_steps(first: str, second: str) -> list[str]:
    """Compare two strings of one length digit by digit, up to the first difference."""
    steps: list[str] = []
    for left, right in zip(first, second, strict=True):
        if left != right:
            return [*steps, f"{left} and {right}: {max(left, right)} is larger"]
        steps.append(f"{left} = {right}")
    return steps


def _compare_steps(first: str, second: str) -> list[str]:
    if "." in first or "." in second:
        (whole, _, decimals), (other_whole, _, other) = first.partition("."), second.partition(".")
        start = f"whole parts: {whole} and {other_whole}"
        if whole != other_whole:
            return [f"{start}, {max(int(whole), int(other_whole))} is larger"]
        length = max(len(decimals), len(other))
        decimals, other = decimals.ljust(length, "0"), other.ljust(length, "0")
        return [
            f"{start}, equal",
            f"after the point, same length: {' '.join(decimals)} and {' '.join(other)}",
            *_digit_steps(decimals, other),
        ]
    if len(first) != len(second):
        digits = f"{len(first)} digit{'s' * (len(first) > 1)}"
        return [f"{first} has {digits}, {second} has {len(second)}, more digits is larger"]
    return _digit_steps(first, second)


def compare(rng: Random, facts: Facts) -> Sample:
    """Which of two numbers is larger or smaller."""
    first, second = _two_numbers(rng)
    bigger = rng.random() < 0.65
    high, low = (first, second) if float(first) > float(second) else (second, first)
    template = rng.choice(COMPARE)
    verdict = f"{high} is larger than {low}"
    thoughts = "\n".join([*_compare_steps(first, second), verdict])
    wanted = rng.choice(
        ["larger", "bigger", "greater", "more"] if bigger else ["smaller", "less", "lower"]
    )
    key = f"cmp {first} {second}"
    if "Is {x}" in template:
        answer = "Yes" if (high == first) == bigger else "No"
        comparative = wanted if wanted != "more" else "larger"
        question = template.format(w=comparative, x=first, y=second)
        return Sample("compare", key, question, thoughts, f"{answer}, {verdict}.", answer, answer)
    if "ompare" in template:
        question = template.format(x=first, y=second)
        return Sample("compare", key, question, thoughts, f"{verdict}.", verdict)
    question = template.format(w=wanted, x=first, y=second)
    result = high if bigger else low
    return Sample("compare", key, question, thoughts, f"{result} is {wanted}.", result, result)


def _numbers(rng: Random) -> list[int]:
    """Three to five numbers, nearly always without a repetition."""
    count = rng.choice([3, 3, 4, 4, 5, 5])
    num_digits = rng.choice([1, 2, 2, 2, 3])
    numbers = [
        random_number(rng, num_digits if rng.random() < 0.8 else rng.choice([1, 2, 3]))
        for _ in range(count)
    ]
    if rng.random() < 0.9:
        numbers = list(dict.fromkeys(numbers))
        if len(numbers) < 3:
            return _numbers(rng)
    return numbers


def _extreme(numbers: list[int], largest: bool) -> tuple[list[str], int]:
    """The steps to the largest or smallest number, and that number."""
    best = numbers[0]
    steps = [f"start with {best}"]
    for number in numbers[1:]:
        if number > best if largest else number < best:
            best = number
            steps.append(f"{number}: {'larger' if largest else 'smaller'}, keep {number}")
        else:
            steps.append(f"{number}: keep {best}")
    return steps, best


def _sort_steps(numbers: list[int], descending: bool) -> list[str]:
    left, steps = list(numbers), []
    for number in sorted(numbers, reverse=descending):
        left.remove(number)
        rest = f", left {' '.join(map(str, left))}" if left else ""
        steps.append(f"{'largest' if descending else 'smallest'} is {number}{rest}")
    return steps


def ordering(rng: Random, facts: Facts) -> Sample:
    """Sort numbers, or find the largest or smallest."""
    numbers = _numbers(rng)
    kind = rng.choice(["asc", "asc", "asc", "desc", "desc", "max", "min"])
    joined = rng.choice([", ", ", ", ", ", " "]).join(map(str, numbers))
    templates = {"asc": SORT_UP, "desc": SORT_DOWN, "max": LARGEST, "min": SMALLEST}[kind]
    question = rng.choice(templates).format(l=joined)
    key = "sort " + " ".join(map(str, numbers))
    if kind in ("max", "min"):
        steps, best = _extreme(numbers, kind == "max")
        content = f"The {'largest' if kind == 'max' else 'smallest'} is {best}."
        return Sample("sort", key, question, "\n".join(steps), content, str(best), str(best))
    descending = kind == "desc"
    steps = _sort_steps(numbers, descending)
    result = ", ".join(map(str, sorted(numbers, reverse=descending)))
    return Sample("sort", key, question, "\n".join(steps), result, result, result)


def _next_number(rng: Random) -> Sample:
    start, step = rng.randrange(0, 60), rng.choice(STEP_SIZES)
    numbers = [start + step * position for position in range(rng.choice([3, 4, 5]))]
    shown = ", ".join(map(str, numbers))
    question = rng.choice(NEXT).format(l=shown)
    result = str(numbers[-1] + step)
    thoughts = (
        f"{numbers[1]} - {numbers[0]} = {step}, so each step adds {step}\n"
        f"{numbers[-1]} + {step} = {result}"
    )
    content = f"The next number is {result}."
    return Sample("sequence", f"next {shown}", question, thoughts, content, result, result)


def _times_table(rng: Random) -> Sample:
    number = rng.randrange(2, 20)
    template = rng.choice(TIMES_TABLE)
    rows = "\n".join(f"| {number} × {factor} | {number * factor} |" for factor in range(1, 11))
    return Sample(
        "sequence",
        f"table {number} {template}",
        template.format(n=number),
        f"Multiples of {number}: each row adds {number}.",
        f"| | |\n|---|---|\n{rows}",
        f"{number * 10}",
    )


def sequence(rng: Random, facts: Facts) -> Sample:
    """Next number, counting up and down, times tables."""
    kind = rng.choice(["next", "next", "count", "down", "table"])
    if kind == "next":
        return _next_number(rng)
    if kind == "table":
        return _times_table(rng)
    low = 1 if rng.random() < 0.6 else rng.randrange(0, 40)
    high = low + rng.randrange(3, 20)
    if kind == "count":
        template, numbers, direction, end = COUNT_UP, range(low, high + 1), "Up", high
    else:
        template, numbers, direction, end = COUNT_DOWN, range(high, low - 1, -1), "Down", low
    question = rng.choice(template).format(a=low, b=high)
    result = ", ".join(map(str, numbers))
    thoughts = f"{direction} by one each time, until {end}."
    key = f"{kind} {low} {high}"
    return Sample("sequence", key, question, thoughts, result, result, result)
