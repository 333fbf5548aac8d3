"""Chat templates: ERNIE's renderings byte for byte, what a template can do, and bad templates."""

from pathlib import Path

import pytest

from erniechat.chat.conversation import Message
from erniechat.chat.template import ChatTemplate, Prompt
from erniechat.errors import UsageError
from erniechat.events import ToolCall

FIXTURES = Path(__file__).parent / "fixtures"

SYSTEM = "<|im_start|>system\n<global_setting>\nthink_mode=True\n</global_setting><|im_end|>\n\n"
OPEN = "<|im_start|>assistant\n<think>\n"
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "天气 <now>", "parameters": {"x": [1]}},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def user(text):
    return Message("user", text)


def said(text, thoughts=None, *calls):
    return Message("assistant", text, thoughts, tuple(ToolCall("", *call) for call in calls))


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n\n"


def tool(text, *, is_json=False):
    return Message("tool", text, content_is_json=is_json)


TOOL_LOOP = [user("w?"), said("", "need tool", ("f", "{}")), tool("r1")]

THINKING_CASES = {
    "user": ([user("hi")], SYSTEM + turn("user", "hi") + OPEN),
    "system_and_user": (
        [Message("system", "Be brief."), user("hi")],
        "<|im_start|>system\n<system_setting>\nBe brief.\n</system_setting>\n\n<global_setting>\n"
        "think_mode=True\n</global_setting><|im_end|>\n\n" + turn("user", "hi") + OPEN,
    ),
    "finished_turn_with_thoughts_in_content": (
        [user("a"), said("<think>\nx\n</think>\n\nans"), user("b")],
        SYSTEM
        + turn("user", "a")
        + "<|im_start|>assistant\n<response>\nans\n</response>\n<|im_end|>\n\n"
        + turn("user", "b")
        + OPEN,
    ),
    "finished_turn_with_thoughts": (
        [user("a"), said("ans", "x"), user("b")],
        SYSTEM
        + turn("user", "a")
        + "<|im_start|>assistant\n<response>\nans\n</response>\n<|im_end|>\n\n"
        + turn("user", "b")
        + OPEN,
    ),
    "running_tool_loop": (
        [
            user("w?"),
            said("", "need tool", ("get_weather", '{"location": "Beijing"}')),
            tool('{"t": "23"}', is_json=True),
        ],
        SYSTEM + turn("user", "w?") + "<|im_start|>assistant\n<think>\nneed tool\n</think>\n"
        '\n<tool_call>\n{"name": "get_weather", "arguments": {"location": "Beijing"}}\n'
        "</tool_call>\n<|im_end|>\n\n"
        '<|im_start|>tool\n<tool_output>{"t": "23"}</tool_output><|im_end|>\n\n' + OPEN,
    ),
    "content_and_two_calls": (
        [
            user("w?"),
            said("ok", "need tool", ("f", '{"x": 1}'), ("g", '{"y": 2}')),
            tool("r1"),
            tool("r2"),
        ],
        SYSTEM + turn("user", "w?") + "<|im_start|>assistant\n<think>\nneed tool\n</think>\n"
        "<response>\nok\n</response>\n"
        '\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        '\n\n<tool_call>\n{"name": "g", "arguments": {"y": 2}}\n</tool_call>\n<|im_end|>\n\n'
        '<|im_start|>tool\n<tool_output>"r1"</tool_output>\n<tool_output>"r2"</tool_output>'
        "<|im_end|>\n\n" + OPEN,
    ),
    "finished_tool_loop": (
        [*TOOL_LOOP, said("fin", "y"), user("thanks")],
        SYSTEM + turn("user", "w?") + '<|im_start|>assistant\n\n<tool_call>\n{"name": "f", '
        '"arguments": {}}\n</tool_call>\n<|im_end|>\n\n'
        '<|im_start|>tool\n<tool_output>"r1"</tool_output><|im_end|>\n\n'
        "<|im_start|>assistant\n<response>\nfin\n</response>\n<|im_end|>\n\n"
        + turn("user", "thanks")
        + OPEN,
    ),
    "last_message_is_an_answer": (
        [user("a"), said("ans")],
        SYSTEM + turn("user", "a") + "<|im_start|>assistant\n<think>\n\n</think>\n<response>\nans\n"
        "</response>\n<|im_end|>\n\n" + OPEN,
    ),
    "broken_arguments_as_they_stand": (
        [user("w?"), said("", "t", ("f", '{"x": ')), tool("r1")],
        SYSTEM + turn("user", "w?") + "<|im_start|>assistant\n<think>\nt\n</think>\n"
        '\n<tool_call>\n{"name": "f", "arguments": {"x": }\n</tool_call>\n<|im_end|>\n\n'
        '<|im_start|>tool\n<tool_output>"r1"</tool_output><|im_end|>\n\n' + OPEN,
    ),
}

