"""Plain text: dictionary entries, a few at a time."""

from random import Random

from erniechat.mini.skills.knowledge import Facts, Synset
from erniechat.mini.skills.sample import Sample


def plain_entry(synset: Synset) -> str:
    """One dictionary entry, as a line of text."""
    words, part_of_speech, definition, examples = synset
    text = f"{', '.join(words)} ({part_of_speech}): {definition}."
    for example in examples:
        text += f" {example[0].upper()}{example[1:]}."
    return text


def plain(rng: Random, facts: Facts) -> Sample:
    """Dictionary entries without a chat around them."""
    count = rng.choice([2, 4, 8])
    text = "\n".join(plain_entry(rng.choice(facts.synsets)) for _ in range(count))
    return Sample("plain", text, "", "", text, plain=True)
