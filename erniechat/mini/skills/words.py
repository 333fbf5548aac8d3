"""Skills: the letters of a word, and repeating words."""

from random import Random

from erniechat.mini.chat import CHARS_OFF, CHARS_ON
from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.arithmetic import NAMES
from erniechat.mini.skills.phrasings.unknown import SYLLABLES
from erniechat.mini.skills.phrasings.words import (
    BACKWARDS,
    END_LETTER,
    LENGTH,
    LETTER,
    QUOTES,
    REPEAT,
    SPELL,
    VOWELS,
    WELL_KNOWN_WORDS,
)
from erniechat.mini.skills.sample import Sample

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def word(rng: Random, facts: Facts, longest: int = 12) -> str:
    """Draw an English word of at most so many letters."""
    drawn = rng.choice(facts.words if rng.random() < 0.6 else facts.dictionary_words)
    if rng.random() < 0.03:
        drawn = rng.choice(WELL_KNOWN_WORDS)
    return drawn if len(drawn) <= longest else word(rng, facts, longest)


def pseudo_word(rng: Random) -> str:
    """Make up a word that could be English."""
    stem = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice([2, 2, 3])))
    return stem + rng.choice(["", "n", "l", "t", "k", "s", "th", "rg", "x"])


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _quoted(rng: Random, text: str) -> str:
    return rng.choice(QUOTES).format(text)


def _tally(text: str, counted: str) -> tuple[str, int]:
    """The letters one by one, the counted ones with their running number; and the total."""
    total, spelled = 0, []
    for letter in text:
        total += letter in counted
        spelled.append(f"{letter} ({total})" if letter in counted else letter)
    return " ".join(spelled), total


def _count_letter(rng: Random, asked: str) -> tuple[str, str, str, int]:
    """Question, thoughts, content and result."""
    letter = rng.choice(asked) if rng.random() < 0.8 else rng.choice(ALPHABET)
    template = rng.choice(LETTER)
    shown = letter if rng.random() < 0.8 else letter.upper()
    question = template.format(c=shown, w=_quoted(rng, asked))
    spelled, total = _tally(asked, letter)
    thoughts = f"letter {letter} in {asked}\n{spelled}\ntotal {total}"
    verb, plural = ("is", "") if total == 1 else ("are", "'s")
    return question, thoughts, f'There {verb} {total} {letter}{plural} in "{asked}".', total


def _count_all(rng: Random, asked: str) -> tuple[str, str, str, int]:
    question = rng.choice(LENGTH).format(w=_quoted(rng, asked))
    spelled = " ".join(f"{letter} {place}" for place, letter in enumerate(asked, 1))
    return question, spelled, f'"{asked}" has {len(asked)} letters.', len(asked)


def _count_vowels(rng: Random, asked: str) -> tuple[str, str, str, int]:
    spelled, total = _tally(asked, "aeiou")
    question = rng.choice(VOWELS).format(w=_quoted(rng, asked))
    thoughts = f"vowels are a e i o u\n{spelled}\ntotal {total}"
    return question, thoughts, f'"{asked}" has {total} vowel{"" if total == 1 else "s"}.', total


def count_letters(rng: Random, facts: Facts) -> Sample:
    """How often a letter occurs in a word, its vowels, its length."""
    asked = word(rng, facts)
    kind = rng.choice(["letter"] * 6 + ["length", "length", "vowels"])
    makers = {"letter": _count_letter, "length": _count_all, "vowels": _count_vowels}
    question, thoughts, content, total = makers[kind](rng, asked)
    return Sample(
        "count_letters", "word " + asked, question, thoughts, content, str(total), str(total)
    )


def reverse(rng: Random, facts: Facts) -> Sample:
    """Reverse or spell a word; its first and last letter."""
    asked = word(rng, facts, 10)
    key, letters = "word " + asked, f"letters: {' '.join(asked)}"
    kind = rng.choice(["reverse"] * 4 + ["spell", "spell", "first", "last"])
    if kind == "reverse":
        question = rng.choice(BACKWARDS).format(w=_quoted(rng, asked))
        result = asked[::-1]
        marked = f"{CHARS_ON}{result}{CHARS_OFF}"
        thoughts = f"{letters}\nfrom the end: {' '.join(result)}"
        return Sample("reverse", key, question, thoughts, marked, result, marked)
    if kind == "spell":
        question = rng.choice(SPELL).format(w=_quoted(rng, asked))
        result = "-".join(asked)
        return Sample("reverse", key, question, letters, result, result, result)
    letter = asked[0] if kind == "first" else asked[-1]
    template, verb = rng.choice(END_LETTER), "start" if kind == "first" else "end"
    question = template.format(k=kind, v=verb, w=_quoted(rng, asked))
    thoughts = f"{letters}\n{kind}: {letter}"
    content = f'The {kind} letter of "{asked}" is {letter}.'
    return Sample("reverse", key, question, thoughts, content, f"is {letter}", letter)


def echo(rng: Random, facts: Facts) -> Sample:
    """Repeat words."""
    text = " ".join([word(rng, facts) for _ in range(rng.choice([1, 2, 3, 4]))])
    if rng.random() < 0.3:
        text = f"{rng.choice(NAMES)} {text} {rng.randrange(1000)}"
    question = rng.choice(REPEAT).format(t=text)
    thoughts = f"I am to repeat: {text}"
    return Sample("echo", f"echo {text}", question, thoughts, text, text, text, keep_case=True)
