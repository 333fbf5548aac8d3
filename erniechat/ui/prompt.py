"""Where the user types: keys, completion, history and the toolbar."""

import sys
from collections.abc import Callable
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.styles import Style

from erniechat.ui.completion import CommandCompleter
from erniechat.ui.history import PrivateHistory, history_path
from erniechat.ui.keys import KeyWatch, QuietKeys, RawKeys
from erniechat.ui.paste import Folds
from erniechat.ui.screen import Screen
from erniechat.ui.terminal import Terminal, is_utf8

QUOTES = '"""'
# How terminals that can tell Shift-Enter from Enter send it; theirs to switch on, not ours.
SHIFT_ENTER = ("\x1b[13;2u", "\x1b[27;2;13~")
_STYLE = Style.from_dict(
    {"prompt": "bold", "bottom-toolbar": "noreverse", "bottom-toolbar.text": "dim"}
)
_PLAIN_STYLE = Style.from_dict({"bottom-toolbar": "noreverse"})


class Prompt(Protocol):
    """What the REPL asks of its keyboard."""

    def ask(self, draft: str) -> str:
        """One message or command; the line starts with draft.

        Raises:
            EOFError: For Ctrl-D.
            KeyboardInterrupt: For Ctrl-C on an empty line.
        """
        ...

    def confirm(self, question: str) -> bool:
        """Whether the user says yes; anything else, and Ctrl-C, is no."""
        ...

    def watch(self) -> KeyWatch:
        """The keyboard while no prompt is up."""
        ...


def is_open(text: str) -> bool:
    """Whether a message goes on on the next line: an open triple quote."""
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) == 1


def unquoted(text: str) -> str:
    """A message without the triple quotes around it."""
    inner = text.strip()
    if inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES):
        return inner[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def _bindings(folds: Folds) -> KeyBindings:
    """The keys that edit, then those that stand for a command."""
    keys = KeyBindings()

    @keys.add("enter", eager=True)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("c-j", eager=True)
    @keys.add("escape", "enter", eager=True)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(folds.fold(event.data))

    @keys.add("backspace")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        mark = folds.mark_before(buffer.document.text_before_cursor)
        buffer.delete_before_cursor(len(mark) or 1)

    _add_commands(keys)
    return keys


def _add_commands(keys: KeyBindings) -> None:
    @keys.add("escape", "escape")
    def _(event: KeyPressEvent) -> None:
        if not event.current_buffer.text:
            event.current_buffer.text = "/edit"
            event.current_buffer.validate_and_handle()

    @keys.add("c-o", filter=Condition(lambda: not get_app().current_buffer.text), eager=True)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result="/thoughts")

    @keys.add("c-c", eager=True)
    @keys.add("<sigint>", eager=True)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())


class LinePrompt:
    """The prompt of a terminal that can move its cursor."""

    def __init__(
        self,
        toolbar: Callable[[int, str], str],
        count_tokens: Callable[[str], int] = len,
        *,
        history: bool = False,
        source: Input | None = None,
        output: Output | None = None,
        color: bool = True,
        utf8: bool = True,
    ) -> None:
        self._source = source or create_input(sys.stdin)
        self._output = output or create_output(sys.stdout)
        self._sign = "› " if utf8 else "> "
        for sequence in SHIFT_ENTER:
            ANSI_SEQUENCES[sequence] = (Keys.Escape, Keys.ControlM)  # as Alt-Enter
        self._folds = Folds(count_tokens)
        stored: History = InMemoryHistory()
        if history:
            stored = PrivateHistory(history_path(), self._folds.expand)
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", self._sign)],
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_bindings(self._folds),
            completer=CommandCompleter(),
            complete_while_typing=False,
            history=stored,
            enable_history_search=True,
            enable_open_in_editor=True,
            enable_suspend=True,
            reserve_space_for_menu=4,
            bottom_toolbar=lambda: toolbar(self._output.get_size().columns, self._typed()),
            refresh_interval=1.0,
            style=_STYLE if color else _PLAIN_STYLE,
            color_depth=ColorDepth.DEPTH_4_BIT if color else ColorDepth.DEPTH_1_BIT,
            input=self._source,
            output=self._output,
        )
        # A terminal that cannot tell its cursor's place loses the toolbar; no word about it.
        self._session.app.renderer.cpr_not_supported_callback = None

    def ask(self, draft: str) -> str:
        """One message or command, as Prompt says."""
        return self._folds.expand(self._session.prompt(default=draft))

    def _typed(self) -> str:
        return self._folds.expand(self._session.default_buffer.text)

    def confirm(self, question: str) -> bool:
        """See `Prompt`."""
        asker: PromptSession[str] = PromptSession(input=self._source, output=self._output)
        try:
            return asker.prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False

    def watch(self) -> KeyWatch:
        """Every key by itself."""
        return RawKeys(self._source)


class PlainPrompt:
    """The prompt of --plain and TERM=dumb: the terminal's own line editing."""

    def __init__(self, screen: Screen, utf8: bool = True) -> None:
        self._screen = screen
        self._sign = "› " if utf8 else "> "

    def ask(self, draft: str) -> str:
        """One message or command; a backslash at the end or a triple quote goes on."""
        if draft:
            self._screen.note("the message was not sent; type it again")
        text = self._line(self._sign)
        while text.endswith("\\") or is_open(text):
            text = text.removesuffix("\\") + "\n" + self._line("  ")
        return text

    def _line(self, sign: str) -> str:
        self._screen.console.file.write(sign)
        self._screen.console.file.flush()
        line = sys.stdin.readline()
        if not line:
            self._screen.line()
            raise EOFError
        return line.rstrip("\n")

    def confirm(self, question: str) -> bool:
        """See `Prompt`."""
        try:
            return self._line(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def watch(self) -> KeyWatch:
        """Only Ctrl-C."""
        return QuietKeys()


def make_prompt(
    terminal: Terminal,
    screen: Screen,
    toolbar: Callable[[int, str], str],
    count_tokens: Callable[[str], int],
    *,
    history: bool,
) -> Prompt:
    """The prompt that the terminal can show.

    Args:
        terminal: Says what can be shown.
        screen: Where the rest of the chat is shown.
        toolbar: The line under the prompt, from its width and what is typed.
        count_tokens: Counts the tokens of a paste.
        history: Whether typed messages are kept for the next chat.
    """
    utf8 = is_utf8(terminal.stdout)
    if not terminal.moves_cursor:
        return PlainPrompt(screen, utf8)
    color = terminal.stdout_color
    return LinePrompt(toolbar, count_tokens, history=history, color=color, utf8=utf8)
