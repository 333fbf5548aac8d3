"""Skill: everything else. The model says that it does not know."""

from random import Random

from erniechat.mini.skills.dates import MONTHS
from erniechat.mini.skills.facts import ask_for_word, some_country
from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.arithmetic import NAMES
from erniechat.mini.skills.phrasings.facts import DEFINE, DEFINE_NOUN, DEFINE_VERB
from erniechat.mini.skills.phrasings.unknown import DONT_KNOW, NOT_LEARNED, UNKNOWN
from erniechat.mini.skills.sample import Sample
from erniechat.mini.skills.words import article, pseudo_word

LANGUAGES = ["French", "German", "Spanish", "Italian", "Russian", "Korean", "Latin"]
WORD_TEMPLATES = DEFINE + DEFINE_NOUN[:1] + DEFINE_NOUN[2:] + DEFINE_VERB[:1]


def _unknown_word(rng: Random, facts: Facts) -> Sample | None:
    """A word that is not in the dictionary; None where a made-up word happens to be in it."""
    word = rng.choice(facts.other_words) if rng.random() < 0.75 else pseudo_word(rng)
    if word in facts.dictionary:
        return None
    question = ask_for_word(rng, rng.choice(WORD_TEMPLATES), word)
    thoughts = f"word: {word}\nI don't know it"
    content = f'I don\'t know the word "{word}".'
    return Sample("unknown", "word " + word, question, thoughts, content, "I don't know")


def _word_of(rng: Random, facts: Facts, part_of_speech: str) -> str:
    while True:
        word: str = rng.choice(facts.dictionary_words)
        if facts.dictionary[word][0] == part_of_speech:
            return word


def _unused_symbol(rng: Random, facts: Facts) -> str:
    """One or two letters that are no element's symbol."""
    symbols: set[str] = {element["symbol"] for element in facts.elements}
    while True:
        symbol: str = rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        symbol += rng.choice(["", *"abcdefghijklmnopqrstuvwxyz"])
        if symbol not in symbols:
            return symbol


def _gibberish(rng: Random) -> str:
    typed = [
        pseudo_word(rng),
        "".join(rng.choice("asdfghjkl?.!qwertyxcv") for _ in range(rng.randrange(1, 9))),
    ]
    return rng.choice(typed)


def unknown(rng: Random, facts: Facts) -> Sample:
    """Questions that the model must not try to answer."""
    if rng.random() < 0.28:
        return _unknown_word(rng, facts) or unknown(rng, facts)
    kind, templates = rng.choices(UNKNOWN, [len(templates) for _, templates in UNKNOWN])[0]
    noun, other_noun = _word_of(rng, facts, "noun"), _word_of(rng, facts, "noun")
    place = pseudo_word(rng).capitalize() if rng.random() < 0.85 else rng.choice(NOT_LEARNED)
    symbol = _unused_symbol(rng, facts)
    template = rng.choice(templates)
    # Every slot is filled, whether the template has it or not, in this order: the order of the
    # draws makes the sample.
    question = template.format(
        noun=noun,
        noun2=other_noun,
        an_noun=article(noun),
        adj=_word_of(rng, facts, "adjective"),
        verb=_word_of(rng, facts, "verb"),
        name=rng.choice(NAMES),
        surname=pseudo_word(rng).capitalize() if rng.random() < 0.5 else rng.choice(facts.cities),
        country=some_country(rng, facts)["name"],
        city=rng.choice(facts.cities),
        city2=rng.choice(facts.cities),
        year=rng.randrange(1000, 2030),
        month=rng.choice(MONTHS),
        day=rng.randrange(1, 29),
        n=rng.randrange(2, 1000),
        fake=place,
        fakel=place.lower() + "ium",
        fakes=symbol,
        entry=rng.choice(facts.synsets)[2].capitalize() + ".",
        gibberish=_gibberish(rng),
        big=rng.randrange(119, 400),
        lang=rng.choice(LANGUAGES),
    )
    thoughts = f"This asks for {kind}.\nI have not learned that."
    return Sample("unknown", "unknown " + question, question, thoughts, DONT_KNOW, "I don't know")