PT_CASES = {
    "user": (
        [user("Hey, are you conscious? Can you talk to me?")],
        "<|begin_of_sentence|>User: Hey, are you conscious? Can you talk to me?\nAssistant: ",
    ),
    "turns": (
        [Message("system", "sys"), user("a"), said("b"), user("c")],
        "<|begin_of_sentence|>sys\nUser: a\nAssistant: b<|end_of_sentence|>User: c\nAssistant: ",
    ),
    "system_in_between": (
        [user("a"), Message("system", "sys"), user("<think>你好")],
        "<|begin_of_sentence|>User: a\nsys\nUser: <think>你好\nAssistant: ",
    ),
}


@pytest.fixture(params=["fixture", "real"])
def thinking(request, thinking_template):
    if request.param == "fixture":
        return thinking_template
    return ChatTemplate.from_folder(request.getfixturevalue("thinking_folder"))


@pytest.fixture(params=["fixture", "real"])
def pt(request, pt_template):
    if request.param == "fixture":
        return pt_template
    return ChatTemplate.from_folder(request.getfixturevalue("pt_folder"))


@pytest.mark.parametrize("case", THINKING_CASES)
def test_thinking_template_renders(thinking, case):
    messages, text = THINKING_CASES[case]
    assert thinking.render(messages) == Prompt(text, "thinking")


def test_thinking_template_renders_tools(thinking):
    items = (
        '{"type": "function", "function": {"name": "get_weather", "description": "天气 <now>", '
        '"parameters": {"x": [1]}}},{"type": "function", "function": {"name": "clock"}}'
    )
    setting = "think_mode=True\n</global_setting>"
    system = SYSTEM.replace(setting, f"{setting}\n\n<tool_list>\n[{items}]\n</tool_list>")
    prompt = thinking.render([user("hi")], tools=[WEATHER, CLOCK])
    assert prompt.text == system + turn("user", "hi") + OPEN


@pytest.mark.parametrize("case", PT_CASES)
def test_pt_template_renders(pt, case):
    messages, text = PT_CASES[case]
    assert pt.render(messages) == Prompt(text, "answer")


def test_fixtures_are_the_published_templates(pt_folder, thinking_folder):
    for name, folder in (("pt", pt_folder), ("thinking", thinking_folder)):
        published = (folder / "chat_template.jinja").read_bytes()
        assert (FIXTURES / f"{name}.jinja").read_bytes() == published


@pytest.mark.parametrize("case", THINKING_CASES)
def test_rendering_equals_that_of_transformers(thinking_template, case):
    reference = pytest.importorskip("transformers.utils.chat_template_utils")
    messages, _ = THINKING_CASES[case]
    tools = [WEATHER, CLOCK]
    texts, _ = reference.render_jinja_template(
        [[message.as_template_dict() for message in messages]],
        tools=tools,
        chat_template=(FIXTURES / "thinking.jinja").read_text(),
        add_generation_prompt=True,
    )
    assert thinking_template.render(messages, tools=tools).text == texts[0]


SETTINGS_SOURCE = """
{%- for m in messages %}
  {% if loop.index0 == 1 %}
    {% continue %}
  {% endif %}
{{ m | tojson(indent=2) }}
{{ {"b": "é", "a": "<"} | tojson(separators=(",", ":"), sort_keys=true) }}
  {%- if loop.index0 == 2 %}{% break %}{% endif %}
{% endfor %}
{{ dict(a=1) | tojson }}{% set ns = namespace(x=0) %}{% set ns.x = 2 %}{{ ns.x }}{{ tools }}
{{- add_generation_prompt }}{{ bos_token }}{{ strftime_now("%%") }}{{ undefined_name }}
"""


