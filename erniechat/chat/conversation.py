"""A conversation as data: messages, and the forms in which templates and JSON want them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from erniechat.errors import UsageError
from erniechat.events import ToolCall

Role = Literal["system", "user", "assistant", "tool"]
ThinkMode = Literal["auto", "on", "off"]
ThinkingSupport = Literal["never", "always", "switchable"]

# Keys of OpenAI messages that have a meaning here, or that ERNIE's templates have no place for:
# they match results to calls by order, not by tool_call_id, and know no names.
_KNOWN_KEYS = frozenset(
    ("role", "content", "thoughts", "reasoning_content", "tool_calls", "tool_call_id", "name")
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``thoughts`` and ``tool_calls`` belong to the assistant's only.

    ``content_is_json`` says that a tool's content is a JSON value as text: templates then get the
    value (``{"t": 23}``) instead of a string (``"{\\"t\\": 23}"``).
    """

    role: Role
    content: str
    thoughts: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    content_is_json: bool = False

    def as_template_dict(self) -> dict[str, Any]:
        """The message as chat templates read it; absent fields are left out.

        A call's arguments are given as an object, or as the text they are when that is no JSON
        object, which templates insert as it stands.
        """
        content = json.loads(self.content) if self.content_is_json else self.content
        out: dict[str, Any] = {"role": self.role, "content": content}
        if self.thoughts is not None:
            out["thoughts"] = self.thoughts
        if self.tool_calls:
            out["tool_calls"] = [
                {"function": {"name": call.name, "arguments": _object_or_text(call.arguments)}}
                for call in self.tool_calls
            ]
        return out

    def as_dict(self) -> dict[str, Any]:
        """The message in the form that `from_dict` reads: OpenAI's, with ``thoughts``."""
        out = self.as_template_dict()
        if self.tool_calls:
            out["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return out

    @classmethod
    def from_dict(cls, data: object) -> "Message":
        """A message from a JSON object.

        ``content`` is text or a list of text parts (joined), of a tool any JSON value, and may be
        null beside tool calls. ``reasoning_content``, the key of OpenAI-like servers, means
        ``thoughts``, which wins where both are given. ``name`` and ``tool_call_id`` are taken and
        dropped: no ERNIE template has a place for them.

        Raises:
            UsageError: If the object is no message; with the value, the rule and a way out.
        """
        if not isinstance(data, Mapping):
            raise UsageError(
                f"a message must be a JSON object, got {_short(data)}",
                'write it as {"role": "user", "content": "…"}',
            )
        role = _role(data.get("role"))
        for key, value in data.items():
            if key not in _KNOWN_KEYS and value not in (None, "", [], {}):
                raise UsageError(
                    f"a message has no {_short(key)}, only {', '.join(sorted(_KNOWN_KEYS))}",
                    "leave it out",
                )
        thoughts = _thoughts(data, role)
        calls = _tool_calls(data.get("tool_calls"), role)
        content = data.get("content")
        if role == "tool" and not _is_text(content):
            return cls(role, _json_text(content), content_is_json=True)
        may_be_null = bool(calls) or thoughts is not None
        return cls(role, _text(content, role, may_be_null), thoughts, calls)


def _role(value: object) -> Role:
    if value not in get_args(Role):
        raise UsageError(
            f"role must be one of {', '.join(get_args(Role))}, got {_short(value)}",
            "give every message one of these roles",
        )
    return cast(Role, value)


def _text(value: object, role: Role, may_be_null: bool) -> str:
    """Content as one string; text parts are joined with nothing between."""
    if isinstance(value, str):
        return value
    if value is None and may_be_null:
        return ""
    if isinstance(value, list) and all(_is_text_part(part) for part in value):
        return "".join(part if isinstance(part, str) else part["text"] for part in value)
    if isinstance(value, list):
        wrong = next(part for part in value if not _is_text_part(part))
        raise UsageError(
            f'content parts must be text, got {_short(wrong)} in a message of role "{role}"',
            'keep only parts such as {"type": "text", "text": "…"}: these models read text alone',
        )
    raise UsageError(
        f'content must be text or a list of text parts, got {_short(value)} in a message of role "'
        f'{role}"',
        'write "content": "…"',
    )


def _is_text_part(part: object) -> bool:
    if isinstance(part, Mapping):
        return part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    return isinstance(part, str)


def _is_text(content: object) -> bool:
    """Whether a tool's content is text or text parts, not a JSON value of the tool's own."""
    if isinstance(content, list) and content:
        return all(isinstance(p, Mapping) and "type" in p and _is_text_part(p) for p in content)
    return isinstance(content, str)


def _json_text(content: object) -> str:
    if content is None:
        raise UsageError(
            'content of a message of role "tool" must be text or a JSON value, got null',
            'write "content": "…", or {} for a tool that says nothing',
        )
    return json.dumps(content, ensure_ascii=False)


def _thoughts(data: Mapping[str, Any], role: Role) -> str | None:
    value = data.get("thoughts")
    key = "thoughts"
    if value is None:
        key = "reasoning_content"
        value = data.get(key)
    if value is None or (value == "" and role != "assistant"):
        return None
    if not isinstance(value, str):
        raise UsageError(f"{key} must be text, got {_short(value)}", f'write "{key}": "…"')
    if role != "assistant":
        raise UsageError(
            f'{key} belongs to the assistant, got it in a message of role "{role}"', "leave it out"
        )
    return value


def _tool_calls(value: object, role: Role) -> tuple[ToolCall, ...]:
    if value is None or value == []:
        return ()
    if role != "assistant":
        raise UsageError(
            f'tool_calls belong to the assistant, got them in a message of role "{role}"',
            "leave them out",
        )
    if not isinstance(value, list):
        raise UsageError(f"tool_calls must be a list, got {_short(value)}", "write [ … ] around it")
    return tuple(_tool_call(item) for item in value)


def _tool_call(item: object) -> ToolCall:
    """One call, as ``{"function": {"name", "arguments"}}`` or ``{"name", "arguments"}``."""
    function = item.get("function", item) if isinstance(item, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(function, Mapping) or not name:
        raise UsageError(
            f"a tool call must have a name, got {_short(item)}",
            'write {"function": {"name": "…", "arguments": {…}}}',
        )
    arguments = function.get("arguments")
    if arguments is None:
        arguments = "{}"
    elif isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    call_id = item.get("id") or ""
    if not (isinstance(name, str) and isinstance(arguments, str) and isinstance(call_id, str)):
        raise UsageError(
            "a tool call's id and name must be text and its arguments an object or text, got "
            f"{_short(item)}",
            'write {"function": {"name": "…", "arguments": {…}}}',
        )
    return ToolCall(call_id, name, arguments)


def _object_or_text(arguments: str) -> Any:
    """The JSON object that a text holds, or the text itself."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _short(value: object) -> str:
    """A value as JSON on one line, cut to what an error message can carry."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:59] + "…"
