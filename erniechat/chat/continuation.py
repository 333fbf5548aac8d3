"""Going on with a reply that was broken off: the prompt, and what is there of the reply.

How a template writes a reply's thoughts and answer is found out by rendering one, never by a
model's name; so the part stands in the prompt as the model was trained to write it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erniechat.chat.conversation import Message
from erniechat.chat.tags import END_RESPONSE, END_THINK

_THOUGHTS, _CONTENT = "erniechat probe thoughts", "erniechat probe content"
_USER = {"role": "user", "content": "hi"}


@dataclass(frozen=True, slots=True)
class ReplyFrame:
    """What a template writes around a reply's thoughts and answer; each may be empty.

    Attributes:
        after_thoughts: Ends the thinking section: ``NL </think>``.
        opening: Stands between the section's end and the answer: ``NL <response> NL``.
        closing: Stands after the answer: ``NL </response>``.
    """

    after_thoughts: str
    opening: str
    closing: str

    def join(self, prompt: str, starts_in_thinking: bool, part: Message) -> tuple[str, bool]:
        """The text that a model goes on from, and whether that is still in thinking.

        Args:
            prompt: The rendered conversation, with the opening of the reply.
            starts_in_thinking: Whether the reply begins in thinking.
            part: What there is of the reply.
        """
        if not starts_in_thinking:
            return self.open_answer(prompt) + part.content, False
        text = prompt + (part.thoughts or "")
        if not part.content:
            return text, True
        # Where answers stand without a tag, models leave a line between.
        return text + self.after_thoughts + (self.opening or "\n\n") + part.content, False

    def opening_after(self, text: str) -> str:
        """What opens an answer after a text; one newline is not written twice."""
        doubled = self.opening.startswith("\n") and text.endswith("\n")
        return self.opening[1:] if doubled else self.opening

    def open_answer(self, prompt: str) -> str:
        """A prompt whose reply begins with the answer, up to the answer's first character."""
        return prompt + self.opening_after(prompt)


def find_frame(render: Callable[[list[dict[str, Any]]], str]) -> ReplyFrame:
    """The frame of a template, from how it renders a reply in the conversation.

    Args:
        render: Renders messages, as templates read them.
    """
    reply = {"role": "assistant", "thoughts": _THOUGHTS, "content": _CONTENT}
    text = render([_USER, reply])
    before, _, after = text.partition(_CONTENT)
    closing, found, _ = after.partition(END_RESPONSE)
    closing = closing + found if found else ""
    _, has_thoughts, between = before.rpartition(_THOUGHTS)
    if has_thoughts and END_THINK in between:
        head, tag, opening = between.partition(END_THINK)
        return ReplyFrame(head + tag, opening, closing)
    start = render([_USER])
    opening = before.removeprefix(start) if before.startswith(start) else ""
    return ReplyFrame(f"\n{END_THINK}", opening, closing)
