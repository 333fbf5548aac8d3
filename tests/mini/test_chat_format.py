"""The chat format in Python equals the checkpoint's template."""

import json

import jinja2
import pytest

from erniechat.mini import checkpoint_folder
from erniechat.mini.chat import parse_reply, render_prompt, render_reply
from erniechat.mini.scoring import eval_names, load_eval

CALL = {"name": "get_weather", "arguments": {"city": "São Paulo"}}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather <now> & 'then'", "parameters": {}},
}
QUESTION = {"role": "user", "content": "What's the weather?"}
CALLING = {"role": "assistant", "content": "", "thoughts": "tool get_weather", "tool_calls": [CALL]}
OUTPUT = {"role": "tool", "content": {"temp": 20}}
CONVERSATIONS = {
    "one question": [QUESTION],
    "system prompt": [{"role": "system", "content": "Be brief."}, QUESTION],
    "empty": [],
    "tool loop": [QUESTION, CALLING, OUTPUT],
    "two outputs": [QUESTION, {**CALLING, "tool_calls": [CALL, CALL]}, OUTPUT, OUTPUT],
    "wrapped call": [QUESTION, {**CALLING, "tool_calls": [{"function": CALL}]}, OUTPUT],
    "arguments as text": [
        QUESTION,
        {**CALLING, "tool_calls": [{"name": "f", "arguments": '{"a":1}'}]},
        OUTPUT,
    ],
    "content and call": [QUESTION, {**CALLING, "content": "Wait."}, OUTPUT],
    "old thoughts are dropped": [
        QUESTION,
        {"role": "assistant", "content": "Fine.", "thoughts": "secret"},
        {"role": "user", "content": "Thanks"},
    ],
}


@pytest.fixture(scope="module")
def template():
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    text = (checkpoint_folder() / "chat_template.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("tools", [[], [TOOL], [TOOL, TOOL]])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_prompt_equals_the_template(template, messages, tools, thinking):
    expected = template.render(messages=messages, tools=tools, enable_thinking=thinking)
    assert render_prompt(messages, tools, thinking) == expected


def test_prompts_of_the_evaluation_sets_equal_the_template(template):
    for name in eval_names():
        for row in load_eval(name)[::10]:
            expected = template.render(
                messages=row["messages"], tools=row["tools"], enable_thinking=row["thinking"]
            )
            assert render_prompt(row["messages"], row["tools"], row["thinking"]) == expected


@pytest.mark.parametrize("thinking", [True, False])
def test_a_reply_comes_back_as_its_parts(thinking):
    text = render_reply("steps", "Done.", [CALL, CALL], thinking)
    expected = ("steps" if thinking else "", "Done.", [CALL, CALL])
    assert parse_reply(text, thinking) == expected


def test_broken_calls_are_none():
    assert parse_reply("<tool_call>{</tool_call>", thinking=False)[2] is None
