"""The reply parser: the acceptance cases of vLLM and FastDeploy, and any cutting into pieces.

V, T, F and X are the rows of vLLM's reasoning and tool parser tests and of FastDeploy's. Where
FastDeploy keeps newlines beside tags, vLLM's trimming is taken; FastDeploy's streamed fragments of
arguments (X9-X12) come here as one whole call.
"""

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniechat.chat.reply_parser import ReplyParser
from erniechat.chat.tags import TAGS, Tag, section_after, tags_in, tags_without_id
from erniechat.events import TextDelta, ThinkingDelta, ToolCall

PROPERTY = settings(max_examples=300, deadline=None, database=None)
TAG = re.compile("(" + "|".join(map(re.escape, sorted(TAGS))) + ")")


def call_text(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>\n'


WEATHER = ("get_current_temperature", '{"location": "Beijing"}')
UNIT = ("get_temperature_unit", '{"location": "Guangzhou", "unit": "c"}')
TWO_CALLS = call_text(*WEATHER) + call_text(*UNIT)
TWO = "I need to call two tools to handle these two issues separately."
NESTED = '{"a": {"b": {"c": 1}}, "d": "}"}'

# name: (where the prompt leaves off, output, thinking, answer, calls)
CASES = {
    "V1": ("thinking", "abc</think>def", "abc", "def", []),
    "V2": ("thinking", "abc", "abc", "", []),
    "V3": ("thinking", "abc</think>", "abc", "", []),
    "V4": ("thinking", "abc\nABC</think>def\nDEF", "abc\nABC", "def\nDEF", []),
    "V5": ("thinking", "</think>\n<response>\nHello\n</response>\n", "", "Hello", []),
    "T1": ("answer", "This is a test", "", "This is a test", []),
    "T2": ("answer", call_text(*WEATHER), "", "", [WEATHER]),
    "T3": ("answer", TWO_CALLS, "", "", [WEATHER, UNIT]),
    "T4": ("thinking", f"{TWO}\n</think>\n\n{TWO_CALLS}", TWO, "", [WEATHER, UNIT]),
    "T4_as_answer": ("answer", f"{TWO}\n</think>\n\n{TWO_CALLS}", "", TWO, [WEATHER, UNIT]),
    "F1": ("thinking", "a", "a", "", []),
    "F2": ("thinking", "\n", "\n", "", []),
    "F3": ("thinking", "</think>", "", "", []),
    "F4": ("thinking", "</think><response>h", "", "h", []),
    "F5": ("thinking", "</think><response>\n", "", "", []),
    "F6": ("answer", "<response></response>", "", "", []),
    "F7": ("thinking", "hello</think><response>hi", "hello", "hi", []),
    "F8": ("thinking", "</think><response>", "", "", []),
    # FastDeploy drops text after </response>; only white space is safe to drop.
    "F9": ("thinking", "</think><response>a</response>end", "", "aend", []),
    "F9_white_space": ("thinking", "</think><response>a</response>\n \n", "", "a", []),
    "F10": ("thinking", "</think><tool_call>", "", "", []),
    "F11": (
        "thinking",
        "abc\n</think>\n<response>hello\nworld</response>",
        "abc",
        "hello\nworld",
        [],
    ),
    # FastDeploy leaves it to its tool parser, which passes what is not a call as text.
    "F12": ("thinking", "abc</think><tool_call>call_here", "abc", "call_here", []),
    "F13": ("thinking", "no_thinking_here", "no_thinking_here", "", []),
    "F14": ("thinking", "abc</think><response>partial response", "abc", "partial response", []),
    "F15": (
        "thinking",
        "abc\n</think>\n<response>line1\nline2\n</response>",
        "abc",
        "line1\nline2",
        [],
    ),
    "F16": ("answer", "hello", "", "hello", []),
    "X1": ("answer", call_text("f", '{"x": 1}'), "", "", [("f", '{"x": 1}')]),
    "X2": (
        "answer",
        '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
        '<tool_call>{"name": "g", "arguments": {"y": 2}}</tool_call>',
        "",
        "",
        [("f", '{"x": 1}'), ("g", '{"y": 2}')],
    ),
    "X3": ("answer", '<tool_call>{"name": "f"}</tool_call>', "", "", [("f", "{}")]),
    "X4": ("answer", call_text("f", "{}"), "", "", [("f", "{}")]),
    "X5": ("answer", call_text("f", NESTED), "", "", [("f", NESTED)]),
    "X6": (
        "answer",
        '\n<tool_call> \n\n {"name": "f", "arguments": {"x": 1}} \n\t\n</tool_call>\n\n',
        "",
        "",
        [("f", '{"x": 1}')],
    ),
    "X7": ("answer", "plain text", "", "plain text", []),
    "X8": ("answer", '<tool_call>\n{"name": "f", "arg\n</tool_call>', "", '{"name": "f", "arg', []),
    "X9": ("answer", call_text("f", '{"a": "b", "c": 12}'), "", "", [("f", '{"a": "b", "c": 12}')]),
    "X10": ("answer", call_text("f", '{"n": 123}'), "", "", [("f", '{"n": 123}')]),
    "X11": ("answer", call_text("f", '{"b": true}'), "", "", [("f", '{"b": true}')]),
    "X12": ("answer", call_text("f", '{"a": {"b": 1}}'), "", "", [("f", '{"a": {"b": 1}}')]),
    "X13": ("answer", call_text("f", "{}") + "after", "", "after", [("f", "{}")]),
    "X14": ("answer", "before</tool_call>", "", "before", []),
    "X15": (
        "answer",
        '<tool_call>{"name": "f", "arguments": {',
        "",
        '{"name": "f", "arguments": {',
        [],
    ),
    "X16": ("answer", TWO_CALLS, "", "", [WEATHER, UNIT]),
    "repeated_think": ("thinking", "<think>\nabc\n</think>\nx", "abc", "x", []),
    "repeated_think_with_prefix_space": ("thinking", "<think> \nabc</think>x", "abc", "x", []),
    "one_newline_only_before_end_of_think": ("thinking", "a\n\n</think>b", "a\n", "b", []),
    "spaces_after_tags": (
        "thinking",
        "a\n</think> \n\n<response> \nb c\n</response> \n",
        "a",
        "b c",
        [],
    ),
    "no_response_tags": ("thinking", "a\n</think>\nb\n", "a", "b\n", []),
    "answer_then_call": (
        "thinking",
        "a\n</think>\n\n<response>\nb\n</response>\n\n\n" + call_text("f", "{}"),
        "a",
        "b",
        [("f", "{}")],
    ),
    "call_inside_response": (
        "thinking",
        "</think><response>\nb\n\n" + call_text("f", "{}") + "\nc</response>",
        "",
        "bc",
        [("f", "{}")],
    ),
    "tags_inside_thinking": (
        "thinking",
        "a<response>b</response><tool_call>{}</tool_call><think>c</think>d",
        "ab{}c",
        "d",
        [],
    ),
    "think_again": ("answer", "a\n<think>\nb\n</think>\nc", "b", "a\nc", []),
    "tag_inside_arguments": (
        "answer",
        call_text("f", '{"html": "<think>"}'),
        "",
        "",
        [("f", '{"html": "<think>"}')],
    ),
    "leading_white_space": ("answer", "  \n\tHello \n", "", "Hello \n", []),
    "chinese_indent_is_kept": ("answer", " \u3000\u3000段", "", "\u3000\u3000段", []),
    "arguments_as_text": (
        "answer",
        call_text("f", json.dumps('{"x": "é"}')),
        "",
        "",
        [("f", '{"x": "é"}')],
    ),
    "null_arguments": ("answer", call_text("f", "null"), "", "", [("f", "{}")]),
    "raw_newline_in_arguments": (
        "answer",
        call_text("f", '{"x": "a\nb"}'),
        "",
        "",
        [("f", '{"x": "a\\nb"}')],
    ),
    "lone_surrogate_stays_escaped": (
        "answer",
        call_text("f", '{"x": "\\ud83d"}'),
        "",
        "",
        [("f", '{"x": "\\ud83d"}')],
    ),
    "broken_call_on_its_own_line": (
        "answer",
        "<response>\nok\n</response>\n\n\n<tool_call>\n{oops}\n</tool_call>\nend",
        "",
        "ok\n{oops}\nend",
        [],
    ),
    "nested_call_is_no_call": ("answer", "<tool_call>a<tool_call>b</tool_call>c", "", "abc", []),
    "cut_inside_a_tag": ("answer", "<response>a</respo", "", "a</respo", []),
}
NOT_CALLS = ['{"x": 1}', '{"name": 3}', '{"name": ""}', "[]", '"f"', "1", "", '{"name": "\\ud83d"}']
NOT_CALLS += ['{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": "x"}']
NOT_CALLS += ['{"name": "f", "arguments": {"x": NaN}}', "[" * 100_000]


def gather(events):
    """Thinking, answer and calls of events; every delta must hold text."""
    assert all(event.text for event in events if not isinstance(event, ToolCall))
    return (
        "".join(event.text for event in events if isinstance(event, ThinkingDelta)),
        "".join(event.text for event in events if isinstance(event, TextDelta)),
        [(event.name, event.arguments) for event in events if isinstance(event, ToolCall)],
    )


def order(events):
    """The events with neighbours of one kind joined and ids left out."""
    out = []
    for event in events:
        if isinstance(event, ToolCall):
            out.append((ToolCall, event.name + event.arguments))
        elif out and out[-1][0] is type(event):
            out[-1] = (type(event), out[-1][1] + event.text)
        else:
            out.append((type(event), event.text))
    return out


def parse(starts_in, pieces, text_tags=TAGS):
    parser = ReplyParser(starts_in, text_tags=text_tags)
    return parser.feed_all(pieces) + parser.finish()


def as_tokens(text):
    """The text with whole tags as Tag pieces, as a tokenizer with tag ids gives them."""
    return [Tag(part) if part in TAGS else part for part in TAG.split(text) if part]


@pytest.mark.parametrize("name", CASES)
def test_text_in_one_piece(name):
    starts_in, text, *expected = CASES[name]
    assert gather(parse(starts_in, [text])) == tuple(expected)


@pytest.mark.parametrize("name", CASES)
def test_tags_by_token_id(name):
    starts_in, text, *expected = CASES[name]
    assert gather(parse(starts_in, as_tokens(text), text_tags=())) == tuple(expected)


@pytest.mark.parametrize("name", CASES)
def test_every_cut_in_two_and_single_characters(name):
    starts_in, text, *_ = CASES[name]
    expected = order(parse(starts_in, [text]))
    assert order(parse(starts_in, text)) == expected
    for idx in range(1, len(text)):
        assert order(parse(starts_in, [text[:idx], text[idx:]])) == expected


FRAGMENTS = st.lists(
    st.sampled_from([*sorted(TAGS), "\n", " ", "a", "你", "<", "</", "<thi", "nk>", "{}"])
    | st.just(call_text("f", '{"x": 1}')),
    max_size=14,
).map("".join)


@given(text=FRAGMENTS, starts_in=st.sampled_from(["thinking", "answer"]), data=st.data())
@PROPERTY
def test_any_cutting_equals_one_piece(text, starts_in, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    bounds = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    whole = order(parse(starts_in, [text]))
    assert order(parse(starts_in, pieces)) == whole
    assert order(parse(starts_in, as_tokens(text), text_tags=())) == whole


@given(text=FRAGMENTS, starts_in=st.sampled_from(["thinking", "answer"]))
@PROPERTY
def test_no_literal_tag_reaches_the_user_and_answers_begin_with_text(text, starts_in):
    events = parse(starts_in, as_tokens(text), text_tags=())
    thinking, answer, _ = gather(events)
    assert answer[:1] not in ("\n", " ", "\t")
    # Tags may form anew out of the text around one, as in <thi<think>nk>: those are text.
    if "<thi" not in text and "</" not in text.replace("</t", "").replace("</r", ""):
        assert not any(tag in thinking + answer for tag in TAGS)


@given(text=st.text(max_size=30))
@PROPERTY
def test_without_tags_everything_is_text(text):
    events = parse("answer", list(text), text_tags=())
    assert gather(events) == ("", text.lstrip(" \t\r\n"), [])


def test_text_that_spells_a_tag_is_text_where_tags_are_tokens():
    pieces = [Tag("</think>"), "write <think>", " or </think>"]
    assert gather(parse("thinking", pieces, text_tags=()))[1] == "write <think> or </think>"


@pytest.mark.parametrize("text", NOT_CALLS)
def test_what_is_no_call_comes_as_text(text):
    thinking, answer, calls = gather(parse("answer", ["<tool_call>\n", text, "\n</tool_call>"]))
    assert (thinking, answer, calls) == ("", text, [])


def test_x17_ids_are_those_of_fastdeploy_and_differ():
    first, second = parse("answer", [TWO_CALLS])
    assert re.fullmatch(r"chatcmpl-tool-[0-9a-f]{32}", first.id)
    assert first.id != second.id


def test_ids_can_be_given():
    ids = iter(["one", "two"])
    parser = ReplyParser("answer", text_tags=TAGS, make_call_id=lambda: next(ids))
    assert [call.id for call in parser.feed(TWO_CALLS)] == ["one", "two"]


def test_a_call_comes_when_it_is_complete_and_nothing_before():
    parser = ReplyParser("answer")
    assert parser.feed(Tag("<tool_call>")) == []
    assert parser.feed('{"name": "f"}') == []
    (call,) = parser.feed(Tag("</tool_call>"))
    assert (call.name, call.arguments) == ("f", "{}")


def test_section_is_known_after_each_piece():
    parser = ReplyParser("thinking")
    seen = []
    for piece in ["a", Tag("</think>"), Tag("<response>"), "b", Tag("<tool_call>"), "{"]:
        parser.feed(piece)
        seen.append(parser.section)
    assert seen == ["thinking"] + ["answer"] * 5


def test_text_is_not_held_back_without_need():
    parser = ReplyParser("answer", text_tags=TAGS)
    assert parser.feed("a < b") == [TextDelta("a < b")]
    assert parser.feed("<x") == [TextDelta("<x")]
    assert parser.feed("c <re") == [TextDelta("c ")]
    assert parser.feed("d>") == [TextDelta("<red>")]


def test_finish_twice_gives_nothing_more():
    parser = ReplyParser("thinking", text_tags=TAGS)
    parser.feed("a\n</th")
    assert parser.finish() == [ThinkingDelta("\n</th")]
    assert parser.finish() == []


def test_real_shape_through_the_thinking_tokenizer(thinking_tokenizer):
    text = (
        "想 12 b\n</think>\n\n<response>\n你好 🤗\n</response>\n\n\n"
        '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
    )
    decoder = thinking_tokenizer.stream_decoder()
    parser = ReplyParser("thinking")
    events = []
    for token_id in [*thinking_tokenizer.encode(text), 100308]:
        events += parser.feed_all(decoder.feed(token_id))
    events += parser.feed_all(decoder.flush()) + parser.finish()
    # Spaces after digits are the tokenizer's, which prepends one to every piece.
    assert gather(events) == ("想 12  b", "你好 🤗", [("f", '{"x": "é"}')])


@pytest.mark.parametrize(
    ("prompt", "section"),
    [
        ("", "answer"),
        ("hi", "answer"),
        ("<think>\n", "thinking"),
        ("<think>\n</think>\n", "answer"),
        ("<think>a</think><response>", "answer"),
        ("<think>a</think><response>b</response><think>", "thinking"),
        ("</think><tool_call>", "answer"),
    ],
)
def test_f16_section_after_a_prompt(prompt, section):
    assert section_after(prompt) == section


def test_half_a_pair_in_a_template_stands_for_both():
    assert tags_in("... <think>\n") == {"<think>", "</think>"}
    assert tags_in("nothing") == frozenset()


def test_only_tags_without_an_id_are_looked_for_in_text():
    tags = tags_in("<think> <response>")
    assert tags_without_id(tags, {7: "<think>", 8: "</think>"}) == {"<response>", "</response>"}
    assert tags_without_id(frozenset(), {}) == frozenset()
