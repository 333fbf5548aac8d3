"""A reply's stream cut into thinking, answer and tool calls.

What models write (NL is a newline, and each part may be missing or cut off):

    thinking NL </think> NL NL <response> NL answer NL </response> NL
    thinking NL </think> NL NL NL <tool_call> NL {"name": …, "arguments": {…}} NL </tool_call> NL

The prompt already ends in ``<think>``, so a reply begins inside thinking, without that tag.

Source: vllm-project/vllm, vllm/reasoning/ernie45_reasoning_parser.py and
vllm/tool_parsers/ernie45_tool_parser.py; PaddlePaddle/FastDeploy, the ernie_x1 parsers.
"""

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable
from typing import Any, NoReturn

from erniechat.chat.tags import (
    END_RESPONSE,
    END_THINK,
    END_TOOL_CALL,
    RESPONSE,
    TAGS,
    THINK,
    TOOL_CALL,
    Section,
    Tag,
)
from erniechat.events import TextDelta, ThinkingDelta, ToolCall

ReplyEvent = ThinkingDelta | TextDelta | ToolCall

# Not str.isspace: Chinese paragraphs begin with U+3000, which is theirs to keep.
_WHITE = " \t\r\n"


def new_call_id() -> str:
    """An id for a tool call, in the form that FastDeploy gives them."""
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


