"""Skill: capitals, sums and small talk in Chinese."""

from random import Random

from erniechat.mini.skills.arithmetic import operands
from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.chinese import CAPITAL, SUM
from erniechat.mini.skills.phrasings.smalltalk import SMALLTALK
from erniechat.mini.skills.sample import Sample
from erniechat.mini.skills.steps import solve

SIGNS = {"+": ["加", "+"], "-": ["减", "-"], "×": ["乘", "乘以", "×"]}
CHINESE_SMALLTALK = [row for row in SMALLTALK if "一" <= row[1][0] <= "鿿"]


def _capital(rng: Random, facts: Facts) -> Sample:
    country = rng.choice(facts.chinese_countries)
    name, capital = country["zh"], country["capital_zh"]
    template = rng.choice(CAPITAL)
    return Sample(
        "chinese",
        template + country["iso"],
        template.format(c=name),
        f"问首都\n国家：{name}",
        f"{name}的首都是{capital}。",
        capital,
        capital,
        quiet=True,
    )


def _sum(rng: Random) -> Sample:
    operator = rng.choice("++-×")
    left, right = operands(rng, operator)
    template = rng.choice(SUM)
    steps, result, equation = solve(left, operator, right)
    question = template.format(e=f"{left}{rng.choice(SIGNS[operator])}{right}")
    key = f"{left} {operator} {right}"
    thoughts = "\n".join([key, *steps])
    return Sample("chinese", key, question, thoughts, equation, result, result, quiet=True)


def chinese(rng: Random, facts: Facts) -> Sample:
    """Greetings, capitals and sums in Chinese."""
    share = rng.random()
    if share < 0.45:
        return _capital(rng, facts)
    if share < 0.75:
        return _sum(rng)
    thought, reply, phrasings = rng.choice(CHINESE_SMALLTALK)
    question = rng.choice(phrasings)
    return Sample("chinese", "talk " + question, question, thought, reply, reply, quiet=True)
