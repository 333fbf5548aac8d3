"""Skill: small talk, and what a user tells about themselves."""

from dataclasses import dataclass
from random import Random

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.arithmetic import NAMES
from erniechat.mini.skills.phrasings.smalltalk import (
    HELLO_WORLD,
    HELLO_WORLD_QUESTIONS,
    INTRODUCTIONS,
    PERSONAL,
    SMALLTALK,
)
from erniechat.mini.skills.sample import Sample

COLORS = [
    "red",
    "blue",
    "green",
    "yellow",
    "purple",
    "orange",
    "black",
    "white",
    "pink",
    "brown",
    "grey",
]


@dataclass(frozen=True)
class Personal:
    """Something that a user tells, and how it is asked for later.

    Attributes:
        kind: name, city, color, pet or age.
        value: What is told.
        telling: What the user says.
        reply: The reply to it.
        question: How the user asks for it later.
        answer: The reply to that.
    """

    kind: str
    value: str
    telling: str
    reply: str
    question: str
    answer: str


def personal(rng: Random, facts: Facts) -> Personal:
    """Draw something that a user could tell."""
    kind = rng.choice(["name", "name", "city", "color", "pet", "age"])
    # Each value is drawn in any case: what follows then depends on the seed alone.
    values = {
        "name": rng.choice(NAMES) if rng.random() < 0.6 else rng.choice(facts.words).capitalize(),
        "city": rng.choice(facts.cities),
        "color": rng.choice(COLORS),
        "pet": rng.choice(NAMES),
        "age": str(rng.randrange(5, 99)),
    }
    value = values[kind]
    tellings, reply, questions, answer = PERSONAL[kind]
    return Personal(
        kind,
        value,
        rng.choice(tellings).format(v=value),
        reply.format(v=value),
        rng.choice(questions),
        answer.format(v=value),
    )


def _hello_world(rng: Random) -> Sample:
    language = rng.choice(list(HELLO_WORLD))
    template = rng.choice(HELLO_WORLD_QUESTIONS)
    fence, code = HELLO_WORLD[language]
    question = template.format(l=language)
    thoughts = f"hello world, in {language}"
    content = f"```{fence}\n{code}\n```"
    return Sample("smalltalk", template + language, question, thoughts, content, code)


def _introduction(rng: Random) -> Sample:
    name = rng.choice(NAMES)
    template = rng.choice(INTRODUCTIONS)
    return Sample(
        "smalltalk",
        template + name,
        template.format(n=name),
        f"They tell me their name: {name}.",
        f"Nice to meet you, {name}!",
        name,
        keep_case=True,
    )


def smalltalk(rng: Random, facts: Facts) -> Sample:
    """Greetings, thanks, questions about the model, hello world."""
    if rng.random() < 0.06:
        return _hello_world(rng)
    if rng.random() < 0.06:
        return _introduction(rng)
    if rng.random() < 0.06:
        told = personal(rng, facts)
        key, thoughts = f"tell {told.kind} {told.value}", f"They tell me something: {told.value}."
        return Sample(
            "smalltalk", key, told.telling, thoughts, told.reply, told.value, keep_case=True
        )
    weights = [len(phrasings) ** 0.5 for _, _, phrasings in SMALLTALK]
    thought, reply, phrasings = rng.choices(SMALLTALK, weights)[0]
    question = rng.choice(phrasings)
    return Sample("smalltalk", "talk " + question, question, thought, reply, reply)
