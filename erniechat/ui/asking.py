"""What is asked on the command line: stdin, -p and words, read while the model loads."""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from erniechat.chat.structures import check_structure
from erniechat.errors import UsageError
from erniechat.options import ChatOptions, Structure
from erniechat.paths import user_path
from erniechat.ui.arguments import Arguments
from erniechat.ui.inputs import (
    WAIT_NOTICE,
    WAIT_NOTICE_SECONDS,
    StdinReader,
    decode,
    join_prompt,
)
from erniechat.ui.oneshot import Deadline
from erniechat.ui.terminal import Terminal
from erniechat.ui.worker import Task

POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the text of stdin, and the words of the command line."""

    document: str
    words: str

    @property
    def text(self) -> str:
        """Both, a blank line between.

        Raises:
            UsageError: If there is nothing but white space.
        """
        return join_prompt(self.document, self.words, "")


@dataclass(frozen=True, slots=True)
class Asking:
    """The sources of a question.

    Attributes:
        reader: Of stdin, where it is to be read; it has started.
    """

    arguments: Arguments
    terminal: Terminal
    reader: StdinReader | None
    chat: ChatOptions
    deadline: Deadline = field(default_factory=Deadline)

    @classmethod
    def start(
        cls,
        arguments: Arguments,
        terminal: Terminal,
        chat: ChatOptions,
        deadline: Deadline | None = None,
    ) -> "Asking":
        """Begin to read stdin.

        Raises:
            UsageError: If there is nothing to answer, before anything is loaded.
        """
        deadline = deadline or Deadline()
        if not arguments.no_stdin and not terminal.stdin_is_tty and sys.stdin is not None:
            return cls(arguments, terminal, StdinReader(sys.stdin.fileno()), chat, deadline)
        if arguments.prompt == "-":
            raise UsageError("-p - reads stdin, but stdin is a terminal", 'give -p "TEXT"')
        asking = cls(arguments, terminal, None, chat, deadline)
        asking._question("").text  # noqa: B018  raises where nothing is asked
        return asking

    def _question(self, document: str) -> Question:
        prompt = self.arguments.prompt
        parts = ["" if prompt in (None, "-") else prompt or "", self.arguments.text]
        return Question(document, "\n\n".join(part for part in parts if part.strip()))

    def wait(self, load: Task[Any], tick: Callable[[], None]) -> Question:
        """The whole question, once it is read and the model is loaded.

        Raises:
            UsageError: If it is empty, or stdin is not text.
            TimeLimitError: If that takes too long.
            ErnieChatError: If loading failed.
        """
        question = None if self.reader else self._question("")
        noticed = False
        while question is None or not load.done:
            self.deadline.check()
            if question is None and self.reader is not None and self.reader.done:
                question = self._question(self.reader.text(self.chat.encoding, self.chat.errors))
                question.text  # noqa: B018  raises where nothing is asked
            if load.failed:
                break
            silent = self.reader.silent_seconds if self.reader else 0.0
            if silent >= (self.chat.stdin_timeout or math.inf):
                raise UsageError(
                    f"stdin is open, and silent for --stdin-timeout {self.chat.stdin_timeout:g} s",
                    "--no-stdin ignores it",
                )
            if silent >= WAIT_NOTICE_SECONDS and not noticed:
                noticed = True
                self.terminal.note(WAIT_NOTICE)
            if not load.done:
                tick()
            time.sleep(POLL_SECONDS)
        self.terminal.live.wipe()
        load.result()
        return question or Question("", "")


def read_structure(asked: tuple[str, str] | None) -> Structure | None:
    """The structure that flags ask for; ``@FILE`` is the file's text.

    Raises:
        UsageError: If the file cannot be read, or the structure cannot be used.
    """
    if asked is None:
        return None
    kind, text = asked
    structure = Structure(kind, text)  # type: ignore[arg-type]  # the parser's names
    if text.startswith("@") and kind != "regex":
        path = user_path(text[1:])
        try:
            text = decode(path.read_bytes(), f'{structure.flag} "{path}"')
        except OSError as exc:
            raise UsageError(f'cannot read {structure.flag} "{path}": {exc.strerror}') from exc
    structure = Structure(kind, text)  # type: ignore[arg-type]  # the parser's names
    check_structure(structure)
    return structure


def read_document(arguments: Arguments, terminal: Terminal, chat: ChatOptions) -> str:
    """With --chat, what is piped in; then the terminal is stdin. Empty without.

    Raises:
        UsageError: For what is for one answer only; if stdin is no text; if there is no terminal.
    """
    for flag, is_given in (
        ("--output", arguments.output is not None),
        ("a structure", arguments.structure is not None),
    ):
        if is_given:
            raise UsageError(f"{flag} is for one answer, not for the chat", 'give -p "TEXT"')
    if not arguments.chat or terminal.stdin_is_tty:
        return ""
    nothing: Task[None] = Task(lambda: None)
    nothing.run()
    text = Asking.start(arguments, terminal, chat).wait(nothing, lambda: None).text
    _take_keyboard(terminal)
    return text


def _take_keyboard(terminal: Terminal) -> None:
    """Let the terminal be stdin, after a document was read from a pipe.

    Raises:
        UsageError: If there is no terminal.
    """
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR)
        os.dup2(descriptor, 0)
        os.close(descriptor)
    except OSError as exc:
        raise UsageError("--chat needs a terminal to talk on", 'give -p "TEXT"') from exc
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  stays open to the end
    terminal.stdin_is_tty = True
