"""What counts as a right reply."""

import json
import math
import subprocess
import sys

import pytest

from erniechat.mini import scoring
from erniechat.mini.scoring import correct, exact, load_eval


def row(answer, skill="add", thinking=False, tool_calls=(), reference=""):
    return {
        "skill": skill,
        "thinking": thinking,
        "answer": answer,
        "tool_calls": list(tool_calls),
        "reference": reference,
    }


def reply(content):
    return f"<response>\n{content}\n</response>\n<|im_end|>"


@pytest.mark.parametrize(
    ("answer", "content", "right"),
    [
        ("42", "17 + 25 = 42", True),
        ("42", "17 + 25 = 43", False),
        ("42", "42 is 17 + 25", False),  # the last number counts
        ("42", "The answer is 142", False),
        ("-4", "3 - 7 = -4", True),
        ("4", "3 - 7 = -4", False),
        ("42", "no number at all", False),
        ("141 remainder 1", "847 / 6 = 141 remainder 1", True),
        ("141 remainder 1", "847 / 6 = 141 remainder 12", False),
        ("Paris", "The capital of France is PARIS.", True),
        ("Chad", "The capital is Chadwick.", False),
        ("曼谷", "泰国的首都是曼谷。", True),
        ("曼谷", "泰国的首都是北京。", False),
        ("", "anything", False),
    ],
)
def test_the_visible_answer_decides(answer, content, right):
    assert correct(row(answer), reply(content)) is right


def test_of_a_letter_count_the_first_number_counts():
    content = 'There are 2 r\'s in "r2d2 r9".'
    assert correct(row("2", "count_letters"), reply(content))
    assert not correct(row("9", "count_letters"), reply(content))


def test_a_sorted_list_must_be_the_whole_content():
    wanted = row("1, 2, 3", "sort", reference=reply("1, 2, 3"))
    assert correct(wanted, reply("1, 2, 3"))
    assert not correct(wanted, reply("0, 1, 2, 3"))


def test_an_answer_that_is_only_thought_is_wrong():
    thought = "17 + 25 = 42\n</think>\n" + reply("I don't know")
    assert not correct(row("42", thinking=True), thought)
    assert correct(row("42", thinking=True), "no idea\n</think>\n" + reply("42"))


def test_a_tool_call_needs_its_name_and_all_arguments():
    call = {"name": "get_weather", "arguments": {"city": "Lima"}}
    wanted = row("", tool_calls=[call])

    def called(**changes):
        return f"\n<tool_call>\n{json.dumps({**call, **changes})}\n</tool_call>\n<|im_end|>"

    assert correct(wanted, called())
    assert not correct(wanted, called(arguments={"city": "Rome"}))
    assert not correct(wanted, called(name="weather"))
    assert not correct(wanted, reply("Lima"))
    assert not correct(wanted, called().replace("}}", "}"))  # broken JSON


def test_a_call_where_an_answer_is_wanted_is_wrong():
    call = '\n<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>\n'
    assert not correct(row("42"), "<response>\n42\n</response>\n" + call)


def test_exact_means_thoughts_too():
    wanted = row("2", thinking=True, reference="1 + 1\n</think>\n" + reply("2"))
    assert exact(wanted, "1 + 1\n</think>\n<response>\n2\n</response>\n")
    assert not exact(wanted, "one\n</think>\n<response>\n2\n</response>\n")


def test_every_reference_of_every_set_is_right():
    names = scoring.eval_names()
    assert len(names) == 26
    for name in names:
        rows = load_eval(name)
        wrong = [r["messages"] for r in rows if not correct(r, r["reference"])]
        assert not wrong, name


def test_score_set_counts_by_mode():
    rows = [row("1", thinking=True), row("2"), row("3")]
    replies = ["</think>\n" + reply("1"), reply("2"), reply("4")]
    score = scoring.score_set(rows, replies)
    assert score.num_correct == (1, 1)
    assert score.num_items == (1, 2)
    assert score.accuracy == pytest.approx(2 / 3)


def test_score_set_refuses_a_missing_reply():
    with pytest.raises(ValueError, match="one for each row"):
        scoring.score_set([row("1")], [])


def test_load_eval_names_the_sets_when_one_is_unknown():
    with pytest.raises(FileNotFoundError, match=r"no evaluation set 'sums'.*subtract"):
        load_eval("sums")


def test_heldout_documents_are_eight_entries_each():
    documents = scoring.heldout_documents()
    assert sum(len(document.split("\n")) for document in documents) == 2263
    assert {len(document.split("\n")) for document in documents[:-1]} == {8}
    assert scoring.heldout_documents(num_lines=9)[1] == documents[1].split("\n")[0]


def test_perplexity_of_an_even_guess_among_four_is_four():
    def likelihood(documents):
        assert [ids[0] for ids in documents] == [scoring.BOS_ID] * 2
        return sum(len(ids) - 1 for ids in documents) * math.log(4)

    measured = scoring.heldout_perplexity(["ab", "cde"], lambda text: [7] * len(text), likelihood)
    assert measured.value == pytest.approx(4)
    assert measured.num_tokens == 5


def test_expert_spread_is_relative_to_an_even_load():
    assert scoring.expert_spread([[3, 1, 2, 2], [1, 1, 1, 1]]) == [(1.5, 0.5), (1.0, 1.0)]


def test_scoring_needs_no_torch():
    code = "import sys, erniechat.mini.scoring as s; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
