"""The tags that cut a reply into thinking, answer and tool calls, and the sections they lead to."""

from collections.abc import Mapping
from typing import Literal

Section = Literal["thinking", "answer"]

THINK, END_THINK = "<think>", "</think>"
RESPONSE, END_RESPONSE = "<response>", "</response>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"
TOOL_OUTPUT, END_TOOL_OUTPUT = "<tool_output>", "</tool_output>"

PAIRS = (
    (THINK, END_THINK),
    (RESPONSE, END_RESPONSE),
    (TOOL_CALL, END_TOOL_CALL),
    (TOOL_OUTPUT, END_TOOL_OUTPUT),
)
TAGS: frozenset[str] = frozenset(tag for pair in PAIRS for tag in pair)


class Tag(str):
    """A tag that the model wrote as one token, told apart from the same characters as text.

    Equal to its text and of that hash; only ``isinstance`` tells the two apart.
    """

    __slots__ = ()


def tags_in(source: str) -> frozenset[str]:
    """The tags that a template's source knows; half a pair stands for both.

    A template whose generation prompt opens ``<think>`` need not mention ``</think>``, but the
    model will write it.
    """
    found = (pair for pair in PAIRS if any(tag in source for tag in pair))
    return frozenset(tag for pair in found for tag in pair)


def tags_without_id(template_tags: frozenset[str], tag_ids: Mapping[int, str]) -> frozenset[str]:
    """The tags to look for in plain text: the template writes them, the tokenizer has no id."""
    return template_tags - frozenset(tag_ids.values())


def section_after(text: str) -> Section:
    """The section in which a model goes on after a prompt, told by the prompt's last tag.

    Source: PaddlePaddle/FastDeploy, fastdeploy/reasoning/ernie_x1_reasoning_parsers.py, which
    keeps the same state per prompt.
    """
    last = max((*PAIRS[0], *PAIRS[1], *PAIRS[2]), key=text.rfind)
    return "thinking" if last == THINK and THINK in text else "answer"
