"""Writing a session: one file, made by the first message, locked while it is open."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from erniechat.chat.conversation import Message
from erniechat.chat.sessions import (
    SUFFIX,
    VERSION,
    SavedChat,
    find_session,
    kept_folder,
    sessions_folder,
)
from erniechat.chat.summary import Summary
from erniechat.errors import ErnieChatError, UsageError
from erniechat.events import TurnEnd

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class SessionFile:
    """Appends to one session's file, which is made by the first message.

    A disk that cannot be written to is told once; the chat goes on without being saved.

    Args:
        warn: Told, in one line, that nothing is saved from here on.
        settings: What the chat was started with, for the head.
        path: An existing file to append to; None for a new one.
        parent: The id of the session that this one was branched off.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        settings: Mapping[str, Any],
        *,
        path: Path | None = None,
        parent: str = "",
    ) -> None:
        self._warn = warn
        self._settings = dict(settings)
        self._parent = parent
        self._system: str | None = None
        self._path = path
        self._file_descriptor: int | None = None
        self._is_broken = False

    @classmethod
    def resume(cls, chat: SavedChat, warn: Callable[[str], None]) -> "SessionFile":
        """Go on in a session's file, which is locked until `close`.

        Raises:
            UsageError: If another process has it open.
        """
        session = cls(warn, chat.settings, path=chat.path)
        session._system = chat.system
        session._open_existing(chat.path)
        return session

    @property
    def id(self) -> str:
        """The session's name, empty before its first message and where nothing is saved."""
        return self._path.stem if self._path and not self._is_broken else ""

    def set_system(self, text: str | None) -> None:
        """The system prompt from here on; written with the next message if none was yet."""
        if text != self._system and self._file_descriptor is not None:
            self._write({"type": "system", "text": text})
        self._system = text

    def add_message(self, message: Message, end: TurnEnd | None = None) -> None:
        """Append a message; an answer with how it ended."""
        self._start()
        entry: dict[str, Any] = {"type": "message", "message": message.as_dict()}
        if end is not None:
            entry["end"] = dataclasses.asdict(end)
        self._write(entry)

    def add_part(self, thoughts: str, text: str) -> None:
        """Append a piece of an answer under way."""
        if self._file_descriptor is not None and (thoughts or text):
            self._write({"type": "part", "thoughts": thoughts, "text": text})

    def keep(self, num_messages: int, why: str) -> None:
        """Only the first messages are still in the conversation."""
        if self._file_descriptor is not None:
            self._write({"type": "keep", "messages": num_messages, "why": why})

    def add_summary(self, summary: Summary | None) -> None:
        """A summary stands for the first messages from here on; None takes the newest away."""
        if self._file_descriptor is None:
            return
        entry: dict[str, Any] = {"type": "summary", "text": None}
        if summary is not None:
            entry |= {"text": summary.text, "messages": summary.num_messages}
            entry["made_at"] = summary.made_at
        self._write(entry)

    def close(self) -> None:
        """Let go of the file."""
        if self._file_descriptor is not None:
            os.close(self._file_descriptor)
            self._file_descriptor = None

    def _start(self) -> None:
        """Make the file with its head, unless that was done."""
        if self._file_descriptor is not None or self._is_broken:
            return
        try:
            self._path, self._file_descriptor = _create(sessions_folder())
        except OSError as exc:
            self._fail(exc)
            return
        _lock(self._file_descriptor)
        head = {"type": "session", "version": VERSION, "id": self._path.stem}
        created = datetime.now().astimezone().isoformat(timespec="seconds")
        head |= {"created": created, "settings": self._settings}
        if self._parent:
            head["parent"] = self._parent
        self._write(head)
        if self._system is not None:
            self._write({"type": "system", "text": self._system})

    def _open_existing(self, path: Path) -> None:
        try:
            file_descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError as exc:
            self._fail(exc)
            return
        if not _lock(file_descriptor):
            os.close(file_descriptor)
            raise UsageError(
                f"session {path.stem} is open in another process",
                "leave it there first, or start a new one without -c and --resume",
            )
        self._file_descriptor = file_descriptor
        size = os.fstat(file_descriptor).st_size
        if size and os.pread(file_descriptor, 1, size - 1) != b"\n":
            self._write_bytes(b"\n")  # the last line was cut off: no other may be joined to it

    def _write(self, entry: Mapping[str, Any]) -> None:
        try:
            data = json.dumps(entry, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair
            data = json.dumps(entry).encode("ascii")
        self._write_bytes(data + b"\n")

    def _write_bytes(self, data: bytes) -> None:
        if self._file_descriptor is None:
            return
        try:
            while data:
                data = data[os.write(self._file_descriptor, data) :]
        except OSError as exc:
            self._fail(exc)

    def _fail(self, exc: OSError) -> None:
        self.close()
        self._is_broken = True
        self._warn(f"the session is not saved: {sessions_folder()}: {exc.strerror}")


def _create(folder: Path) -> tuple[Path, int]:
    """A new file, named after the day and the first free letter; another process takes the next."""
    for part in (folder.parent, folder):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    day = datetime.now().strftime("%m%d")
    for letters in _names():
        path = folder / f"{day}-{letters}{SUFFIX}"
        with suppress(FileExistsError):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
            return path, os.open(path, flags, 0o600)
    raise AssertionError("the alphabet has no end")


def _names() -> Iterator[str]:
    """The letters, then pairs of them, then threes, without end."""
    names = list(LETTERS)
    while True:
        yield from names
        names = [name + letter for name in names for letter in LETTERS]


def _lock(file_descriptor: int) -> bool:
    """Whether the file is ours alone until it is closed; True where there are no locks."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return True
    try:
        fcntl.flock(file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def remove_session(name: str) -> None:
    """Delete a session's file, and what a model has read of it.

    Raises:
        UsageError: If there is none of that name, or it is in use.
        ErnieChatError: If it cannot be deleted.
    """
    path = find_session(name).path
    try:
        file_descriptor = os.open(path, os.O_RDWR)
        try:
            if not _lock(file_descriptor):
                raise UsageError(f"session {name} is open in another process", "leave it there")
            for kept in kept_folder().glob(f"{path.stem}.*"):
                kept.unlink()
            path.unlink()
        finally:
            os.close(file_descriptor)
    except OSError as exc:
        raise ErnieChatError(f"cannot delete session {name}: {exc.strerror}") from exc
