"""The training mixture: shares of the skills, and packed batches made from a seed without end."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from erniechat.mini.chat import CHARS_OFF, CHARS_ON, render_prompt, render_reply
from erniechat.mini.skills import SKILLS
from erniechat.mini.skills.knowledge import Facts, load_facts
from erniechat.mini.skills.noise import finish
from erniechat.mini.skills.sample import Generator, Sample, is_held_out
from erniechat.mini.tools import TOOL_SKILLS

LONGEST = 2048  # tokens of one document
MIN_DOCUMENT = 64  # tokens; a batch has at most one document for so many
NO_THINKING = 0.2  # share of chats with thinking switched off
BOS_ID, EOS_ID = 1, 2

MIXTURE: dict[str, float] = {  # share of documents
    "add": 6,
    "subtract": 6,
    "multiply": 8,
    "divide": 4,
    "story": 5,
    "chain": 5,
    "beyond": 2.5,
    "compare": 4,
    "ordering": 3,
    "sequence": 1.5,
    "count_letters": 7,
    "reverse": 7,
    "echo": 2,
    "dates": 4,
    "units": 4,
    "countries": 12,
    "elements": 5,
    "dictionary": 20,
    "smalltalk": 4,
    "unknown": 7,
    "chinese": 2,
    "followup": 9,
    "tool_call": 9,
    "tool_answer": 3,
    "plain": 4,
}
GENERATORS: dict[str, Generator] = {**SKILLS, **TOOL_SKILLS}


def training_sample(rng: Random, facts: Facts, mixture: dict[str, float]) -> Sample:
    """Draw a sample whose problem is not held out."""
    generate = GENERATORS[rng.choices(list(mixture), list(mixture.values()))[0]]
    while True:
        sample = generate(rng, facts)
        if not is_held_out(sample.key):
            return finish(rng, facts, sample)


def messages_of(sample: Sample) -> list[dict[str, Any]]:
    """The conversation of a sample, up to the reply."""
    system = [{"role": "system", "content": sample.system}] if sample.system else []
    question = [{"role": "user", "content": sample.question}] if sample.question else []
    return [*system, *sample.history, *question]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def encode_reply(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a reply; a stretch between the two marks gives one character per token."""
    ids: list[int] = []
    for part_idx, part in enumerate(text.replace(CHARS_OFF, CHARS_ON).split(CHARS_ON)):
        if part_idx % 2:
            for character in part:
                ids += _encode(tokenizer, character)
        elif part:
            ids += _encode(tokenizer, part)
    return ids


def encode_sample(tokenizer: Tokenizer, sample: Sample, thinking: bool) -> tuple[list[int], int]:
    """Token ids of a whole document, and how many of them are the prompt, which carries no loss."""
    if sample.plain:
        return [BOS_ID, *_encode(tokenizer, sample.content), EOS_ID], 1
    prompt = _encode(tokenizer, render_prompt(messages_of(sample), sample.tools, thinking))
    reply = render_reply(sample.thoughts, sample.content, sample.tool_calls, thinking)
    return prompt + encode_reply(tokenizer, reply), len(prompt)


@dataclass(frozen=True)
class Batch:
    """Packed documents.

    Attributes:
        ids: uint16 ``[num_tokens]``.
        targets: uint16 ``[num_tokens]``: the next token; 0 carries no loss.
        starts: int32 ``[num_documents + 1]``: where each document begins, and the end.
        num_documents: Documents by skill.
    """

    ids: NDArray[np.uint16]
    targets: NDArray[np.uint16]
    starts: NDArray[np.int32]
    num_documents: Counter[str]


class Source:
    """Batches of packed documents.

    A batch depends on the seed and its number alone, so any number of workers gives the same data.
    """

    def __init__(
        self,
        facts: Path | str,
        tokenizer: Path | str,
        *,
        num_tokens: int,
        seed: int = 0,
        mixture: dict[str, float] | None = None,
    ) -> None:
        self.facts = load_facts(facts)
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.num_tokens, self.seed = num_tokens, seed
        self.mixture = mixture or MIXTURE

    def _document(self, rng: Random) -> tuple[list[int], int, str]:
        while True:
            sample = training_sample(rng, self.facts, self.mixture)
            document, num_prompt = encode_sample(
                self.tokenizer, sample, rng.random() >= NO_THINKING
            )
            if len(document) <= LONGEST:
                return document, num_prompt, sample.skill

    def batch(self, batch_idx: int) -> Batch:
        """Make one batch."""
        rng = random.Random(self.seed * 1_000_003 + batch_idx)
        ids = np.zeros(self.num_tokens + 1, np.uint16)
        has_loss = np.zeros(self.num_tokens + 1, bool)
        starts, end, made = [0], 0, Counter[str]()
        while end < self.num_tokens and len(starts) < self.num_tokens // MIN_DOCUMENT:
            document, num_prompt, skill = self._document(rng)
            length = min(len(document), self.num_tokens - end)  # the last document is cut
            ids[end : end + length] = document[:length]
            has_loss[end + min(num_prompt, length) : end + length] = True
            end += length
            starts.append(end)
            made[skill] += 1
        # Token t predicts token t + 1; the last token of a document predicts nothing.
        targets = np.where(has_loss[1:], ids[1:], 0).astype(np.uint16)
        return Batch(ids[:-1], targets, np.array(starts, np.int32), made)