def test_environment_has_the_settings_of_transformers():
    reference = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [user("你"), user("b"), said("c"), user("d")]
    texts, _ = reference.render_jinja_template(
        [[message.as_template_dict() for message in messages]],
        chat_template=SETTINGS_SOURCE,
        add_generation_prompt=True,
        bos_token="<s>",
    )
    template = ChatTemplate(SETTINGS_SOURCE, special_tokens={"bos_token": "<s>"})
    assert template.render(messages).text == texts[0]
    assert '{"a":"<","b":"é"}' in texts[0]


def test_thinking_support_is_found_by_rendering(pt, thinking, switchable_template):
    assert pt.thinking == "never"
    assert thinking.thinking == "always"
    assert switchable_template.thinking == "switchable"


def test_tool_support_is_found_by_rendering(pt, thinking, switchable_template):
    assert not pt.supports_tools
    assert thinking.supports_tools
    assert not switchable_template.supports_tools


def test_think_switches_a_switchable_template(switchable_template):
    messages = [user("hi")]
    opened = "<|im_start|>user\nhi<|im_end|>\n" + OPEN
    assert switchable_template.render(messages) == Prompt(opened, "thinking")
    assert switchable_template.render(messages, think="on") == Prompt(opened, "thinking")
    closed = Prompt(opened + "</think>\n", "answer")
    assert switchable_template.render(messages, think="off") == closed


def test_think_off_closes_the_section_of_a_model_that_always_thinks(thinking):
    prompt = thinking.render([user("hi")], think="off")
    assert prompt == Prompt(SYSTEM + turn("user", "hi") + OPEN + "</think>\n", "answer")
    assert thinking.render([user("hi")], think="on") == thinking.render([user("hi")])


def test_think_on_without_a_thinking_mode_is_refused(pt_template):
    assert pt_template.render([user("hi")], think="off").starts_in == "answer"
    with pytest.raises(UsageError) as info:
        pt_template.render([user("hi")], think="on")
    assert str(info.value) == (
        'think must be auto or off here, got "on": baidu/ERNIE-4.5-21B-A3B-PT has no thinking '
        "mode; baidu/ERNIE-4.5-21B-A3B-Thinking has"
    )


def test_talk_about_tags_does_not_start_thinking(pt, thinking):
    assert pt.render([user("what is <think>?")]).starts_in == "answer"
    assert thinking.render([user("what is </think>?")]).starts_in == "thinking"


def test_a_template_that_leaves_the_tag_to_the_model_starts_in_the_answer():
    source = "{{ messages[-1].content }}{{ '<think></think>' if enable_thinking is false else '' }}"
    template = ChatTemplate(source)
    assert template.thinking == "switchable"
    assert template.render([user("<think>")]).starts_in == "answer"


def test_last_tag_of_the_prompt_decides_where_a_reply_starts():
    template = ChatTemplate("{{ messages[-1].content }}<think>\n</think>\n<response>\n")
    assert template.render([user("hi")]).starts_in == "answer"


def test_tools_are_refused_where_the_template_ignores_them(pt_template):
    with pytest.raises(UsageError, match=r"A3B-PT takes no tools.*got 1; ask without tools, or"):
        pt_template.render([user("hi")], tools=[CLOCK])


@pytest.mark.parametrize("message", [tool("r"), said("", None, ("f", "{}"))])
def test_tool_messages_are_refused_where_the_template_drops_them(pt_template, message):
    with pytest.raises(UsageError, match="leaves out tool messages and tool calls"):
        pt_template.render([user("hi"), message])


def test_an_empty_conversation_is_refused(thinking_template):
    with pytest.raises(UsageError, match="at least one message"):
        thinking_template.render([])


def test_tags_that_a_template_knows(pt_template, thinking_template, switchable_template):
    assert pt_template.tags == frozenset()
    assert switchable_template.tags == {"<think>", "</think>"}
    assert len(thinking_template.tags) == 8
