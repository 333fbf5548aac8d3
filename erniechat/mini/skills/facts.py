"""Skills: countries, chemical elements and the dictionary."""

from collections.abc import Iterable
from dataclasses import replace
from random import Random

from erniechat.mini.skills.knowledge import Country, Facts
from erniechat.mini.skills.phrasings.facts import (
    CAPITAL_HELD_OUT,
    COUNTRY_OF_CAPITAL,
    COUNTRY_QUESTIONS,
    COUNTRY_REPLIES,
    DEFINE,
    DEFINE_HELD_OUT,
    DEFINE_NOUN,
    DEFINE_VERB,
    ELEMENT_NUMBER,
    ELEMENT_OF_NUMBER,
    ELEMENT_OF_SYMBOL,
    ELEMENT_SYMBOL,
)
from erniechat.mini.skills.sample import Sample

ATTRIBUTES = ["capital"] * 9 + ["currency"] * 4 + ["language"] * 3 + ["continent"] * 3
ATTRIBUTES += ["phone", "iso"] + ["reverse"] * 3
ATTRIBUTE_NAMES = {"phone": "calling code", "iso": "country code"}  # where it is not the attribute
NUM_COMMON_ELEMENTS = 56  # the first ones are asked about more often


def country_name(rng: Random, country: Country) -> str:
    """A name of the country: the usual one or, where there is one, an alias."""
    use_alias = country["aliases"] and rng.random() < 0.35
    return str(rng.choice(country["aliases"]) if use_alias else country["name"])


def some_country(rng: Random, facts: Facts) -> Country:
    """Draw a country, more often a big one."""
    return rng.choice(facts.big_countries if rng.random() < 0.55 else facts.countries)


def country_fact(
    country: Country,
    attribute: str,
    question: str,
    *,
    key: str,
    skill: str = "countries",
    steps: Iterable[str] = (),
) -> Sample:
    """The sample for one attribute of a country; the steps come before the usual thoughts."""
    value = country[attribute]
    thoughts = [
        *steps,
        f"asked: {ATTRIBUTE_NAMES.get(attribute, attribute)}",
        f"country: {country['name']}, {country['continent']}",
    ]
    if attribute != "continent":
        thoughts.append(f"it is {value}")
    content = COUNTRY_REPLIES[attribute].format(n=country["name"], **{attribute: value})
    short = ("+" if attribute == "phone" else "") + value
    return Sample(skill, key, question, "\n".join(thoughts), content, value, short)


def _country_of_capital(rng: Random, facts: Facts, capital: str) -> Sample:
    country = facts.country_of_capital[capital]
    name = country["name"]
    template = rng.choice(COUNTRY_OF_CAPITAL)
    thoughts = (
        f"asked: country of a city\ncity: {capital}, a capital\n"
        f"it is {name}, {country['continent']}"
    )
    content = f"{capital} is the capital of {name}."
    question = template.format(k=capital)
    return Sample("countries", template + capital, question, thoughts, content, name, name)


def countries(rng: Random, facts: Facts) -> Sample:
    """Capital, currency, language, continent and codes of a country."""
    attribute = rng.choice(ATTRIBUTES)
    country = some_country(rng, facts)
    if attribute == "reverse":
        return _country_of_capital(rng, facts, country["capital"])
    if not country[attribute]:
        return countries(rng, facts)
    template = rng.choice(COUNTRY_QUESTIONS[attribute])
    question = template.format(c=country_name(rng, country))
    return country_fact(country, attribute, question, key=template + country["iso"])


def phrasing_capital(rng: Random, facts: Facts) -> Sample:
    """Capitals in phrasings that are never trained on."""
    country = rng.choice(facts.big_countries)
    template = rng.choice(CAPITAL_HELD_OUT)
    question = template.format(c=country["name"])
    key = template + country["iso"]
    return country_fact(country, "capital", question, key=key, skill="phrasing")


def elements(rng: Random, facts: Facts) -> Sample:
    """Symbol and atomic number of chemical elements."""
    common = facts.elements[:NUM_COMMON_ELEMENTS]
    element = rng.choice(common if rng.random() < 0.5 else facts.elements)
    number, symbol, name = str(element["number"]), element["symbol"], element["name"]
    kind = rng.choice(["symbol"] * 3 + ["number"] * 3 + ["of_symbol"] * 2 + ["of_number"] * 2)
    if kind == "symbol":
        templates, answer = ELEMENT_SYMBOL, symbol
        asked = f"asked: symbol\nelement: {name}, number {number}"
        content = f"The symbol of {name} is {symbol}."
    elif kind == "number":
        templates, answer = ELEMENT_NUMBER, number
        asked = f"asked: atomic number\nelement: {name}, symbol {symbol}"
        content = f"The atomic number of {name} is {number}."
    elif kind == "of_symbol":
        templates, answer = ELEMENT_OF_SYMBOL, name
        asked = f"asked: element by symbol\nsymbol: {symbol}"
        content = f"{symbol} is the symbol of {name}."
    else:
        templates, answer = ELEMENT_OF_NUMBER, name
        asked = f"asked: element by number\nnumber: {number}"
        content = f"Element number {number} is {name}."
    template = rng.choice(templates)
    shown = name if rng.random() < 0.7 else name.capitalize()
    return Sample(
        "elements",
        template + name,
        template.format(e=shown, s=symbol, n=number),
        f"{asked}\nit is {answer}",
        content,
        answer,
        answer,
        keep_case=kind == "of_symbol",
    )


def ask_for_word(rng: Random, template: str, word: str) -> str:
    """Put a word into a question, at times in quotation marks."""
    plain = rng.random() < 0.65 or "'" in template or '"' in template
    shown = word if plain else f'"{word}"'
    return template.format(w=shown, an="an" if word[0] in "aeiou" else "a")


def definition(rng: Random, facts: Facts, template: str, word: str) -> Sample:
    """The sample for the meaning of a word of the dictionary."""
    question = ask_for_word(rng, template, word)
    part_of_speech, gloss = facts.dictionary[word]
    kind = f"{'an' if part_of_speech == 'adjective' else 'a'} {part_of_speech}"
    thoughts = f"word: {word}\nI know it, {kind}"
    content = f"{word} ({part_of_speech}): {gloss}."
    return Sample("dictionary", template + word, question, thoughts, content, gloss)


def dictionary(rng: Random, facts: Facts) -> Sample:
    """Definitions of words."""
    word = rng.choice(facts.dictionary_words)
    part_of_speech = facts.dictionary[word][0]
    template = rng.choice(DEFINE)
    if part_of_speech == "noun" and rng.random() < 0.25:
        template = rng.choice(DEFINE_NOUN)
    if part_of_speech == "verb" and rng.random() < 0.25:
        template = rng.choice(DEFINE_VERB)
    return definition(rng, facts, template, word)


def phrasing_dictionary(rng: Random, facts: Facts) -> Sample:
    """Definitions in phrasings that are never trained on."""
    template = rng.choice(DEFINE_HELD_OUT)
    sample = definition(rng, facts, template, rng.choice(facts.dictionary_words))
    return replace(sample, skill="phrasing")
