"""Messages and tools as templates read them, with every text in them put through a function."""

from collections.abc import Callable, Mapping
from typing import Any

from erniechat.chat.tags import END_THINK, THINK

Quote = Callable[[str], str]


def quoted(value: Any, quote: Quote) -> Any:
    """A value of JSON whose texts, keys included, went through quote."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, Mapping):
        return {quote(key): quoted(item, quote) for key, item in value.items()}
    if isinstance(value, list):
        return [quoted(item, quote) for item in value]
    return value


def quoted_message(message: Mapping[str, Any], quote: Quote) -> dict[str, Any]:
    """A message as templates read it, with its texts quoted.

    The tags around thoughts at the start of an answer stay: conversations of other programs hold
    them there, and templates look for them.
    """
    out: dict[str, Any] = quoted(message, quote)
    content = message.get("content")
    if message["role"] == "assistant" and "thoughts" not in message and isinstance(content, str):
        head, tag, answer = content.partition(END_THINK)
        if tag and head.lstrip().startswith(THINK):
            thoughts = head.lstrip().removeprefix(THINK)
            out["content"] = THINK + quote(thoughts) + END_THINK + quote(answer)
    return out
