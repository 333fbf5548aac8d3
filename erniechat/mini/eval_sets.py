"""Write the evaluation sets: problems that are held out from training."""

import json
import random
from pathlib import Path
from random import Random
from typing import Any

from erniechat.mini.chat import render_reply, visible
from erniechat.mini.eval_tables import EVAL, SMALLTALK_NEW
from erniechat.mini.mixture import GENERATORS, NO_THINKING, messages_of
from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.noise import finish
from erniechat.mini.skills.phrasings.smalltalk import SMALLTALK
from erniechat.mini.skills.plain import plain_entry
from erniechat.mini.skills.sample import Sample, is_held_out

Row = dict[str, Any]

ALWAYS_HELD_OUT = ("phrasing", "tool_unseen")  # skills that are not in the mixture


def _held_out_sample(rng: Random, facts: Facts, generator: str) -> Sample:
    while True:
        sample = GENERATORS[generator](rng, facts)
        if is_held_out(sample.key) or sample.skill in ALWAYS_HELD_OUT:
            return finish(rng, facts, sample)


def _answer(sample: Sample) -> str:
    """What a checker looks for: the bare answer, where only that was asked for."""
    content, short = visible(sample.content), visible(sample.short)
    return short if short and content == short else visible(sample.answer or sample.content)


def _row(name: str, sample: Sample, thinking: bool) -> Row:
    reply = render_reply(sample.thoughts, sample.content, sample.tool_calls, thinking)
    return {
        "skill": name,
        "thinking": thinking,
        "messages": messages_of(sample),
        "tools": sample.tools,
        "answer": _answer(sample),
        "tool_calls": sample.tool_calls,
        "reference": visible(reply),
    }


def make_set(facts: Facts, name: str) -> list[Row]:
    """Make one evaluation set: no conversation twice, a fifth of it without thinking."""
    generators, count = EVAL[name]
    rng = random.Random(1000 + list(EVAL).index(name))
    rows: list[Row] = []
    seen = set()
    for _ in range(20 * count):
        if len(rows) == count:
            break
        sample = _held_out_sample(rng, facts, generators[len(rows) % len(generators)])
        thinking = name == "tool_answer" or rng.random() >= NO_THINKING
        conversation = (repr(messages_of(sample)), thinking)
        if conversation not in seen:
            seen.add(conversation)
            rows.append(_row(name, sample, thinking))
    return rows


def make_smalltalk() -> list[Row]:
    """Make the set of small talk in new phrasings."""
    replies = {
        phrasing: (thought, reply)
        for thought, reply, phrasings in SMALLTALK
        for phrasing in phrasings
    }
    return [
        {
            "skill": "smalltalk",
            "thinking": True,
            "messages": [{"role": "user", "content": question}],
            "tools": [],
            "answer": replies[like][1],
            "tool_calls": [],
            "reference": render_reply(*replies[like]),
        }
        for question, like in SMALLTALK_NEW
    ]


def write_eval(facts: Facts, out: Path | str) -> dict[str, int]:
    """Write every set and heldout.txt into a folder.

    Returns:
        The number of items of each set.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    sets = {name: make_set(facts, name) for name in EVAL} | {"smalltalk": make_smalltalk()}
    for name, rows in sets.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    entries = [plain_entry(synset) + "\n" for synset in facts.heldout_synsets]
    (folder / "heldout.txt").write_text("".join(entries), encoding="utf-8")
    return {name: len(rows) for name, rows in sets.items()}
