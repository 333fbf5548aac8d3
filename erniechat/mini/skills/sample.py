"""Sample: one problem with its reasoning and answer, and the rule that holds problems out."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from erniechat.mini.skills.knowledge import Facts

HELD_OUT = 50  # one problem in 50 is for evaluation only


@dataclass(frozen=True)
class Sample:
    """One problem.

    Attributes:
        skill: Name of the skill, or of the evaluation set.
        key: Names the problem: its hash decides whether it is trained on or kept for evaluation.
        question: What the user says; empty where the history ends with a tool's output.
        thoughts: The reasoning that leads to the answer.
        content: The visible reply.
        answer: What a checker looks for in the reply; empty: the whole content.
        short: The reply when only the bare answer is asked for; empty: that makes no sense here.
        history: Earlier messages.
        system: The system prompt.
        tools: Tool schemas in the OpenAI format.
        tool_calls: Calls that the reply makes.
        keep_case: The question must not be lower-cased.
        quiet: No noise at all.
        plain: Plain text (in content), no chat.
    """

    skill: str
    key: str
    question: str
    thoughts: str
    content: str = ""
    answer: str = ""
    short: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    system: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    keep_case: bool = False
    quiet: bool = False
    plain: bool = False


Generator = Callable[[Random, Facts], Sample]


def is_held_out(key: str) -> bool:
    """Whether the problem of this key is kept for evaluation."""
    return zlib.crc32(key.encode()) % HELD_OUT == 0
