"""Where the user types: keys, completion, history and the toolbar."""

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPress
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.styles import Style

from erniechat.ui.bindings import (
    choice_range,
    choosing_keys,
    editing_keys,
    is_open,
    know_shift_enter,
)
from erniechat.ui.completion import CommandCompleter
from erniechat.ui.history import PrivateHistory, history_path
from erniechat.ui.keys import ESCAPE_SECONDS, KeyWatch, QuietKeys, RawKeys, as_typed
from erniechat.ui.paste import Folds
from erniechat.ui.screen import Screen
from erniechat.ui.signals import Interrupted
from erniechat.ui.terminal import Terminal, is_utf8

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

    def choose(self, number: int, hint: str) -> int | None:
        """Which of so many numbered choices the user takes; None for Esc, Ctrl-C and Ctrl-D."""
        ...

    def watch(self) -> KeyWatch:
        """The keyboard while no prompt is up."""
        ...


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
        self._toolbar = toolbar
        self._folds = Folds(count_tokens)
        stored: History = InMemoryHistory()
        if history:
            stored = PrivateHistory(history_path(), self._folds.expand)
        know_shift_enter()
        self._session = self._make_session(stored, color)
        # A terminal that cannot tell its cursor's place loses the toolbar; no word about it.
        self._session.app.renderer.cpr_not_supported_callback = None

    def _make_session(self, stored: History, color: bool) -> PromptSession[str]:
        return PromptSession(
            [("class:prompt", self._sign)],
            multiline=True,
            prompt_continuation="  ",
            key_bindings=editing_keys(self._folds),
            completer=CommandCompleter(),
            complete_while_typing=False,
            history=stored,
            enable_history_search=True,
            search_ignore_case=True,
            enable_open_in_editor=True,
            enable_suspend=True,
            reserve_space_for_menu=4,
            bottom_toolbar=lambda: self._toolbar(self._output.get_size().columns, self._typed()),
            refresh_interval=1.0,
            style=_STYLE if color else _PLAIN_STYLE,
            color_depth=ColorDepth.DEPTH_4_BIT if color else ColorDepth.DEPTH_1_BIT,
            input=self._source,
            output=self._output,
        )

    def ask(self, draft: str) -> str:
        """One message or command, as Prompt says."""
        with self._source.raw_mode():
            if os.isatty(self._source.fileno()):
                # Between prompts it is not ours, and makes newlines of Enters.
                keys = [*get_typeahead(self._source), *map(as_typed, self._pending())]
                store_typeahead(self._source, keys)
            return self._folds.expand(self._session.prompt(default=self._folds.refold(draft)))

    def _typed(self) -> str:
        return self._folds.expand(self._session.default_buffer.text)

    def confirm(self, question: str) -> bool:
        """See `Prompt`."""
        return (self._answer(f"{question} [y/N] ") or "").strip().lower() in ("y", "yes")

    def choose(self, number: int, hint: str) -> int | None:
        """See `Prompt`."""
        question = f"{choice_range(number)}{hint} {self._sign}"
        return int(self._answer(question, choosing_keys(number)) or "0") or None

    def _answer(self, question: str, keys: KeyBindings | None = None) -> str | None:
        """What is typed from now on in answer to a question; None for Ctrl-C and Ctrl-D."""
        asker: PromptSession[str] = PromptSession(
            input=self._source, output=self._output, key_bindings=keys
        )
        asker.app.renderer.cpr_not_supported_callback = None
        asker.app.ttimeoutlen = ESCAPE_SECONDS  # or Esc waits for half a second
        typed_ahead = self._take_typed()
        try:
            return asker.prompt(question)
        except Interrupted:  # by another signal than Ctrl-C's
            raise
        except (EOFError, KeyboardInterrupt):
            return None
        finally:
            store_typeahead(self._source, [*typed_ahead, *get_typeahead(self._source)])

    def _take_typed(self) -> list[KeyPress]:
        """The keys that were typed before a question came, which are no answer to it."""
        with self._source.raw_mode():
            return [*get_typeahead(self._source), *self._pending()]

    def _pending(self) -> list[KeyPress]:
        ready, _, _ = select.select([self._source.fileno()], [], [], 0)
        return [*self._source.read_keys(), *self._source.flush_keys()] if ready else []

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
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            line = sys.stdin.readline()
        except Interrupted:
            raise
        except KeyboardInterrupt:
            self._screen.line()  # below the ^C that the terminal shows; it drops what was typed
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        if not line:
            self._screen.line()
            raise EOFError
        return line.rstrip("\n")

    def confirm(self, question: str) -> bool:
        """See `Prompt`."""
        self._drop_typed()
        try:
            return self._line(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except Interrupted:  # by another signal than Ctrl-C's
            raise
        except (EOFError, KeyboardInterrupt):
            return False

    def _drop_typed(self) -> None:
        """Forget lines that were typed before a question came: they are no answer to it."""
        try:
            import termios

            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        except (ImportError, OSError, ValueError, termios.error):
            return

    def choose(self, number: int, hint: str) -> int | None:
        """See `Prompt`; a line that is no number is none."""
        self._drop_typed()
        try:
            line = self._line(f"{choice_range(number)}Enter edits the message {self._sign}").strip()
        except Interrupted:  # by another signal than Ctrl-C's
            raise
        except (EOFError, KeyboardInterrupt):
            return None
        return int(line) if line.isdecimal() and 0 < int(line) <= number else None

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
