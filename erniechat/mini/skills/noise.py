"""What happens to a question before it is asked: typing errors, politeness, system prompts."""

from dataclasses import replace
from random import Random

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.arithmetic import NAMES
from erniechat.mini.skills.phrasings.noise import (
    AFTER,
    BEFORE,
    LEAD,
    SYSTEM_TEMPLATES,
    SYSTEMS,
    TAIL,
    TERSE_AFTER,
    TERSE_SYSTEM,
    TYPO_WORDS,
)
from erniechat.mini.skills.sample import Sample


def _misspell(rng: Random, text: str) -> str:
    """Drop, double or swap a letter of one common word."""
    words = text.split(" ")
    spots = [
        place
        for place, word in enumerate(words)
        if word.strip("?.,!").lower() in TYPO_WORDS and len(word) > 3
    ]
    if not spots:
        return text
    spot = rng.choice(spots)
    word = words[spot]
    at = rng.randrange(1, len(word) - 1)
    dropped = word[:at] + word[at + 1 :]
    doubled = word[:at] + word[at] + word[at:]
    swapped = word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    words[spot] = rng.choice([dropped, doubled, swapped])
    return " ".join(words)


def _change_case(rng: Random, question: str) -> str:
    share = rng.random()
    if share < 0.3:
        return question.lower()
    if share < 0.33:
        return question.upper()
    if share < 0.4:
        return question[:1].upper() + question[1:]
    return question


def _change_end(rng: Random, question: str, allowed: bool) -> str:
    if rng.random() < 0.25 and allowed:
        return question.rstrip("?.!")
    if rng.random() < 0.04 and allowed:
        return question + rng.choice(["?", "!", " ?", "??", "."])
    return question


def _say_more(rng: Random, sample: Sample, question: str) -> str:
    """Put polite words and sentences around a question."""
    chatty = sample.skill not in ("smalltalk", "echo", "unknown")
    if rng.random() < 0.1 and chatty and not sample.history:
        before = rng.choice(BEFORE)
        keep = sample.keep_case or rng.random() < 0.4
        question = before + (question if keep else question[:1].lower() + question[1:])
    if rng.random() < 0.06 and chatty and not sample.tools:
        question += rng.choice(AFTER)
    alone = ("smalltalk", "echo", "tool_call", "tool_unseen", "tool_answer")
    if sample.skill not in alone and not sample.history:
        if rng.random() < 0.08:
            question = rng.choice(LEAD) + " " + question
        if rng.random() < 0.05:
            stop = "" if question[-1:] in "?.!" else "."
            question = question + stop + " " + rng.choice(TAIL)
    return question


def _noisy(rng: Random, sample: Sample) -> Sample:
    if sample.quiet or sample.plain:
        return sample
    question = sample.question
    if rng.random() < 0.06 and sample.skill not in ("echo", "unknown"):
        question = _misspell(rng, question)
    if not sample.keep_case:
        question = _change_case(rng, question)
    question = _change_end(rng, question, sample.skill != "echo")
    return replace(sample, question=_say_more(rng, sample, question))


def _made_up_system(rng: Random, facts: Facts) -> str:
    return rng.choice(SYSTEM_TEMPLATES).format(
        n=rng.choice(NAMES),
        a=rng.choice(facts.dictionary_words),
        b=rng.choice(facts.dictionary_words),
        c=rng.choice(facts.dictionary_words),
        e=rng.choice(facts.synsets)[2].capitalize() + ".",
    )


def finish(rng: Random, facts: Facts, sample: Sample) -> Sample:
    """Add noise, a system prompt or the wish for a bare answer."""
    sample = _noisy(rng, sample)
    if sample.plain or sample.tools:
        return sample
    share = rng.random()
    if sample.short and share < 0.025:
        return replace(sample, system=rng.choice(TERSE_SYSTEM), content=sample.short)
    if sample.short and share < 0.05 and not sample.quiet and not sample.history:
        question = sample.question + rng.choice(TERSE_AFTER)
        return replace(sample, question=question, content=sample.short)
    if share < 0.17:
        made_up = rng.random() >= 0.6
        system = _made_up_system(rng, facts) if made_up else rng.choice(SYSTEMS)
        return replace(sample, system=system)
    return sample
