"""Skill `chain`: three terms, precedence, percentages, squares, halves, even and odd."""

from random import Random

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.arithmetic import (
    DOUBLE,
    EVEN_OR_ODD,
    HALF,
    PERCENT,
    SQUARE,
    SUMS,
)
from erniechat.mini.skills.sample import Sample
from erniechat.mini.skills.steps import divide_steps, multiply_steps, random_number, solve

KINDS = ["three", "three", "percent", "square", "double", "even", "mixed", "mixed"]
PERCENTAGES = [5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90]


def _sample(key: str, question: str, steps: list[str], content: str, result: int) -> Sample:
    return Sample("chain", key, question, "\n".join(steps), content, str(result), str(result))


def _mixed(rng: Random) -> Sample:
    """A product and a sum: multiplication comes first."""
    term = random_number(rng, rng.choice([1, 2]))
    left, right = rng.randrange(2, 20), rng.randrange(2, 10)
    product_first = rng.random() < 0.4
    operator = "+" if product_first else rng.choice("+-")
    space, sign = rng.choice([" ", " ", ""]), rng.choice("*x×*")
    product = left * right
    if product_first:
        written = f"{left}{space}{sign}{space}{right}{space}{operator}{space}{term}"
        first, second = product, term
        shown = f"{left} × {right} {operator} {term}"
    else:
        written = f"{term}{space}{operator}{space}{left}{space}{sign}{space}{right}"
        first, second = term, product
        shown = f"{term} {operator} {left} × {right}"
    last = first + second if operator == "+" else first - second
    steps = [
        f"multiplication first: {left} × {right}",
        *multiply_steps(left, right),
        f"then {first} {operator} {second}",
        *solve(first, operator, second)[0],
    ]
    return _sample(shown, rng.choice(SUMS).format(e=written), steps, f"{shown} = {last}", last)


def _apply(left: int, operator: str, right: int) -> tuple[str, int]:
    """The operator, made a sum where the difference would be negative, and the result."""
    if operator == "-" and left >= right:
        return "-", left - right
    return "+", left + right


def _three_terms(rng: Random) -> Sample:
    terms = [random_number(rng, rng.choice([1, 2, 2])) for _ in range(3)]
    first_operator, second_operator = rng.choice("++-"), rng.choice("++-")
    first_operator, first = _apply(terms[0], first_operator, terms[1])
    second_operator, last = _apply(first, second_operator, terms[2])
    space = rng.choice([" ", " ", ""])
    parts = [terms[0], first_operator, terms[1], second_operator, terms[2]]
    steps = [
        f"first {terms[0]} {first_operator} {terms[1]}",
        *solve(terms[0], first_operator, terms[1])[0],
        f"then {first} {second_operator} {terms[2]}",
        *solve(first, second_operator, terms[2])[0],
    ]
    question = rng.choice(SUMS).format(e=space.join(map(str, parts)))
    shown = " ".join(map(str, parts))
    return _sample("".join(map(str, parts)), question, steps, f"{shown} = {last}", last)


def _percent(rng: Random) -> Sample:
    percent, whole = rng.choice(PERCENTAGES), rng.randrange(1, 100) * 20
    result = percent * whole // 100
    template = rng.choice(PERCENT)
    tenth = whole // 10
    steps = [f"10% of {whole} is {tenth}"]
    if percent % 10:
        steps += [f"5% of {whole} is {tenth // 2}", f"{percent}% is {percent // 5} times that"]
        steps += multiply_steps(tenth // 2, percent // 5)
    elif percent > 10:
        steps.append(f"{percent}% is {percent // 10} times that")
        steps += multiply_steps(tenth, percent // 10)
    question = template.format(p=percent, n=whole)
    content = f"{percent}% of {whole} is {result}."
    return _sample(f"{percent}% {whole}", question, steps, content, result)


def _square(rng: Random) -> Sample:
    number = rng.randrange(2, 60)
    question = rng.choice(SQUARE).format(n=number)
    square = number * number
    steps = [f"{number} × {number}", *multiply_steps(number, number)]
    return _sample(f"{number} squared", question, steps, f"{number} squared is {square}.", square)


def _double_or_half(rng: Random) -> Sample:
    number, double = rng.randrange(1, 500), rng.random() < 0.5
    twice = 2 * number
    if double:
        question = rng.choice(DOUBLE).format(n=number)
        content = f"Twice {number} is {twice}."
        return _sample(f"double {number}", question, multiply_steps(number, 2), content, twice)
    question = rng.choice(HALF).format(n=twice)
    content = f"Half of {twice} is {number}."
    return _sample(f"half {number}", question, divide_steps(twice, 2), content, number)


def _even_or_odd(rng: Random) -> Sample:
    number = random_number(rng, rng.choice([1, 2, 3, 4]))
    question = rng.choice(EVEN_OR_ODD).format(n=number)
    answer = "odd" if number % 2 else "even"
    thoughts = f"The last digit of {number} is {number % 10}, which is {answer}."
    key, content = f"even {number}", f"{number} is {answer}."
    return Sample("chain", key, question, thoughts, content, answer, answer)


def chain(rng: Random, facts: Facts) -> Sample:
    """Three terms, percentages, squares, halves."""
    kind = rng.choice(KINDS)
    makers = {
        "mixed": _mixed,
        "three": _three_terms,
        "percent": _percent,
        "square": _square,
        "double": _double_or_half,
        "even": _even_or_odd,
    }
    return makers[kind](rng)
