"""The facts that the skills ask about, read from the file that `erniechat.mini.facts` writes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Country = dict[str, Any]
Element = dict[str, Any]
Synset = list[Any]  # [words, part of speech, definition, examples]

NUM_BIG_COUNTRIES = 110  # by population; these are asked about more often


@dataclass(frozen=True)
class Facts:
    """What the data packages say, and the selections that the generators draw from.

    Attributes:
        countries: Countries with their capital, currency, language and codes.
        cities: Names of large cities, ASCII.
        elements: Chemical elements: number, symbol and name.
        dictionary: The words that the model can define: ``{word: [part of speech, definition]}``.
        words: All single English words of WordNet.
        synsets: Dictionary entries for plain text.
        heldout_synsets: Dictionary entries that are never trained on.
        dictionary_words: The keys of `dictionary`, in order.
        other_words: The words that the model must not define.
        country_of_capital: ``{capital: country}``.
        big_countries: The most populous countries.
        chinese_countries: Countries whose name and capital are known in Chinese.
    """

    countries: list[Country]
    cities: list[str]
    elements: list[Element]
    dictionary: dict[str, list[str]]
    words: list[str]
    synsets: list[Synset]
    heldout_synsets: list[Synset]
    dictionary_words: list[str]
    other_words: list[str]
    country_of_capital: dict[str, Country]
    big_countries: list[Country]
    chinese_countries: list[Country]


def load_facts(path: Path | str) -> Facts:
    """Read a facts file and make the selections."""
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    country_of_capital: dict[str, Country] = {}
    for country in raw["countries"]:
        country_of_capital.setdefault(country["capital"], country)
    by_population = sorted(raw["countries"], key=lambda country: -country["population"])
    return Facts(
        **raw,
        dictionary_words=list(raw["dictionary"]),
        other_words=[word for word in raw["words"] if word not in raw["dictionary"]],
        country_of_capital=country_of_capital,
        big_countries=by_population[:NUM_BIG_COUNTRIES],
        chinese_countries=[c for c in raw["countries"] if c["zh"] and c["capital_zh"]],
    )
