"""Long pastes as one short mark in the prompt, which stands for them until they are sent."""

from collections.abc import Callable

from erniechat.ui.text import count

FOLD_LINES = 15
FOLD_CHARS = 1000


class Folds:
    """The pastes of a chat by their marks.

    Args:
        count_tokens: Counts the tokens of a text exactly.
    """

    def __init__(self, count_tokens: Callable[[str], int]) -> None:
        self._count_tokens = count_tokens
        self._pastes: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """What to put into the prompt for a paste: its mark, or itself where it is short."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        num_lines = text.rstrip("\n").count("\n") + 1
        if num_lines < FOLD_LINES and len(text) < FOLD_CHARS:
            return text
        lines = f"{num_lines} lines" if num_lines != 1 else "1 line"
        label = f"pasted {lines} · {count(self._count_tokens(text))} tok"
        mark, number = f"[{label}]", 1
        while self._pastes.get(mark, text) != text:
            number += 1
            mark = f"[{label} · {number}]"
        self._pastes[mark] = text
        return mark

    def expand(self, text: str) -> str:
        """The text with each mark replaced by what it stands for."""
        for mark, paste in self._pastes.items():
            text = text.replace(mark, paste)
        return text

    def refold(self, text: str) -> str:
        """A message that comes back: each paste of this chat in it is a mark again."""
        for mark, paste in sorted(self._pastes.items(), key=lambda item: -len(item[1])):
            text = text.replace(paste, mark)
        return text

    def mark_before(self, text: str) -> str:
        """The mark that a text ends with, or nothing."""
        return next((mark for mark in self._pastes if text.endswith(mark)), "")
