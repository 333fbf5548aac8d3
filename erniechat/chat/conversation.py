"""A conversation as data: messages, and the form in which templates and JSON want them."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from erniechat.events import ToolCall

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``thoughts`` and ``tool_calls`` belong to the assistant's only."""

    role: Role
    content: str
    thoughts: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def as_template_dict(self) -> dict[str, Any]:
        """The message as chat templates read it; absent fields are left out."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thoughts is not None:
            out["thoughts"] = self.thoughts
        if self.tool_calls:
            out["tool_calls"] = [
                {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in self.tool_calls
            ]
        return out
