"""From a conversation to what the model reads, and what guides and takes apart its reply."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from erniechat.chat.conversation import Message, ThinkMode
from erniechat.chat.reply_parser import ReplyParser
from erniechat.chat.structures import make_matcher
from erniechat.chat.tags import END_THINK, Section, tags_without_id
from erniechat.chat.template import ChatTemplate, Prompt
from erniechat.chat.tokenizer import Tokenizer, unquote
from erniechat.errors import UsageError
from erniechat.generation.guide import ThinkingBudget
from erniechat.generation.structure import AnswerFrame, StructureGuide
from erniechat.options import Structure


class PromptTools:
    """Template and tokenizer together: all that making a prompt needs. No weights.

    Args:
        tokenizer: The checkpoint's.
        template: The checkpoint's, None for a base model.
        model: Its name, for messages.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, model: str) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._model = model

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> Prompt:
        """Render a conversation.

        Raises:
            UsageError: If the model has no template, or cannot do what is asked.
        """
        if self.template is None:
            raise UsageError(
                f"{self._model} has no chat template, it only continues text", "use --raw"
            )
        quote = self.tokenizer.quote
        return self.template.render(messages, tools=tools, think=think, quote=quote)

    def render_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> str:
        """See `ChatBackend.render_prompt`."""
        return unquote(self.prompt(messages, tools=tools, think=think).text)

    def count_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> int:
        """See `ChatBackend.count_prompt`."""
        return len(self.tokenizer.encode(self.prompt(messages, tools=tools, think=think).text))

    def count_tokens(self, text: str, *, raw: bool = False) -> int:
        """See `ChatBackend.count_tokens`."""
        return len(self.tokenizer.encode(text if raw else self.tokenizer.quote(text)))

    def with_part(self, prompt: Prompt, part: Message | None) -> Prompt:
        """A prompt followed by what there is of its reply already."""
        if part is None or self.template is None:
            return prompt
        frame, quote = self.template.frame(), self.tokenizer.quote
        part = dataclasses.replace(
            part, content=quote(part.content), thoughts=quote(part.thoughts or "")
        )
        text, in_thinking = frame.join(prompt.text, prompt.starts_in == "thinking", part)
        return Prompt(text, "thinking" if in_thinking else "answer")

    def parser(self, starts_in: Section, *, is_continued: bool = False) -> ReplyParser:
        """A parser for one reply to a rendered prompt."""
        tags = self.template.tags if self.template else frozenset[str]()
        text_tags = tags_without_id(tags, self.tokenizer.tag_ids)
        return ReplyParser(starts_in, text_tags=text_tags, is_continued=is_continued)

    def budget(self, num_tokens: int | None, parser: ReplyParser | None) -> list[ThinkingBudget]:
        """The guide that closes the thinking; none without a budget."""
        if num_tokens is None or parser is None or self.template is None:
            return []
        closing_ids = self._ids_after("a", self.template.frame().after_thoughts)
        return [ThinkingBudget(num_tokens, closing_ids, lambda: parser.section == "thinking")]

    def _ids_after(self, context: str, text: str) -> list[int]:
        """The tokens of a text that follows another: at a start, some tokenizers add a blank."""
        before, ids = self.tokenizer.encode(context), self.tokenizer.encode(context + text)
        same = (mine == other for mine, other in zip(before, ids, strict=False))
        return ids[sum(itertools.takewhile(bool, same)) :]

    def structure(
        self,
        structure: Structure | None,
        prompt: Prompt,
        parser: ReplyParser | None,
        stop_ids: frozenset[int],
    ) -> list[StructureGuide]:
        """The guide that holds the answer to a structure; none without one.

        Raises:
            UsageError: If the structure cannot be used.
        """
        if structure is None:
            return []
        opening_ids: list[int] = []
        closing_ids: list[int] = []
        if self.template is not None and parser is not None:
            frame = self.template.frame()
            if prompt.starts_in == "thinking":
                opening_ids = self._ids_after(END_THINK, frame.opening)
            else:
                opening_ids = self._ids_after(prompt.text, frame.opening_after(prompt.text))
            closing_ids = self._ids_after("a", frame.closing)
        around = AnswerFrame(stop_ids, opening_ids, closing_ids, self.tokenizer.markup_ids)
        matcher = make_matcher(structure, self.tokenizer.to_json(), stop_ids)
        in_answer = (lambda: parser.section == "answer") if parser else (lambda: True)
        return [StructureGuide(matcher, around, in_answer)]
