"""Where a checkpoint keeps its template, and what a damaged or hostile one can do."""

import json
import time

import pytest

from erniechat.chat.conversation import Message
from erniechat.chat.template import ChatTemplate, Prompt
from erniechat.errors import CheckpointError, ContextLengthError, UsageError
from tests.chat.test_template import CLOCK, OPEN, SYSTEM, THINKING_CASES, turn, user


def test_template_is_read_from_jinja_file_before_config(tmp_path):
    config = {"chat_template": "config", "bos_token": {"content": "<s>"}, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_folder(tmp_path).render([user("hi")]).text == "config"
    (tmp_path / "chat_template.jinja").write_text("file {{ bos_token }}{{ add_bos_token }}")
    assert ChatTemplate.from_folder(tmp_path).render([user("hi")]).text == "file <s>"


def test_named_templates_take_tool_use_for_tools(tmp_path):
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | tojson }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template.supports_tools
    assert template.render([user("hi")]).text == "plain"
    assert json.loads(template.render([user("hi")], tools=[CLOCK]).text) == [CLOCK]


def test_without_a_template_there_is_none(tmp_path):
    assert ChatTemplate.from_folder(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert ChatTemplate.from_folder(tmp_path) is None


@pytest.mark.parametrize("value", [3, [1], [{"name": "default"}], [{"name": 1, "template": "x"}]])
def test_a_chat_template_of_another_kind_is_a_checkpoint_error(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(CheckpointError, match="must be text or a list"):
        ChatTemplate.from_folder(tmp_path)


def test_damaged_files_are_checkpoint_errors(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot be read as UTF-8"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("x")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        ChatTemplate.from_folder(tmp_path)


def test_no_default_among_named_templates_is_a_checkpoint_error():
    with pytest.raises(CheckpointError, match="no chat template is named default, only rag"):
        ChatTemplate({"rag": "x"})


BAD_SOURCES = {
    "syntax": "{% if %}",
    "unknown_tag": "{% generation %}",
    "undefined": "{{ nothing.at.all }}",
    "type": "{{ messages + 1 }}",
    "division": "{{ 1 / 0 }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "namespace_set": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "mutation": "{{ messages.append(1) }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "repeat": "{{ 'x' * 10 ** 10 }}",
    "repeat_list": "{{ 1000000000 * [1] }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "lipsum": "{{ lipsum(100000) }}",
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_or_hostile_template_is_a_checkpoint_error_on_one_line(name):
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="chat template of baidu/x does not work") as info:
        ChatTemplate(BAD_SOURCES[name], model="baidu/x")
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 500
    assert time.perf_counter() - start < 5


def test_output_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr("erniechat.chat.template.MAX_PROMPT_CHARS", 1000)
    with pytest.raises(CheckpointError, match="longer than 1000 characters"):
        ChatTemplate("{% for i in range(2000) %}x{{ i }}{% endfor %}")


def test_small_arithmetic_is_allowed():
    assert ChatTemplate("{{ '=' * 3 }}{{ 2 ** 8 }}{{ 2 * 3 }}").render([user("x")]).text == (
        "===2566"
    )


def test_messages_that_the_template_refuses_are_a_usage_error():
    template = ChatTemplate(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no\nsystem!') }}{% endif %}ok"
    )
    with pytest.raises(UsageError, match="refuses these messages: no system!") as info:
        template.render([Message("system", "s"), user("x")])
    assert "\n" not in str(info.value)


def test_mini_template(mini_folder):
    template = ChatTemplate.from_folder(mini_folder)
    assert template.thinking == "switchable"
    assert template.supports_tools
    for case, (messages, text) in THINKING_CASES.items():
        if case != "last_message_is_an_answer":  # mini writes no empty section there
            assert template.render(messages).text == text, case
    closed = template.render([user("hi")], think="off")
    assert closed == Prompt(
        SYSTEM.replace("True", "False") + turn("user", "hi") + OPEN + "</think>\n", "answer"
    )


def test_messages_beyond_any_context_are_no_fault_of_the_template(monkeypatch):
    monkeypatch.setattr("erniechat.chat.template.MAX_PROMPT_CHARS", 1000)
    template = ChatTemplate("{{ messages[0].content }}{{ messages[0].content }}")
    with pytest.raises(ContextLengthError, match="501 characters, more than any context holds"):
        template.render([user("x" * 501)])
    assert len(template.render([user("x" * 500)]).text) == 1000
