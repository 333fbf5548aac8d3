"""Generators for everything the mini model learns except tool calls, one file per theme.

A generator gets a random source and the facts, and makes one problem in one of many phrasings, the
reasoning that leads to the answer, and the answer. It draws in a fixed order, so a seed always
gives the same problem; a change of that order is a change of the training data.
"""

from erniechat.mini.skills.arithmetic import (
    add,
    beyond,
    divide,
    multiply,
    phrasing_arithmetic,
    story,
    subtract,
)
from erniechat.mini.skills.chain import chain
from erniechat.mini.skills.chinese import chinese
from erniechat.mini.skills.dates import dates
from erniechat.mini.skills.facts import (
    countries,
    dictionary,
    elements,
    phrasing_capital,
    phrasing_dictionary,
)
from erniechat.mini.skills.followup import followup
from erniechat.mini.skills.ordering import compare, ordering, sequence
from erniechat.mini.skills.plain import plain
from erniechat.mini.skills.sample import Generator
from erniechat.mini.skills.smalltalk import smalltalk
from erniechat.mini.skills.units import units
from erniechat.mini.skills.unknown import unknown
from erniechat.mini.skills.words import count_letters, echo, reverse

__all__ = ["SKILLS"]

SKILLS: dict[str, Generator] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "divide": divide,
    "story": story,
    "chain": chain,
    "beyond": beyond,
    "compare": compare,
    "ordering": ordering,
    "sequence": sequence,
    "count_letters": count_letters,
    "reverse": reverse,
    "echo": echo,
    "dates": dates,
    "units": units,
    "countries": countries,
    "elements": elements,
    "dictionary": dictionary,
    "smalltalk": smalltalk,
    "unknown": unknown,
    "chinese": chinese,
    "followup": followup,
    "plain": plain,
    "phrasing_arithmetic": phrasing_arithmetic,
    "phrasing_capital": phrasing_capital,
    "phrasing_dictionary": phrasing_dictionary,
}
