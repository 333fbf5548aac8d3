"""One chat as state: conversation, settings, totals; what commands change and the loop reads."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from erniechat.backend import ChatBackend
from erniechat.chat.conversation import Message
from erniechat.errors import ErnieChatError
from erniechat.events import Seconds, StreamEvent, TurnEnd, Usage
from erniechat.ui.reply import ReplyRecord
from erniechat.ui.screen import Screen
from erniechat.ui.settings import Settings


@dataclass(slots=True)
class Totals:
    """All replies of a session, added up."""

    num_replies: int = 0
    num_stopped: int = 0
    usage: Usage = field(default_factory=Usage)
    seconds: Seconds = field(default_factory=Seconds)

    def add(self, end: TurnEnd) -> None:
        """Count a reply in."""
        self.num_replies += 1
        self.num_stopped += end.finish_reason == "cancelled"
        names = ("prompt", "cached", "thinking", "answer")
        sums = {name: getattr(self.usage, name) + getattr(end.usage, name) for name in names}
        self.usage = replace(self.usage, **sums)
        phases = ("read", "think", "write")
        times = {name: getattr(self.seconds, name) + getattr(end.seconds, name) for name in phases}
        self.seconds = replace(self.seconds, **times)


@dataclass(slots=True)
class Session:
    """The state of one chat.

    Attributes:
        raw: Texts are gone on from as they are, each by itself, without a chat template.
        last: The newest reply, kept for /thoughts and /stats.
        draft: Text that the next prompt starts with.
        resend: A message to answer at once instead of prompting.
        exit_status: Set once the chat is to end.
    """

    backend: ChatBackend
    settings: Settings
    screen: Screen
    system: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    raw: bool = False
    messages: list[Message] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    last: ReplyRecord | None = None
    draft: str = ""
    resend: str | None = None
    exit_status: int | None = None
    _num_context_tokens: int | None = None

    @property
    def thoughts_mode(self) -> str:
        """How thinking is shown: full, summary or none."""
        mode = self.settings.display.thoughts
        return "summary" if mode == "auto" else mode

    @property
    def conversation(self) -> list[Message]:
        """What the model reads: the system prompt, then the messages."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.messages]

    @property
    def num_exchanges(self) -> int:
        """Messages of the user."""
        return sum(message.role == "user" for message in self.messages)

    def touch(self) -> None:
        """Say that the conversation has changed."""
        self._num_context_tokens = None

    @property
    def num_context_tokens(self) -> int:
        """Tokens that the conversation takes in the context, exactly; 0 when it is empty."""
        if self._num_context_tokens is None:
            self._num_context_tokens = self._count() if self.conversation and not self.raw else 0
        return self._num_context_tokens

    def _count(self) -> int:
        try:
            text = self.backend.render_prompt(
                self.conversation, tools=self.tools, think=self.settings.think
            )
            return self.backend.count_tokens(text)
        except ErnieChatError:  # a template may refuse a conversation without a user
            return sum(self.backend.count_tokens(message.content) for message in self.conversation)

    def begin(self, text: str) -> None:
        """Take a message into the conversation."""
        if not self.raw:
            self.messages.append(Message("user", text))
            self.touch()

    def events(self, text: str) -> Iterator[StreamEvent]:
        """The reply to the conversation, or in raw mode to the text."""
        if self.raw:
            return self.backend.stream_completion(text, self.settings.sampling)
        return self.backend.stream_reply(
            self.conversation, self.settings.sampling, tools=self.tools, think=self.settings.think
        )

    def keep(self, record: ReplyRecord) -> None:
        """Take a reply, whole or a part, into the conversation."""
        self.last = record
        if record.end is not None:
            self.totals.add(record.end)
        if not self.raw:
            thoughts = record.thoughts.strip() or None
            answer = Message("assistant", record.text, thoughts, tuple(record.calls))
            self.messages.append(answer)
        self.touch()

    def take_back(self, record: ReplyRecord, text: str) -> None:
        """Forget a message that was not answered; the next prompt starts with it."""
        self.last = record if record.thoughts else self.last
        if record.end is not None:
            self.totals.add(record.end)
        if not self.raw and self.messages and self.messages[-1].role == "user":
            self.messages.pop()
        self.draft = text
        self.touch()

    def drop_exchange(self) -> str | None:
        """Take the last message of the user and all after it away; None if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                text = self.messages[index].content
                del self.messages[index:]
                self.touch()
                return text
        return None

    def reset(self) -> None:
        """Start a new conversation with the same settings."""
        self.messages.clear()
        self.last = None
        self.touch()
