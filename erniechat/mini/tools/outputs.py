"""What tools return, and how the answer tells it."""

import json
from random import Random
from typing import Any

from erniechat.mini.tools.schema import Call


def spoken(value: Any) -> str:
    """A JSON value as the answer says it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(spoken(item) for item in value)
    return str(value)


def _spoken_pairs(output: dict[str, Any]) -> str:
    return ", ".join(f"{name} {spoken(value)}" for name, value in output.items())


def answer_text(topic: str, output: Any) -> str:
    """The visible answer from a tool's output."""
    if isinstance(output, dict) and "error" in output:
        return f"The tool reports an error: {output['error']}."
    told = _spoken_pairs(output) if isinstance(output, dict) else spoken(output)
    return f"{topic}: {told}."


def encode_output(rng: Random, output: dict[str, Any]) -> Any:
    """The content of a tool message: an object, its JSON as a string, or plain text."""
    share = rng.random()
    if share < 0.4:
        return output
    if share < 0.8:
        return json.dumps(output, ensure_ascii=False)
    if len(output) == 1:
        return spoken(next(iter(output.values())))
    return _spoken_pairs(output)


def seen_output(content: Any) -> Any:
    """What the answer repeats: the object behind a JSON string, or the text itself."""
    if isinstance(content, str):
        try:
            value = json.loads(content)
        except ValueError:
            return content
        return value if isinstance(value, dict) else content
    return content


def output_thoughts(contents: list[Any]) -> str:
    """The thoughts about the outputs of the tools, one line each."""
    lines = []
    for content in contents:
        seen = seen_output(content)
        told = _spoken_pairs(seen) if isinstance(seen, dict) else spoken(seen)
        lines.append(f"tool output: {told}")
    return "\n".join(lines)


def call_thoughts(calls: list[Call]) -> str:
    """The thoughts before a call: the tools and their arguments, one line each."""
    lines = []
    for call in calls:
        arguments = ", ".join(f"{name} = {value}" for name, value in call["arguments"].items())
        lines.append(f"tool {call['name']}: {arguments or 'no arguments'}")
    return "\n".join(lines)
