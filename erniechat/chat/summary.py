"""Summaries: what the model reads in place of a conversation's first messages, which stay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from erniechat.chat.conversation import Message

SUMMARY_HEAD = "Summary of this conversation before the messages below:"
SUMMARY_REQUEST = (
    "Summarise our conversation up to this point, so that it can be gone on with from your summary "
    "alone. Keep what was asked, found out, decided and left open, with names, numbers and code as "
    "they are; leave out small talk and what was corrected later. Write in the language of the "
    "conversation, in at most {words} words, and nothing but the summary."
)
WORDS_PER_TOKEN = 0.6  # so that a summary ends before its limit does


@dataclass(frozen=True, slots=True)
class Summary:
    """A text, and the messages that it stands for.

    Attributes:
        num_messages: It stands for the first so many, and for the summary before it.
        made_at: How many messages there were when it was made, or are left of those.
    """

    text: str
    num_messages: int
    made_at: int


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a summary of the first messages would change; all but num_messages are tokens.

    Attributes:
        what: Which exchanges, in words.
        num_messages: That it would stand for.
        freed: That would leave the context.
        most: That the summary may have.
        before: The conversation now.
    """

    what: str
    num_messages: int
    freed: int
    most: int
    before: int

    @property
    def most_after(self) -> int:
        """The conversation afterwards, at most."""
        return self.before - self.freed + self.most


def summaries_of(summaries: Sequence[Summary], num_messages: int) -> list[Summary]:
    """The summaries that hold once only the first messages are left."""
    return [
        replace(summary, made_at=min(summary.made_at, num_messages))
        for summary in summaries
        if summary.num_messages <= num_messages
    ]


def as_read(
    system: str | None, messages: Sequence[Message], summary: Summary | None = None
) -> list[Message]:
    """What the model reads of a conversation.

    A summary stands behind the system prompt, in one message with it: that is the one place which
    all templates of the family have for text that nobody said. As a message of the user it would
    be followed by another one, which the models were not trained on.
    """
    parts = [system] if system else []
    if summary is not None:
        parts.append(f"{SUMMARY_HEAD}\n{summary.text}")
        messages = messages[summary.num_messages :]
    head = [Message("system", "\n\n".join(parts))] if parts else []
    return [*head, *messages]


def summary_request(conversation: Sequence[Message], max_tokens: int) -> list[Message]:
    """The messages that ask for a summary of a conversation, its thoughts left out."""
    words = max(round(max_tokens * WORDS_PER_TOKEN), 1)
    told = [replace(message, thoughts=None) for message in conversation]
    return [*told, Message("user", SUMMARY_REQUEST.format(words=words))]
