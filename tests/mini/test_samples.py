"""The generators: the same samples as ever, none of them held out, encoded as they should be."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from erniechat.mini import checkpoint_folder, make_data
from erniechat.mini.chat import CHARS_OFF, CHARS_ON, render_prompt, render_reply
from erniechat.mini.eval_sets import make_set, make_smalltalk
from erniechat.mini.mixture import (
    GENERATORS,
    LONGEST,
    MIXTURE,
    Source,
    encode_reply,
    encode_sample,
    messages_of,
    training_sample,
)
from erniechat.mini.skills.knowledge import load_facts
from erniechat.mini.skills.noise import finish
from erniechat.mini.skills.sample import is_held_out
from erniechat.mini.skills.steps import (
    add_steps,
    divide_steps,
    multiply_steps,
    spell_number,
    subtract_steps,
)

FOLDER = Path(__file__).parent
FACTS = FOLDER / "facts_small.json"  # cut out of the whole facts file
TOKENIZER = checkpoint_folder() / "tokenizer.json"
# sha256 of the first 60 samples of 4 seeds of each generator, and of 4 batches, from the scripts
# that made the checkpoint, with the same facts.
GOLDEN = json.loads((FOLDER / "golden_digests.json").read_text())


@pytest.fixture(scope="module")
def facts():
    return load_facts(FACTS)


def digest(name, facts, num_samples=60):
    sha256 = hashlib.sha256()
    for seed in range(4):
        rng = random.Random(1000 * seed + 7)
        for sample_idx in range(num_samples):
            sample = GENERATORS[name](rng, facts)
            raw = json.dumps(dataclasses.asdict(sample), ensure_ascii=False, sort_keys=True)
            done = finish(rng, facts, sample)
            thinking = sample_idx % 3 != 0
            text = done.content
            if not done.plain:
                text = render_prompt(messages_of(done), done.tools, thinking)
                text += render_reply(done.thoughts, done.content, done.tool_calls, thinking)
            fields = [done.question, done.system, text, done.answer, done.short]
            line = json.dumps([name, seed, sample_idx, raw, *fields], ensure_ascii=False)
            sha256.update(line.encode())
    return sha256.hexdigest()


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_samples_are_those_the_checkpoint_was_trained_on(name, facts):
    assert digest(name, facts) == GOLDEN[name]


def test_batches_are_those_the_checkpoint_was_trained_on():
    source = Source(FACTS, TOKENIZER, num_tokens=4096, seed=3)
    sha256 = hashlib.sha256()
    for batch_idx in range(4):
        batch = source.batch(batch_idx)
        for array in (batch.ids, batch.targets, batch.starts):
            sha256.update(array.tobytes())
    assert sha256.hexdigest() == GOLDEN["batches"]


def test_no_training_sample_is_held_out(facts):
    rng = random.Random(1)
    keys = [training_sample(rng, facts, MIXTURE).key for _ in range(3000)]
    assert not [key for key in keys if is_held_out(key)]


def test_the_generators_do_make_held_out_problems(facts):
    rng = random.Random(1)
    held_out = [is_held_out(GENERATORS["add"](rng, facts).key) for _ in range(2000)]
    assert sum(held_out) == pytest.approx(2000 / 50, abs=20)


@pytest.mark.parametrize("name", ["add", "tool_unseen", "phrasing"])
def test_evaluation_rows_are_distinct(name, facts):
    rows = make_set(facts, name)
    assert len({json.dumps([row["messages"], row["thinking"]]) for row in rows}) == len(rows) > 0


def test_new_smalltalk_is_not_in_training(facts):
    trained = {row.question for row in smalltalk_samples(facts)}
    assert not [row for row in make_smalltalk() if row["messages"][0]["content"] in trained]


def smalltalk_samples(facts):
    rng = random.Random(2)
    return [GENERATORS["smalltalk"](rng, facts) for _ in range(3000)]


def test_steps_are_worked_by_hand():
    assert add_steps(95, 17) == [
        "ones: 5 + 7 = 12, write 2, carry 1",
        "tens: 9 + 1 + 1 = 11, write 1, carry 1",
        "carry 1 to the front",
        "95 + 17 = 112",
    ]
    assert subtract_steps(42, 17) == [
        "ones: 12 - 7 = 5, borrow 1",
        "tens: 4 - 1 - 1 = 2",
        "42 - 17 = 25",
    ]
    assert multiply_steps(12, 30) == [
        "2 × 3 = 6 write 6; 1 × 3 = 3; so 12 × 3 = 36",
        "12 × 30 = 360",
    ]
    assert divide_steps(25, 4) == ["25 / 4: 6 × 4 = 24, rest 1", "digits 6, rest 1"]
    assert spell_number(1342) == "one thousand three hundred and forty-two"


def test_marked_stretches_are_encoded_one_character_per_token():
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    ids = encode_reply(tokenizer, f"the {CHARS_ON}the{CHARS_OFF}")
    letters = [tokenizer.token_to_id(letter) for letter in "the"]
    assert ids[-3:] == letters
    assert len(ids) == len(tokenizer.encode("the ", add_special_tokens=False).ids) + 3


def test_documents_end_with_a_stop_token_and_only_replies_carry_loss(facts):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    rng = random.Random(3)
    for _ in range(50):
        sample = training_sample(rng, facts, MIXTURE)
        ids, num_prompt = encode_sample(tokenizer, sample, True)
        assert 0 < num_prompt < len(ids)
        assert ids[-1] == (2 if sample.plain else 4087)


def test_a_batch_is_full_or_has_its_most_documents():
    batch = Source(FACTS, TOKENIZER, num_tokens=2048).batch(0)
    assert len(batch.ids) == len(batch.targets) == 2048
    assert batch.starts[0] == 0
    assert (batch.starts[1:] - batch.starts[:-1]).max() <= LONGEST
    assert sum(batch.num_documents.values()) == len(batch.starts) - 1
    assert all(batch.targets[end - 1] == 0 for end in batch.starts[1:-1])


def test_show_prints_a_sample_of_every_generator(capsys):
    make_data.main(["show", "--facts", str(FACTS), "--seed", "1"])
    assert [line[4:] for line in capsys.readouterr().out.splitlines() if line[:4] == "=== "] == [
        *MIXTURE
    ]
