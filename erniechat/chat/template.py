"""A checkpoint's own chat template: messages in, prompt text out, in a sandbox."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from erniechat.chat.checkpoint_files import read_special_tokens, read_template_sources
from erniechat.chat.continuation import ReplyFrame, find_frame
from erniechat.chat.conversation import Message, ThinkingSupport, ThinkMode
from erniechat.chat.quoting import quoted, quoted_message
from erniechat.chat.sandbox import TemplateRefusal, make_environment
from erniechat.chat.tags import END_THINK, THINK, Section, section_after, tags_in
from erniechat.errors import CheckpointError, ContextLengthError, UsageError

THINKING_MODEL = "baidu/ERNIE-4.5-21B-A3B-Thinking"

# Far beyond any context (131072 tokens are about half a million characters), and still cheap.
MAX_PROMPT_CHARS = 50_000_000

_USER = {"role": "user", "content": "hi"}
_PROBE_NAME = "erniechat_probe_tool"
_PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _PROBE_NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt and the section in which the model's reply begins.

    Attributes:
        text: Markup in it is the template's; that of the messages is quoted where that was asked
            for, see `Tokenizer.quote`.
        starts_in: The section.
    """

    text: str
    starts_in: Section


class ChatTemplate:
    """A chat template and what it can do, found out by rendering it, never by a model's name.

    Args:
        source: The Jinja source, or several by name: "default" and, used with tools, "tool_use".
        special_tokens: Variables such as ``bos_token`` for the template.
        model: The model's name, for error messages.

    Attributes:
        thinking: Whether the model thinks: "never", "always", or as asked ("switchable").
        supports_tools: Whether the template shows tools to the model.
        tags: The reply's tags that the template knows.

    Raises:
        CheckpointError: If the template cannot be compiled, or cannot render one user message.
    """

    thinking: ThinkingSupport
    supports_tools: bool
    tags: frozenset[str]

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        model: str = "this model",
    ) -> None:
        self._model = model
        self._special_tokens = dict(special_tokens or {})
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in sources:
            raise CheckpointError(
                f"{model}: no chat template is named default, only {', '.join(sorted(sources))}",
                "download the model again",
            )
        self._templates = {name: self._compile(text) for name, text in sources.items()}
        self._source = sources["default"]
        self.tags = tags_in("".join(sources.values()))
        self._probes = self._render_probes()
        self.thinking = self._find_thinking()
        self.supports_tools = self._find_tool_support()

    @classmethod
    def from_folder(cls, folder: str | Path, *, model: str = "") -> "ChatTemplate | None":
        """The template of a checkpoint folder, or None if it has none (a base model).

        Raises:
            CheckpointError: If a file is damaged or the template is bad.
        """
        folder = Path(folder)
        sources = read_template_sources(folder)
        if not sources:
            return None
        return cls(sources, special_tokens=read_special_tokens(folder), model=model or folder.name)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        think: ThinkMode = "auto",
        quote: Callable[[str], str] = str,
    ) -> Prompt:
        """The prompt for a conversation, with the opening of the assistant's reply.

        ``think="off"`` on a model that always thinks closes the section at once by appending
        ``</think>`` and a newline: one fixed form, and not a mode that the model was trained for.

        Args:
            messages: The conversation.
            tools: What the model may call.
            think: Whether it thinks.
            quote: Makes of a text one whose markup counts as text; all of the messages and tools
                goes through it.

        Raises:
            UsageError: If the model cannot think as asked or takes no tools, or if the template
                refuses the messages.
            ContextLengthError: If the messages are longer than any context.
            CheckpointError: If the template fails.
        """
        if think == "on" and self.thinking == "never":
            raise UsageError(
                f'think must be auto or off here, got "on": {self._model} has no thinking mode',
                f"{THINKING_MODEL} has",
            )
        if not messages:
            raise UsageError("a conversation must have at least one message, got none", "ask first")
        self._check_tools(messages, tools)
        num_chars = sum(len(message.content) for message in messages)
        if num_chars > MAX_PROMPT_CHARS // 2:
            raise ContextLengthError(
                f"the conversation has {num_chars:,} characters, more than any context holds",
                "shorten it, or cut it with --overflow",
            )
        data = [quoted_message(message.as_template_dict(), quote) for message in messages]
        shown = quoted(list(tools), quote) or None
        text = self._render(data, tools=shown, **_switch(self.thinking, think))
        # A conversation about "<think>" must not start a reply in thinking: where the probe shows
        # that the template itself writes no tag, tags in the prompt are the user's own.
        starts_in: Section = "answer" if self._probes[think] == "plain" else section_after(text)
        if think == "off" and starts_in == "thinking":
            return Prompt(text + f"{END_THINK}\n", "answer")
        return Prompt(text, starts_in)

    def frame(self) -> ReplyFrame:
        """What the template writes around a reply's thoughts and answer."""
        try:
            return find_frame(self._render)
        except UsageError:  # refuses a conversation that ends with an answer
            return ReplyFrame(f"\n{END_THINK}", "", "")

    def writes(self, token: str) -> bool:
        """Whether the template puts a token into the prompt of an ordinary conversation."""
        turns = [_USER, {"role": "assistant", "content": "hello"}, _USER]
        try:
            return token in self._render(turns)
        except (CheckpointError, UsageError):
            return token in self._source

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
        if self.supports_tools:
            return
        if tools:
            raise UsageError(
                f"{self._model} takes no tools: its chat template leaves them out, got "
                f"{len(tools)}",
                f"ask without tools, or use {THINKING_MODEL}",
            )
        if any(message.role == "tool" or message.tool_calls for message in messages):
            raise UsageError(
                f"{self._model} takes no tools: its chat template leaves out tool messages and "
                "tool calls, got some",
                f"remove them, or use {THINKING_MODEL}",
            )

    def _render_probes(self) -> dict[ThinkMode, str]:
        """How the prompt of a single user message ends: "thinking", "answer" or "plain"."""
        modes: dict[ThinkMode, dict[str, Any]] = {
            "auto": {},
            "on": {"enable_thinking": True},
            "off": {"enable_thinking": False},
        }
        texts = {mode: self._render([_USER], **switch) for mode, switch in modes.items()}
        return {
            mode: section_after(text) if THINK in text or END_THINK in text else "plain"
            for mode, text in texts.items()
        }

    def _find_thinking(self) -> ThinkingSupport:
        if len(set(self._probes.values())) > 1:
            return "switchable"
        return "always" if self._probes["auto"] == "thinking" else "never"

    def _find_tool_support(self) -> bool:
        try:
            return _PROBE_NAME in self._render([_USER], tools=[_PROBE_TOOL])
        except (CheckpointError, UsageError):
            return False

    def _compile(self, source: str) -> Template:
        try:
            return make_environment().from_string(source)
        except TemplateSyntaxError as exc:
            raise self._broken(f"line {exc.lineno}: {exc.message}") from exc
        except Exception as exc:
            # A hostile source can break the compiler itself, by its nesting for one.
            raise self._broken(str(exc) or type(exc).__name__) from exc

    def _render(
        self, messages: list[dict[str, Any]], tools: list[Any] | None = None, **variables: Any
    ) -> str:
        template = self._templates["default"]
        if tools and "tool_use" in self._templates:
            template = self._templates["tool_use"]
        values = self._special_tokens | variables
        try:
            pieces = template.generate(
                messages=messages, tools=tools, add_generation_prompt=True, **values
            )
            return _join_up_to(pieces, MAX_PROMPT_CHARS)
        except TemplateRefusal as exc:
            raise UsageError(
                f"the chat template of {self._model} refuses these messages: {_one_line(exc)}",
                "change the roles or their order",
            ) from exc
        except SecurityError as exc:
            raise self._broken(f"does what no template may do: {_one_line(exc)}") from exc
        except Exception as exc:
            # Templates are programs from the network: whatever they raise is the checkpoint's
            # fault and must not end in a traceback.
            raise self._broken(f"{type(exc).__name__}: {_one_line(exc)}") from exc

    def _broken(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"the chat template of {self._model} does not work: {_one_line(reason)}",
            "download the model again, or correct its chat_template.jinja",
        )


def _switch(thinking: ThinkingSupport, think: ThinkMode) -> dict[str, Any]:
    """The variable by which templates switch thinking; only where it does something."""
    if think == "auto" or thinking != "switchable":
        return {}
    return {"enable_thinking": think == "on"}


def _join_up_to(pieces: Iterator[str], limit: int) -> str:
    out = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > limit:
            raise TemplateError(f"the prompt is longer than {limit} characters")
        out.append(piece)
    return "".join(out)


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:300]