class ReplyParser:
    """Turns the pieces of one reply into events; any cutting into pieces gives the same text.

    A `Tag` is always a tag. Other text is searched for tags only if ``text_tags`` names them, so
    where tags are tokens of their own, a model can write about "<think>".

    Rules beyond the tags: white space at the start of an answer and after each tag is dropped,
    and so are newlines before ``</response>`` and ``<tool_call>`` and one before ``</think>``.
    Tags out of place are dropped, in thinking all but ``</think>``. A call comes as one event once
    it is complete; what is not a call after all comes as text, without its tags.

    Args:
        starts_in: The section that the prompt leaves open (`Prompt.starts_in`).
        text_tags: Tags to find in plain text, because the tokenizer has no ids for them.
        make_call_id: Makes the ids of tool calls.
        is_continued: Whether the section has begun already, so that white space is its own.
    """

    def __init__(
        self,
        starts_in: Section,
        *,
        text_tags: Collection[str] = (),
        make_call_id: Callable[[], str] = new_call_id,
        is_continued: bool = False,
    ) -> None:
        self._section = starts_in
        self._text_tags = tuple(text_tags)
        self._tag_pattern = re.compile("|".join(map(re.escape, self._text_tags)) or r"(?!)")
        self._make_call_id = make_call_id
        self._out: list[ReplyEvent] = []
        self._partial = ""  # may be the beginning of a tag
        self._newlines = ""  # dropped if a closing tag comes next
        # White space still to be dropped: any number of its characters, or each once, in order.
        self._drop_white = starts_in == "answer" and not is_continued
        self._drop_once = ""
        self._call: list[str] | None = None  # what came since <tool_call>
        self._has_thought = is_continued
        self._has_answered = is_continued and starts_in == "answer"

    @property
    def section(self) -> Section:
        """Where the stream is now; a tool call is part of the answer."""
        return self._section

    def feed(self, piece: str) -> list[ReplyEvent]:
        """The events that a further piece makes known; their texts are never empty."""
        if isinstance(piece, Tag):
            self._take_text(self._take_partial())
            self._take_tag(piece)
        else:
            self._search(piece)
        return self._take_events()

    def feed_all(self, pieces: Iterable[str]) -> list[ReplyEvent]:
        """The events that several pieces make known."""
        return [event for piece in pieces for event in self.feed(piece)]

    def finish(self) -> list[ReplyEvent]:
        """The events of what was held back; a call without its end comes as text."""
        self._take_text(self._take_partial())
        if self._call is not None:
            self._give_up_call(self._call)
        self._release_newlines()
        return self._take_events()

    def _take_events(self) -> list[ReplyEvent]:
        out, self._out = self._out, []
        return out

    def _take_partial(self) -> str:
        text, self._partial = self._partial, ""
        return text

    def _search(self, piece: str) -> None:
        """Cut plain text at its tags; hold back an end that may be the beginning of one."""
        text = self._take_partial() + piece
        start = 0
        for match in self._tag_pattern.finditer(text):
            self._take_text(text[start : match.start()])
            self._take_tag(match.group())
            start = match.end()
        rest = text[start:]
        angle = rest.rfind("<")
        if angle >= 0 and any(tag.startswith(rest[angle:]) for tag in self._text_tags):
            self._partial = rest[angle:]
            rest = rest[:angle]
        self._take_text(rest)

    def _take_text(self, text: str) -> None:
        if self._call is not None:
            self._call.append(text)
            return
        text = self._drop_leading(text)
        if not text:
            return
        text = self._newlines + text
        is_thinking = self._section == "thinking"
        kept = text.removesuffix("\n") if is_thinking else text.rstrip("\n")
        self._newlines = text[len(kept) :]
        self._emit(kept)

    def _drop_leading(self, text: str) -> str:
        if self._drop_white:
            text = text.lstrip(_WHITE)
            self._drop_white = not text
        while self._drop_once and text:
            idx = self._drop_once.find(text[0])
            self._drop_once = self._drop_once[idx + 1 :] if idx >= 0 else ""
            text = text[1:] if idx >= 0 else text
        return text

    def _emit(self, text: str) -> None:
        if not text:
            return
        kind: type[ThinkingDelta] | type[TextDelta]
        if self._section == "thinking":
            kind, self._has_thought = ThinkingDelta, True
        else:
            kind, self._has_answered = TextDelta, True
        last = self._out[-1] if self._out else None
        if isinstance(last, kind):
            self._out[-1] = kind(last.text + text)
        else:
            self._out.append(kind(text))

    def _release_newlines(self) -> None:
        text, self._newlines = self._newlines, ""
        self._emit(text)

    def _take_tag(self, tag: str) -> None:
        if tag not in TAGS:
            self._take_text(str(tag))
        elif self._call is not None:
            if tag == END_TOOL_CALL:
                self._end_call(self._call)
            else:
                self._call.append(tag)  # an argument may quote a tag
        elif self._section == "thinking":
            self._take_tag_in_thinking(tag)
        else:
            self._take_tag_in_answer(tag)

    def _take_tag_in_thinking(self, tag: str) -> None:
        if tag == END_THINK:
            self._newlines = self._drop_once = ""
            self._section = "answer"
            self._drop_white = True
        elif tag == THINK and not self._has_thought:
            # The model repeats the tag that the prompt has opened already.
            self._newlines = ""
            self._drop_once = " \n"

    def _take_tag_in_answer(self, tag: str) -> None:
        if tag == THINK:
            self._release_newlines()
            self._section = "thinking"
            self._has_thought = self._drop_white = False
            self._drop_once = " \n"
        elif tag == RESPONSE:
            self._release_newlines()
            self._drop_white = True
        elif tag == END_RESPONSE:
            self._newlines = ""
            self._drop_white = True
        elif tag == TOOL_CALL:
            self._newlines = ""
            self._call = []

    def _end_call(self, pieces: list[str]) -> None:
        call = parse_call("".join(pieces))
        if call is None:
            self._give_up_call(pieces)
            return
        name, arguments = call
        self._out.append(ToolCall(self._make_call_id(), name, arguments))
        self._call = None
        self._drop_white = True

    def _give_up_call(self, pieces: list[str]) -> None:
        """Show as text what stands where a call should, on a line of its own."""
        text = "".join(piece for piece in pieces if not isinstance(piece, Tag))
        text = self._tag_pattern.sub("", text).strip(_WHITE)
        self._call = None
        self._drop_white = not (text or self._has_answered)
        if text:
            self._emit("\n" + text if self._has_answered else text)


def parse_call(text: str) -> tuple[str, str] | None:
    """The name and the arguments of a call ``{"name": …, "arguments": {…}}``, or None.

    Arguments may be missing (``{}``), or be a string that holds an object. They are returned as
    JSON with non-ASCII characters kept. Raw newlines inside strings, invalid JSON but a common
    slip of models, are let pass.
    """
    try:
        call = _load(text)
        arguments = call.get("arguments")
        if isinstance(arguments, str):
            arguments = _load(arguments)
        name = call["name"]
        name.encode()  # a lone surrogate could neither be shown nor stored
    except (ValueError, LookupError, AttributeError, RecursionError):
        return None
    if arguments is None:
        arguments = {}
    if not name or not isinstance(arguments, dict):
        return None
    out = json.dumps(arguments, ensure_ascii=False)
    return name, out if _is_unicode(out) else json.dumps(arguments)


def _load(text: str) -> Any:
    return json.loads(text, strict=False, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
