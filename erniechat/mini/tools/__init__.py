"""Tool calls: schemas with varied names, requests, the calls, and answers from the outputs."""

from erniechat.mini.skills.sample import Generator
from erniechat.mini.tools.calls import tool_answer, tool_call, tool_unseen

__all__ = ["TOOL_SKILLS"]

TOOL_SKILLS: dict[str, Generator] = {
    "tool_call": tool_call,
    "tool_answer": tool_answer,
    "tool_unseen": tool_unseen,
}
