"""Skill: weekdays, months and leap years."""

from random import Random

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.dates import (
    DAYS_AFTER,
    DAYS_BEFORE,
    FEBRUARY,
    LEAP_YEAR,
    MONTH_LENGTH,
    NEIGHBOUR_DAY,
)
from erniechat.mini.skills.sample import Sample

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
CENTURIES = [1600, 1700, 1800, 1900, 2000, 2100, 2400]
KINDS = [
    *(["after"] * 5 + ["before"] * 2),
    *("month", "leap", "feb", "nth", "next", "nextmonth"),
]


def _weekday(rng: Random, kind: str) -> Sample:
    """So many days after or before a weekday."""
    day_idx = rng.randrange(7)
    num_days = rng.choice(
        [rng.randrange(1, 8), rng.randrange(1, 31), rng.randrange(1, 101), rng.randrange(1, 101)]
    )
    day = DAYS[day_idx]
    template = rng.choice(DAYS_AFTER if kind == "after" else DAYS_BEFORE)
    weeks, rest = divmod(num_days, 7)
    direction = 1 if kind == "after" else -1
    moves = ", ".join(
        f"{step} {DAYS[(day_idx + direction * step) % 7]}" for step in range(1, rest + 1)
    )
    steps = [
        f"start: {day}",
        f"{num_days} = {weeks} × 7 + {rest}, so move {rest}" if weeks else f"move {num_days}",
        moves or "the same day",
    ]
    answer = DAYS[(day_idx + direction * num_days) % 7]
    verb = "is" if kind == "after" else "was"
    content = f"{num_days} day{'s' * (num_days > 1)} {kind} {day} {verb} {answer}."
    question = template.format(n=num_days, d=day)
    key = f"{kind} {day} {num_days}"
    return Sample("dates", key, question, "\n".join(steps), content, answer, answer)


def _month_length(rng: Random) -> Sample:
    month_idx = rng.choice([idx for idx in range(12) if idx != 1])
    template = rng.choice(MONTH_LENGTH)
    month, length = MONTHS[month_idx], str(MONTH_DAYS[month_idx])
    thoughts = f"month: {month}, number {month_idx + 1}\nit has {length} days"
    content = f"{month} has {length} days."
    question = template.format(m=month)
    return Sample("dates", template + month, question, thoughts, content, length, length)


def _leap_step(year: int) -> tuple[str, bool]:
    """The line that decides whether a year is a leap year, and whether it is."""
    last_two = year % 100
    if last_two == 0:
        leap = year % 400 == 0
        rest = year // 100 % 4
        why = "leaves nothing, so leap year" if leap else f"leaves {rest}, so no leap year"
        return f"{year} is a full century: {year // 100} / 4 {why}", leap
    quarters, rest = divmod(last_two, 4)
    remainder = f" + {rest}" if rest else ""
    verdict = ", so no leap year" if rest else ", so leap year"
    return (
        f"last two digits {last_two:02d}: {last_two} = 4 × {quarters}{remainder}{verdict}",
        not rest,
    )


def _year(rng: Random, kind: str) -> Sample:
    """Leap years and the length of February."""
    year = rng.randrange(1890, 2110) if rng.random() < 0.9 else rng.choice(CENTURIES)
    step, leap = _leap_step(year)
    if kind == "leap":
        question = rng.choice(LEAP_YEAR).format(y=year)
        answer = "Yes" if leap else "No"
        content = f"{answer}, {year} is {'a' if leap else 'not a'} leap year."
        return Sample("dates", f"leap {year}", question, step, content, answer, answer)
    length = "29" if leap else "28"
    question = rng.choice(FEBRUARY).format(y=year)
    thoughts = f"{step}\nFebruary has {length} days then"
    content = f"February {year} has {length} days."
    return Sample("dates", f"feb {year}", question, thoughts, content, length, length)


def _nth_month(rng: Random) -> Sample:
    """The number of a month, and the month of a number."""
    month_idx = rng.randrange(12)
    number, month = month_idx + 1, MONTHS[month_idx]
    nth = f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number, "th")
    numbered = f"{month} is month number {number}."
    question, content, answer = rng.choice(
        [
            (f"Which month is number {number}?", f"Month number {number} is {month}.", month),
            (f"What is the {nth} month of the year?", f"The {nth} month is {month}.", month),
            (f"What number is {month}?", numbered, str(number)),
            (f"Which number is the month {month}?", numbered, str(number)),
        ]
    )
    named = ", ".join(f"{place} {name}" for place, name in enumerate(MONTHS[:number], 1))
    thoughts = "months in order: " + named
    return Sample("dates", question, question, thoughts, content, answer, answer)


def _neighbour(rng: Random, unit: str, names: list[str], templates: list[str]) -> Sample:
    """The day or month next to another."""
    idx, direction = rng.randrange(len(names)), rng.choice([1, -1])
    side, way = ("after", "on") if direction == 1 else ("before", "back")
    name = names[idx]
    question = rng.choice(templates).format(w=side, d=name, m=name)
    answer = names[(idx + direction) % len(names)]
    thoughts = f"one {unit} {way} from {name}"
    content = f"The {unit} {side} {name} is {answer}."
    return Sample("dates", question, question, thoughts, content, f"is {answer}", answer)


def dates(rng: Random, facts: Facts) -> Sample:
    """Weekdays, months, leap years."""
    kind = rng.choice(KINDS)
    if kind in ("after", "before"):
        return _weekday(rng, kind)
    if kind == "month":
        return _month_length(rng)
    if kind in ("leap", "feb"):
        return _year(rng, kind)
    if kind == "nth":
        return _nth_month(rng)
    if kind == "next":
        return _neighbour(rng, "day", DAYS, NEIGHBOUR_DAY)
    templates = ["What month comes {w} {m}?", "Which month is {w} {m}?"]
    return _neighbour(rng, "month", MONTHS, templates)
