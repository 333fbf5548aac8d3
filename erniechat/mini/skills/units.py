"""Skill: conversion of units and temperatures."""

from dataclasses import dataclass
from random import Random

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.units import CELSIUS, CONVERT, FAHRENHEIT, UNITS
from erniechat.mini.skills.sample import Sample
from erniechat.mini.skills.steps import divide_steps, multiply_steps

POWERS_OF_TEN = (10, 100, 1000)
IRREGULAR = {"feet": "foot", "inches": "inch", "dozen": "dozen"}


@dataclass(frozen=True)
class UnitPair:
    """Two units, in one of their spellings, and how many of the smaller make one larger."""

    larger: str
    larger_spelling: str
    factor: int
    smaller: str
    smaller_spelling: str


def pair_in_spelling(unit_idx: int, spelling_idx: int) -> UnitPair:
    """A pair of units in its n-th spelling."""
    larger, larger_spellings, factor, smaller, smaller_spellings = UNITS[unit_idx]
    last = len(smaller_spellings) - 1
    return UnitPair(
        larger,
        larger_spellings[spelling_idx],
        factor,
        smaller,
        smaller_spellings[min(spelling_idx, last)],
    )


def random_unit_idx(rng: Random) -> int:
    """Draw a pair of units."""
    return rng.randrange(len(UNITS))


def random_spelling_idx(rng: Random, unit_idx: int) -> int:
    """Draw a spelling of a pair of units."""
    return rng.randrange(len(UNITS[unit_idx][1]))


def _one(unit: str) -> str:
    return IRREGULAR.get(unit, unit[:-1])


def _amount(unit: str, number: int) -> str:
    return f"{number} {_one(unit) if number == 1 else unit}"


def conversion(number: int, pair: UnitPair, question: str, to_larger: bool = False) -> Sample:
    """The sample for a number of one unit asked for in the other."""
    larger, factor, smaller = pair.larger, pair.factor, pair.smaller
    steps = [f"1 {_one(larger)} = {factor} {smaller}"]
    if to_larger:
        source, target, result = smaller, larger, number // factor
        steps.append(f"{smaller} to {larger}: divide by {factor}")
        if factor not in POWERS_OF_TEN:
            steps += divide_steps(number, factor)
        steps.append(f"{number} / {factor} = {result}")
    else:
        source, target, result = larger, smaller, number * factor
        steps.append(f"{larger} to {smaller}: multiply by {factor}")
        if factor in POWERS_OF_TEN:
            steps.append(f"{number} × {factor} = {result}")
        else:
            steps += multiply_steps(number, factor)
    content = f"{_amount(source, number)} = {_amount(target, result)}"
    key = f"{number} {source} {target}"
    return Sample("units", key, question, "\n".join(steps), content, str(result), str(result))


def _temperature(rng: Random) -> Sample:
    celsius = rng.randrange(-8, 41) * 5
    fahrenheit = celsius * 9 // 5 + 32
    if rng.random() < 0.6:
        question = rng.choice(CELSIUS).format(c=celsius)
        fifth, product = celsius // 5, celsius // 5 * 9
        thoughts = (
            f"C to F: divide by 5, times 9, plus 32\n{celsius} / 5 = {fifth}\n"
            f"{fifth} × 9 = {product}\n{product} + 32 = {fahrenheit}"
        )
        content = f"{celsius} °C = {fahrenheit} °F"
        key, result = f"{celsius} C F", str(fahrenheit)
    else:
        question = rng.choice(FAHRENHEIT).format(f=fahrenheit)
        rest = fahrenheit - 32
        thoughts = (
            f"F to C: minus 32, divide by 9, times 5\n{fahrenheit} - 32 = {rest}\n"
            f"{rest} / 9 = {rest // 9}\n{rest // 9} × 5 = {celsius}"
        )
        content = f"{fahrenheit} °F = {celsius} °C"
        key, result = f"{fahrenheit} F C", str(celsius)
    return Sample("units", key, question, thoughts, content, result, result)


def units(rng: Random, facts: Facts) -> Sample:
    """Unit conversion."""
    if rng.random() < 0.12:
        return _temperature(rng)
    unit_idx = random_unit_idx(rng)
    to_larger = rng.random() < 0.4
    number = rng.choice([rng.randrange(1, 11), rng.randrange(1, 60), rng.randrange(1, 100)])
    pair = pair_in_spelling(unit_idx, random_spelling_idx(rng, unit_idx))
    number = number * pair.factor if to_larger else number
    larger_shown = pair.larger_spelling
    if len(larger_shown) > 3 and number == 1 and not to_larger:
        larger_shown = _one(pair.larger)
    shown = [larger_shown, pair.smaller_spelling]
    source, target = reversed(shown) if to_larger else shown
    question = rng.choice(CONVERT).format(n=number, a=source, b=target)
    return conversion(number, pair, question, to_larger)
