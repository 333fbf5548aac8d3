"""Skills: the four operations, word problems, and sums that are too hard."""

from dataclasses import replace
from random import Random

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.arithmetic import (
    NAMES,
    OBJECTS,
    STORIES,
    SUMS,
    SUMS_HELD_OUT,
    SUMS_IN_WORDS,
)
from erniechat.mini.skills.sample import Sample
from erniechat.mini.skills.steps import random_number, solve, spell_number

SIGNS = {
    "+": ["+", "+", "plus"],
    "-": ["-", "-", "minus", "−"],
    "×": ["*", "x", "×", "times", "multiplied by"],
    "/": ["/", "÷", "divided by", "over"],
}
SKILL_OF = {"+": "add", "-": "subtract", "×": "multiply", "/": "divide"}
REASON_OF = {
    "+": "put together, so add",
    "-": "taken away, so subtract",
    "×": "equal groups, so multiply",
    "/": "shared equally, so divide",
}
TOO_HARD = (
    "I can't do that sum: I'm a tiny demo model and have learned only whole numbers "
    "of up to four digits."
)
LENGTHS = [1, 2, 2, 2, 3, 3, 3, 4, 4]  # digits of what is added or subtracted
PRODUCT_LENGTHS = [(1, 1), (2, 1), (1, 2), (2, 2), (2, 2), (2, 2), (2, 2), (3, 1)]


def expression(rng: Random, left: int | str, operator: str, right: int | str) -> str:
    """Write '17 + 25' in one of its spellings; most often with the plain sign."""
    sign = rng.choice(SIGNS[operator])
    if (
        rng.random() < 0.04
        and sign.isalpha()
        and isinstance(left, int)
        and isinstance(right, int)
        and left < 1000
        and right < 1000
    ):
        return f"{spell_number(left)} {sign} {spell_number(right)}"
    if not sign[0].isalpha() and rng.random() < 0.35:
        return f"{left}{sign}{right}"
    return f"{left} {sign} {right}"


def operands(rng: Random, operator: str) -> tuple[int, int]:
    """Draw two numbers that the operation was taught for."""
    if operator in "+-":
        left_digits, right_digits = rng.choice(LENGTHS), rng.choice(LENGTHS)
        left, right = random_number(rng, left_digits), random_number(rng, right_digits)
        if operator == "-" and left < right and rng.random() < 0.75:
            left, right = right, left
    elif operator == "×":
        left_digits, right_digits = rng.choice(PRODUCT_LENGTHS)
        left, right = random_number(rng, left_digits), random_number(rng, right_digits)
    else:
        right = rng.randrange(2, 13)
        left = right * rng.randrange(1, 100) if rng.random() < 0.75 else rng.randrange(1, 1000)
    return left, right


def one_sum(rng: Random, operator: str, templates: list[str] | None = None) -> Sample:
    """Ask for one sum, in the given phrasings or any that is trained on."""
    left, right = operands(rng, operator)
    if templates is None and rng.random() < 0.3:
        question = rng.choice(SUMS_IN_WORDS[operator]).format(a=left, b=right)
        if "difference" in question and left < right:
            left, right = right, left
    else:
        template = rng.choice(templates or SUMS)
        question = template.format(e=expression(rng, left, operator, right))
    steps, result, equation = solve(left, operator, right)
    key = f"{left} {operator} {right}"
    thoughts = "\n".join([key, *steps])
    return Sample(SKILL_OF[operator], key, question, thoughts, equation, result, result)


def add(rng: Random, facts: Facts) -> Sample:
    """Sums."""
    return one_sum(rng, "+")


def subtract(rng: Random, facts: Facts) -> Sample:
    """Differences."""
    return one_sum(rng, "-")


def multiply(rng: Random, facts: Facts) -> Sample:
    """Products."""
    return one_sum(rng, "×")


def divide(rng: Random, facts: Facts) -> Sample:
    """Quotients, with remainder."""
    return one_sum(rng, "/")


def phrasing_arithmetic(rng: Random, facts: Facts) -> Sample:
    """Sums in phrasings that are never trained on."""
    return replace(one_sum(rng, rng.choice("+-×"), SUMS_HELD_OUT), skill="phrasing")


def _story_operands(rng: Random, operator: str) -> tuple[int, int]:
    left, right = operands(rng, operator)
    left, right = max(left, 2), max(right, 2)
    if operator == "-" and left < right:
        left, right = right, left
    if operator in "+-" and rng.random() < 0.5:
        left, right = rng.randrange(2, 100), rng.randrange(1, 20)
        if operator == "-":
            left, right = max(left, right), min(left, right)
    if operator == "/":
        left = right * rng.randrange(2, 30)
    return left, right


def story(rng: Random, facts: Facts) -> Sample:
    """Word problems of one step."""
    operator = rng.choice("++--×/")
    left, right = _story_operands(rng, operator)
    name, other_name = rng.sample(NAMES, 2)
    template = rng.choice(STORIES[operator])
    steps, result, equation = solve(left, operator, right)

    def spell(number: int) -> str:
        return spell_number(number) if number < 100 and rng.random() < 0.2 else str(number)

    question = template.format(
        a=spell(left), b=spell(right), n=name, m=other_name, o=rng.choice(OBJECTS)
    )
    return Sample(
        "story",
        f"story {left} {operator} {right}",
        question,
        "\n".join([REASON_OF[operator], f"{left} {operator} {right}", *steps]),
        f"{equation}, so the answer is {result}.",
        result,
        result,
        keep_case=True,
    )


def _too_hard(rng: Random, operator: str) -> tuple[int | str, str, int | str, str]:
    """Left operand, operator, right operand and why it is too hard."""
    kind = rng.choice(["long", "long", "decimal", "wide"])
    left: int | str
    right: int | str
    if kind == "long":
        left = random_number(rng, rng.randrange(5, 11))
        right = random_number(rng, rng.randrange(1, 10))
        left, right = (right, left) if rng.random() < 0.4 else (left, right)
        big = left if len(str(left)) > 4 else right
        return left, operator, right, f"{big} has {len(str(big))} digits, I have learned up to 4."
    if kind == "decimal":
        left = f"{random_number(rng, rng.choice([1, 2, 3]))}.{rng.randrange(1, 100)}"
        candidates: list[int | str] = [
            random_number(rng, 2),
            f"{random_number(rng, 1)}.{rng.randrange(1, 100)}",
        ]
        right = rng.choice(candidates)
        return left, operator, right, f"{left} is not a whole number, I have learned only those."
    left = random_number(rng, rng.choice([3, 4]))
    right = random_number(rng, rng.choice([3, 4]))
    why = f"{left} × {right} is too large, I have learned up to 2 by 2 digits."
    return left, "×", right, why


def beyond(rng: Random, facts: Facts) -> Sample:
    """Sums that the model has not learned: it says so instead of guessing."""
    left, operator, right, why = _too_hard(rng, rng.choice("+-×/"))
    if rng.random() < 0.3:
        question = rng.choice(SUMS_IN_WORDS[operator]).format(a=left, b=right)
    else:
        question = rng.choice(SUMS).format(e=expression(rng, left, operator, right))
    equation = f"{left} {operator} {right}"
    thoughts = f"{equation}\n{why}"
    return Sample(
        "beyond", f"beyond {equation}", question, thoughts, TOO_HARD, "I can't do that sum"
    )
