"""What was typed in earlier chats: a file for the user's eyes only."""

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs
from prompt_toolkit.history import FileHistory


def history_path() -> Path:
    """Where typed messages are kept."""
    return platformdirs.user_state_path("erniechat") / "history"


class PrivateHistory(FileHistory):
    """A history file with mode 0600; what begins with a blank is not stored.

    A disk that cannot be written to costs the history and nothing else.

    Args:
        path: The file.
        whole: The text that a line of the prompt stands for.
    """

    def __init__(self, path: Path, whole: Callable[[str], str] = str) -> None:
        super().__init__(str(path))
        self._path = path
        self._whole = whole

    def store_string(self, string: str) -> None:
        """Append a message to the file."""
        if string.startswith(" ") or not string.strip():
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(self._whole(string))
        except (OSError, UnicodeError):
            return
