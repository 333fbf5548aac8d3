"""Skill: second and later turns of a conversation."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from erniechat.mini.chat import visible
from erniechat.mini.skills.arithmetic import (
    add,
    divide,
    expression,
    multiply,
    operands,
    story,
    subtract,
)
from erniechat.mini.skills.chain import chain
from erniechat.mini.skills.dates import dates
from erniechat.mini.skills.facts import (
    countries,
    country_fact,
    country_name,
    definition,
    dictionary,
    elements,
    some_country,
)
from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.ordering import compare, ordering, sequence
from erniechat.mini.skills.phrasings.arithmetic import SUMS
from erniechat.mini.skills.phrasings.facts import COUNTRY_QUESTIONS, DEFINE
from erniechat.mini.skills.phrasings.followup import (
    ANOTHER_SUM,
    ARE_YOU_SURE,
    GO_ON,
    HOW,
    NEXT_COUNTRY,
    NEXT_COUNTRY_FIRST,
    NEXT_ELEMENT,
    NEXT_UNIT,
    NEXT_WORD,
    SAME_COUNTRY,
)
from erniechat.mini.skills.phrasings.units import CONVERT
from erniechat.mini.skills.sample import Generator, Sample
from erniechat.mini.skills.smalltalk import personal, smalltalk
from erniechat.mini.skills.steps import random_number, solve
from erniechat.mini.skills.units import (
    conversion,
    pair_in_spelling,
    random_spelling_idx,
    random_unit_idx,
    units,
)
from erniechat.mini.skills.unknown import unknown
from erniechat.mini.skills.words import count_letters, reverse

Messages = list[dict[str, Any]]

KINDS = [
    *("country", "country", "attribute", "sum", "sum", "unit", "element", "name", "name"),
    *("sure", "how", "again", "word", "switch", "switch", "switch"),
]
SINGLE: list[tuple[Generator, int]] = [  # what a conversation is made of, with weights
    *[(add, 4), (subtract, 3), (multiply, 2), (divide, 1), (compare, 1), (ordering, 1)],
    *[(count_letters, 1), (reverse, 1), (dates, 2), (units, 2), (countries, 5), (elements, 2)],
    *[(dictionary, 3), (smalltalk, 4), (unknown, 2), (sequence, 1), (story, 1), (chain, 1)],
]
SHORT_ATTRIBUTES = ("capital", "currency", "language", "continent")


def _exchange(question: str, reply: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def _turn(sample: Sample) -> Messages:
    """A finished exchange, as it stands in the history."""
    return _exchange(sample.question, visible(sample.content))


def _single(rng: Random, facts: Facts) -> Sample:
    generators = [generator for generator, _ in SINGLE]
    return rng.choices(generators, [weight for _, weight in SINGLE])[0](rng, facts)


def _about_countries(rng: Random, facts: Facts, kind: str, history: Messages) -> Sample | None:
    """The same question about another country, or another one about the same; None: draw again."""
    attribute = rng.choice(["capital", "capital", "currency", "language", "continent"])
    first, second = some_country(rng, facts), some_country(rng, facts)
    if not first[attribute] or not second[attribute] or first is second:
        return None
    template = rng.choice(COUNTRY_QUESTIONS[attribute])
    asked = template.format(c=country_name(rng, first))
    history = history + _turn(country_fact(first, attribute, asked, key=""))
    if kind == "attribute":
        others = [name for name in SHORT_ATTRIBUTES if name != attribute and first[name]]
        other = rng.choice(others)
        question = rng.choice(SAME_COUNTRY[other])
        key = f"follow {other} {first['iso']} {attribute} {question}"
        country, attribute, step = first, other, "same country as before"
    else:
        if rng.random() < 0.3:
            between = some_country(rng, facts)
            if between[attribute]:
                asked = rng.choice(NEXT_COUNTRY_FIRST).format(c=between["name"])
                history += _turn(country_fact(between, attribute, asked, key=""))
        template = rng.choice(NEXT_COUNTRY)
        question = template.format(c=country_name(rng, second))
        key = f"follow {attribute} {first['iso']} {second['iso']} {template}"
        country, step = second, "same question as before"
    sample = country_fact(country, attribute, question, key=key, skill="followup", steps=[step])
    return replace(sample, history=history)


def _go_on(rng: Random, facts: Facts, last: int) -> tuple[str, int, str, int, str]:
    """Calculate on with the last result: question, operands with operator, first thought."""
    operator = rng.choice("++--×")
    if operator == "×":
        right = rng.randrange(2, 10)
    else:
        right = random_number(rng, rng.choice([1, 2, 2, 3]))
    if (operator == "×" and last > 999) or (operator == "-" and right > last):
        operator = "+"
    question = rng.choice(GO_ON[operator]).format(b=right)
    return question, last, operator, right, f"last result {last}\n"


def _another_sum(rng: Random, operator: str) -> tuple[str, int, str, int, str]:
    left, right = operands(rng, operator)
    written = expression(rng, left, operator, right)
    return rng.choice(ANOTHER_SUM).format(e=written), left, operator, right, ""


def _about_sums(rng: Random, facts: Facts, kind: str, history: Messages) -> Sample:
    """After a sum: go on with it, another one, check it, explain it."""
    operator = rng.choice("++-×")
    left, right = operands(rng, operator)
    if operator == "-" and left < right:
        left, right = right, left
    written = expression(rng, left, operator, right)
    steps, result, equation = solve(left, operator, right)
    history = history + _exchange(rng.choice(SUMS).format(e=written), equation)
    shown = f"{left} {operator} {right}"
    if kind == "sure":
        question = rng.choice(ARE_YOU_SURE)
        thoughts = "\n".join([f"check {shown} again", *steps])
        content = f"Yes, I checked: {equation}"
        key = f"sure {shown}"
        return Sample("followup", key, question, thoughts, content, result, history=history)
    if kind == "how":
        question = rng.choice(HOW)
        thoughts = f"explain {shown}, line by line"
        content = "\n".join(f"- {step}" for step in steps)
        key = f"how {shown}"
        return Sample("followup", key, question, thoughts, content, result, history=history)
    if kind == "sum":
        question, left, operator, right, first = _go_on(rng, facts, int(result))
    else:
        question, left, operator, right, first = _another_sum(rng, operator)
    steps, result, equation = solve(left, operator, right)
    key = f"{left} {operator} {right}"
    thoughts = first + "\n".join([key, *steps])
    return Sample("followup", key, question, thoughts, equation, result, result, history=history)


def _about_units(rng: Random, facts: Facts, kind: str, history: Messages) -> Sample:
    unit_idx = random_unit_idx(rng)
    pair = pair_in_spelling(unit_idx, random_spelling_idx(rng, unit_idx))
    source, target = pair.larger_spelling, pair.smaller_spelling
    first, second = rng.randrange(2, 60), rng.randrange(2, 60)
    asked = rng.choice(CONVERT).format(n=first, a=source, b=target)
    history = history + _turn(conversion(first, pair, asked))
    question = rng.choice(NEXT_UNIT).format(n=second, a=source)
    sample = conversion(second, pair, question)
    thoughts = f"same units as before: {pair.larger} to {pair.smaller}\n{sample.thoughts}"
    return replace(sample, skill="followup", history=history, thoughts=thoughts)


def _about_elements(rng: Random, facts: Facts, kind: str, history: Messages) -> Sample:
    first, second = rng.sample(facts.elements, 2)
    symbol = rng.random() < 0.5
    if symbol:
        templates = ["What is the symbol of {e}?", "symbol of {e}"]
        field, wanted, other = "symbol", "symbol", f"number {second['number']}"
    else:
        templates = ["What is the atomic number of {e}?", "atomic number of {e}"]
        field, wanted, other = "number", "atomic number", f"symbol {second['symbol']}"
    asked = rng.choice(templates).format(e=first["name"])
    told = f"The {wanted} of {first['name']} is {first[field]}."
    question = rng.choice(NEXT_ELEMENT).format(e=second["name"])
    answer = str(second[field])
    thoughts = (
        f"same question as before\nasked: {wanted}\n"
        f"element: {second['name']}, {other}\nit is {answer}"
    )
    return Sample(
        "followup",
        f"{symbol} {first['name']} {second['name']}",
        question,
        thoughts,
        f"The {wanted} of {second['name']} is {answer}.",
        answer,
        answer,
        history=history + _exchange(asked, told),
    )


def _about_words(rng: Random, facts: Facts, kind: str, history: Messages) -> Sample:
    first, second = rng.sample(facts.dictionary_words, 2)
    history = history + _turn(definition(rng, facts, rng.choice(DEFINE), first))
    sample = definition(rng, facts, rng.choice(NEXT_WORD), second)
    return replace(
        sample,
        skill="followup",
        key=f"follow {first} {second}",
        history=history,
        thoughts="same question as before\n" + sample.thoughts,
    )


def _about_the_user(rng: Random, facts: Facts, kind: str, history: Messages) -> Sample:
    told = personal(rng, facts)
    pair = _exchange(told.telling, told.reply)
    num_between = rng.choice([0, 0, 1, 2])
    between = [message for _ in range(num_between) for message in _turn(_single(rng, facts))]
    return Sample(
        "followup",
        f"{told.kind} {told.value}",
        told.question,
        f"They told me earlier: {told.value}.",
        told.answer,
        told.value,
        told.value,
        history=history + pair + between,
        keep_case=True,
    )


def _change_of_subject(rng: Random, facts: Facts, kind: str, history: Messages) -> Sample:
    """A question after others that have nothing to do with it."""
    sample = _single(rng, facts)
    num_before = rng.choice([1, 1, 2, 3]) if rng.random() < 0.9 else rng.randrange(4, 25)
    before = [message for _ in range(num_before) for message in _turn(_single(rng, facts))]
    return replace(sample, skill="followup", history=before)


def followup(rng: Random, facts: Facts) -> Sample:
    """Second and later turns."""
    kind = rng.choice(KINDS)
    history = _turn(_single(rng, facts)) if rng.random() < 0.25 else []
    makers: dict[str, Callable[[Random, Facts, str, Messages], Sample | None]] = {
        "country": _about_countries,
        "attribute": _about_countries,
        "sum": _about_sums,
        "sure": _about_sums,
        "how": _about_sums,
        "again": _about_sums,
        "unit": _about_units,
        "element": _about_elements,
        "word": _about_words,
        "name": _about_the_user,
        "switch": _change_of_subject,
    }
    return makers[kind](rng, facts, kind, history) or followup(rng, facts)
