"""Messages from JSON and for templates."""

import json

import pytest

from erniechat.chat.conversation import Message
from erniechat.errors import UsageError
from erniechat.events import ToolCall


def test_plain_messages():
    for role in ("system", "user", "assistant", "tool"):
        message = Message.from_dict({"role": role, "content": "x"})
        assert message == Message(role, "x")
        assert message.as_template_dict() == {"role": role, "content": "x"}


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"text": "b"}, "c"]
    for role in ("user", "assistant"):
        assert Message.from_dict({"role": role, "content": parts}).content == "abc"
    message = Message.from_dict({"role": "tool", "content": parts[:1]})
    assert message == Message("tool", "a")


@pytest.mark.parametrize("key", ["thoughts", "reasoning_content"])
def test_thoughts_under_either_name(key):
    message = Message.from_dict({"role": "assistant", "content": "a", key: "t"})
    assert message.thoughts == "t"
    assert message.as_template_dict() == {"role": "assistant", "content": "a", "thoughts": "t"}


def test_thoughts_win_over_reasoning_content():
    both = {"role": "assistant", "content": "a", "thoughts": "t", "reasoning_content": "r"}
    assert Message.from_dict(both).thoughts == "t"
    assert Message.from_dict({**both, "thoughts": ""}).thoughts == ""


@pytest.mark.parametrize("arguments", [{"x": "é"}, '{"x": "é"}'])
@pytest.mark.parametrize("wrap", [lambda f: {"function": f, "type": "function"}, lambda f: f])
def test_tool_calls_in_both_forms(wrap, arguments):
    call = {**wrap({"name": "f", "arguments": arguments}), "id": "c1"}
    message = Message.from_dict({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message == Message("assistant", "", None, (ToolCall("c1", "f", '{"x": "é"}'),))
    assert message.as_template_dict()["tool_calls"] == [
        {"function": {"name": "f", "arguments": {"x": "é"}}}
    ]


def test_call_without_arguments_has_none():
    call = {"function": {"name": "f"}}
    message = Message.from_dict({"role": "assistant", "content": "", "tool_calls": [call]})
    assert message.tool_calls == (ToolCall("", "f", "{}"),)


@pytest.mark.parametrize("arguments", ["{", "", "not json", "[1]", '"x"', "3", "[" * 100_000])
def test_arguments_that_are_no_json_object_stay_text(arguments):
    message = Message("assistant", "", None, (ToolCall("", "f", arguments),))
    (call,) = message.as_template_dict()["tool_calls"]
    assert call["function"]["arguments"] == arguments


@pytest.mark.parametrize("content", [{"t": "23"}, ["a", "b"], [{"city": "x"}], 3, False, {}, []])
def test_tool_content_may_be_any_json_value(content):
    message = Message.from_dict({"role": "tool", "content": content})
    assert message.as_template_dict() == {"role": "tool", "content": content}


def test_tool_text_that_looks_like_json_stays_text():
    message = Message.from_dict({"role": "tool", "content": '{"t": 1}', "tool_call_id": "c1"})
    assert message.as_template_dict()["content"] == '{"t": 1}'


def test_empty_extra_keys_of_openai_responses_are_let_pass():
    extra = {"refusal": None, "annotations": [], "tool_calls": None, "thoughts": None}
    assert Message.from_dict({"role": "user", "content": "a", **extra}) == Message("user", "a")


@pytest.mark.parametrize(
    "message",
    [
        Message("user", "a"),
        Message("assistant", "a", "t", (ToolCall("c1", "f", '{"x":1}'), ToolCall("", "g", "{"))),
        Message("tool", '{"t": 1}'),
        Message("tool", '{"t": 1}', content_is_json=True),
    ],
)
def test_as_dict_is_read_back(message):
    assert Message.from_dict(json.loads(json.dumps(message.as_dict()))) == message


U = {"role": "user", "content": "a"}
A = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("hi", 'must be a JSON object, got "hi"'),
        ([U], "must be a JSON object, got"),
        ({}, "role must be one of system, user, assistant, tool, got null"),
        ({"role": "developer", "content": "a"}, 'got "developer"'),
        ({"role": ["user"], "content": "a"}, 'got ["user"]'),
        ({"role": "user"}, "content must be text or a list of text parts, got null"),
        ({"role": "user", "content": 3}, 'got 3 in a message of role "user"'),
        ({"role": "user", "content": {"a": 1}}, 'got {"a": 1} in'),
        ({"role": "assistant", "content": None}, "got null"),
        ({"role": "tool", "content": None}, "or a JSON value, got null"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x" * 99}]},
            "parts must be text",
        ),
        ({**U, "audio": {"id": 1}}, 'a message has no "audio"'),
        (
            {**U, "thoughts": "t"},
            'thoughts belongs to the assistant, got it in a message of role "',
        ),
        ({**A, "thoughts": 3}, "thoughts must be text, got 3"),
        ({**A, "reasoning_content": ["t"]}, 'reasoning_content must be text, got ["t"]'),
        ({**U, "tool_calls": [{"name": "f"}]}, "tool_calls belong to the assistant"),
        ({**A, "tool_calls": {"name": "f"}}, "tool_calls must be a list"),
        ({**A, "tool_calls": ["f"]}, 'a tool call must have a name, got "f"'),
        ({**A, "tool_calls": [{"function": {}}]}, "a tool call must have a name"),
        ({**A, "tool_calls": [{"name": 3}]}, "name must be text"),
        ({**A, "tool_calls": [{"name": "f", "arguments": [1]}]}, "arguments an object or text"),
        ({**A, "tool_calls": [{"name": "f", "id": 3}]}, "id and name must be text"),
    ],
)
def test_anything_else_is_a_usage_error_on_one_line(data, text):
    with pytest.raises(UsageError) as info:
        Message.from_dict(data)
    message = str(info.value)
    assert text in message
    assert "; " in message
    assert "\n" not in message
    assert len(message) < 250
