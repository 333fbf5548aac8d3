"""Made-up values of tool arguments."""

from collections.abc import Callable
from random import Random
from typing import Any

from erniechat.mini.skills.dates import DAYS
from erniechat.mini.skills.facts import some_country
from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.phrasings.arithmetic import NAMES
from erniechat.mini.skills.words import pseudo_word, word

COLORS = ["red", "blue", "green", "yellow", "purple", "orange", "white", "pink"]

CURRENCIES = ["USD", "EUR", "GBP", "JPY", "CNY", "CHF", "INR", "CAD", "AUD", "SEK"]

LANGUAGES = [
    "French",
    "German",
    "Spanish",
    "Chinese",
    "Italian",
    "Russian",
    "Japanese",
    "Korean",
    "Arabic",
    "Dutch",
]

COMPANIES = [
    "Apple",
    "Baidu",
    "Tesla",
    "Toyota",
    "Siemens",
    "Nestle",
    "Samsung",
    "Intel",
    "Sony",
    "Nokia",
]

ROOMS = ["kitchen", "bedroom", "living room", "bathroom", "office", "garage", "hall"]

CONDITIONS = ["sunny", "rainy", "cloudy", "windy", "snow", "foggy", "clear", "light rain", "storm"]

# kind of value: generator
VALUES: dict[str, Callable[[Random, Facts], Any]] = {
    "city": lambda rng, facts: (
        rng.choice(facts.cities) if rng.random() < 0.7 else some_country(rng, facts)["capital"]
    ),
    "country": lambda rng, facts: some_country(rng, facts)["name"],
    "person": lambda rng, facts: rng.choice(NAMES),
    "word": lambda rng, facts: word(rng, facts),
    "text": lambda rng, facts: " ".join(word(rng, facts) for _ in range(rng.choice([2, 3, 4]))),
    "int": lambda rng, facts: rng.randrange(1, rng.choice([10, 100, 1000])),
    "minutes": lambda rng, facts: rng.randrange(1, 61),
    "people": lambda rng, facts: rng.randrange(1, 13),
    "degrees": lambda rng, facts: rng.randrange(15, 29),
    "currency": lambda rng, facts: rng.choice(CURRENCIES),
    "language": lambda rng, facts: rng.choice(LANGUAGES),
    "company": lambda rng, facts: (
        rng.choice(COMPANIES) if rng.random() < 0.5 else pseudo_word(rng).capitalize()
    ),
    "room": lambda rng, facts: rng.choice(ROOMS),
    "day": lambda rng, facts: rng.choice([*DAYS, "today", "tomorrow"]),
    "date": lambda rng, facts: (
        f"20{rng.randrange(20, 40)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    ),
    "clock": lambda rng, facts: f"{rng.randrange(24):02d}:{rng.choice([0, 15, 30, 45]):02d}",
    "email": lambda rng, facts: (
        f"{rng.choice(NAMES).lower()}@{word(rng, facts)}.{rng.choice(['com', 'org', 'net'])}"
    ),
    "path": lambda rng, facts: (
        rng.choice(["", "/home/", "docs/", "src/"])
        + word(rng, facts)
        + rng.choice([".txt", ".md", ".py", ".csv", ".json"])
    ),
    "folder": lambda rng, facts: rng.choice(
        ["/tmp", "/home/" + word(rng, facts), word(rng, facts), "docs/" + word(rng, facts)]
    ),
    "unit": lambda rng, facts: rng.choice(["celsius", "fahrenheit"]),
    "state": lambda rng, facts: rng.choice(["on", "off"]),
    "expr": lambda rng, facts: (
        f"{rng.randrange(1000)} {rng.choice('+-*/')} {rng.randrange(1, 1000)}"
    ),
    "color": lambda rng, facts: rng.choice(COLORS),
    "id": lambda rng, facts: f"{rng.choice('ABCDEFGHKLMNPQRSTUVWXYZ')}{rng.randrange(100, 100000)}",
}
