"""What Tab offers: commands and their values, settings, sessions, files."""

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from erniechat.options import OPTIONS
from erniechat.ui.commands import COMMANDS, find


class CommandCompleter(Completer):
    """Completes commands, their values, settings with theirs, and paths, also after an @."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What Tab offers."""
        text = document.text_before_cursor
        *before, word = text.split(" ")
        last_word = text.split()[-1] if text.split() and not text[-1].isspace() else ""
        if last_word.startswith("@"):
            yield from self._files(last_word[1:], complete_event)
        if not text.startswith("/") or text.startswith("//") or "\n" in text:
            return
        for value in self._values(before):
            if value.startswith(word):
                yield Completion(value, start_position=-len(word))
        command = find(before[0][1:]) if before else None
        if command and command.paths:
            yield from self._files(word, complete_event)

    def _files(self, start: str, event: CompleteEvent) -> Iterable[Completion]:
        return self._paths.get_completions(Document(start), event)

    def _values(self, before: list[str]) -> Iterable[str]:
        if not before:
            names = [name for c in COMMANDS for name in (c.name, *c.aliases) if name != "?"]
            return ["/" + name for name in names]
        command = find(before[0][1:])
        if command is None:
            return []
        if command.name == "help" and len(before) == 1:
            return [c.name for c in COMMANDS]
        if command.name == "set" and len(before) == 2 and before[1] in OPTIONS:
            return [*OPTIONS[before[1]].spec.choices, "default"]
        return command.completions() if len(before) == 1 else []
