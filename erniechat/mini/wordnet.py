"""Read WordNet's database files: synsets, the most common words with a definition, all words."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from erniechat.mini.facts_tables import POS, UNFIT

FILES = ("noun", "verb", "adj", "adv")
FILE_OF_SENSE = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
SenseKey = tuple[str, str]  # file and, in it, offset or lemma


@dataclass(frozen=True)
class Wordnet:
    """What is taken from WordNet.

    Attributes:
        dictionary: Common words: ``{word: [part of speech, definition]}``.
        synsets: ``[words, part of speech, definition, examples]`` each.
        words: Single words, sorted.
    """

    dictionary: dict[str, list[str]]
    synsets: list[list[str | list[str]]]
    words: list[str]


def _lines(file: Path) -> list[str]:
    """The lines of a database file, without the licence at its top."""
    lines = file.read_text("latin-1").splitlines()
    return [line for line in lines if not line.startswith("  ")]


def _split_gloss(text: str) -> tuple[str, list[str]]:
    """Definition and examples of a gloss."""
    definition = re.split(r'; "', text)[0].strip()
    examples = [
        quoted for quoted in re.findall(r'"([^"]+)"', text) if 3 <= len(quoted.split()) <= 18
    ]
    definition = re.sub(r"^\([^)]*\)\s*", "", definition).replace("`", "'")
    return definition, examples


def _read_synsets(folder: Path) -> tuple[list[list[str | list[str]]], dict[SenseKey, str]]:
    """The synsets that are fit for plain text, and the definition of every synset."""
    synsets: list[list[str | list[str]]] = []
    definitions: dict[SenseKey, str] = {}
    for name in FILES:
        for line in _lines(folder / f"data.{name}"):
            head, _, gloss = line.partition(" | ")
            parts = head.split()
            lemmas = [
                re.sub(r"\(.*\)", "", parts[4 + 2 * lemma_idx]).replace("_", " ")
                for lemma_idx in range(int(parts[3], 16))
            ]
            definition, examples = _split_gloss(gloss)
            definitions[name, parts[0]] = definition
            unfit = UNFIT.search(gloss) or UNFIT.search(" ".join(lemmas))
            if not unfit and 2 <= len(definition.split()) <= 40:
                ascii_examples = [example for example in examples if example.isascii()]
                synsets.append([lemmas[:3], POS[parts[2]], definition, ascii_examples[:2]])
    return synsets, definitions


def _count_tags(folder: Path) -> dict[str, Counter[str]]:
    """How often each lemma was tagged in WordNet's own corpora: how common it is."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in (folder / "cntlist.rev").read_text("latin-1").splitlines():
        key, _, tags = line.split()
        lemma, _, sense = key.partition("%")
        counts[lemma][FILE_OF_SENSE[sense[0]]] += int(tags)
    return counts


def _read_index(folder: Path) -> dict[SenseKey, str]:
    """The offset of the most frequent sense of every lemma."""
    index = {}
    for name in FILES:
        for line in _lines(folder / f"index.{name}"):
            parts = line.split()
            index[name, parts[0]] = parts[-int(parts[2])]
    return index


def _short_definition(lemma: str, definition: str) -> str | None:
    """The first part of a definition, if it is fit for the dictionary."""
    short = re.split(r";|: ", definition)[0].strip(" .")
    if not 3 <= len(short.split()) <= 13 or UNFIT.search(short) or UNFIT.search(lemma):
        return None
    if "(" in short or not short.isascii() or re.search(rf"\b{lemma}\b", short):
        return None
    return short


def read_wordnet(folder: Path | str, dictionary_size: int) -> Wordnet:
    """Read the database files of a folder; the dictionary gets the most common words."""
    folder = Path(folder)
    synsets, definitions = _read_synsets(folder)
    index = _read_index(folder)
    dictionary: dict[str, list[str]] = {}
    by_count = sorted(
        _count_tags(folder).items(), key=lambda item: (-sum(item[1].values()), item[0])
    )
    for lemma, counts in by_count:
        if len(dictionary) == dictionary_size:
            break
        name = counts.most_common(1)[0][0]
        sense = (name, index.get((name, lemma), ""))
        if name == "adv" or not re.fullmatch(r"[a-z]{3,14}", lemma) or sense not in definitions:
            continue
        definition = _short_definition(lemma, definitions[sense])
        if definition:
            dictionary[lemma] = ["adjective" if name == "adj" else name, definition]
    words = {
        lemma
        for _, lemma in index
        if re.fullmatch(r"[a-z]{3,12}", lemma) and not UNFIT.search(lemma)
    }
    return Wordnet(dictionary, synsets, sorted(words))
