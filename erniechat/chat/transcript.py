"""A conversation as a text for people or programs, and back: Markdown, plain text, JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from erniechat.chat.conversation import Message
from erniechat.chat.sessions import load_session
from erniechat.errors import UsageError

FORMATS = ("md", "json", "txt")
_NAMES = {"system": "System", "user": "You", "assistant": "Answer", "tool": "Tool"}


def transcript(messages: Sequence[Message], kind: str) -> str:
    """The conversation in one of `FORMATS`; thoughts are in the JSON only."""
    if kind == "json":
        data = {"messages": [message.as_dict() for message in messages]}
        return json.dumps(data, ensure_ascii=False, indent=2) + "\n"
    head = "## {}\n\n" if kind == "md" else "{}:\n"
    blocks = [head.format(_NAMES[m.role]) + _body(m) for m in messages]
    return "\n\n".join(blocks) + "\n"


def _body(message: Message) -> str:
    calls = [f"→ {call.name}({call.arguments})" for call in message.tool_calls]
    return "\n\n".join(part for part in (message.content.strip(), *calls) if part)


def read_transcript(path: Path) -> list[Message]:
    """The messages in a file: a session, what `transcript` wrote as JSON, or a list of messages.

    Raises:
        UsageError: If the file cannot be read or holds something else.
    """
    if path.suffix == ".jsonl":
        chat = load_session(path)
        if not chat.messages:
            raise UsageError(f'"{path}" holds no conversation', *chat.damage[:1])
        system = [Message("system", chat.system)] if chat.system else []
        return [*system, *chat.messages]
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise UsageError(f'cannot read "{path}": {exc.strerror}') from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError(f'"{path}" is not JSON ({exc})', "/load reads .json and .jsonl") from exc
    if isinstance(data, dict):
        data = data.get("messages")
    if not isinstance(data, list) or not data:
        raise UsageError(
            f'"{path}" holds no conversation', 'write {"messages": [{"role": …, "content": …}]}'
        )
    return [Message.from_dict(item) for item in data]
