"""Conversations on disk: append-only files of one JSON object a line, each line flushed at once.

Kinds of lines, told by ``type``:

    session  the head: version, id, time, settings, and the id that it was branched off
    system   the system prompt in force from here on; text or null
    message  a message; an answer's also has how it ended
    part     a further piece of an answer under way; the message replaces it
    keep     only the first messages are still in the conversation; why: undo, retry, edit, …

What `keep` takes out of the conversation stays in the file: an answer that was asked for again
is its first answer's sibling.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import platformdirs

from erniechat.chat.conversation import Message
from erniechat.errors import ErnieChatError, UsageError
from erniechat.events import TurnEnd

VERSION = 1
SUFFIX = ".jsonl"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sessions_folder() -> Path:
    """Where sessions are kept."""
    return platformdirs.user_data_path("erniechat") / "sessions"


@dataclass(slots=True)
class SavedChat:
    """What a session file holds, replayed.

    Attributes:
        settings: What the chat was started with, by option name: the model, its format.
        damage: For each line that could not be read, one line about it.
    """

    id: str
    path: Path
    created: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    num_tokens: int = 0
    damage: list[str] = field(default_factory=list)

    @property
    def num_exchanges(self) -> int:
        """Messages of the user."""
        return sum(message.role == "user" for message in self.messages)

    @property
    def load_settings(self) -> dict[str, Any]:
        """The settings that name the model, as they may be put in force."""
        names = ("model", "quant", "revision")
        return {n: self.settings[n] for n in names if isinstance(self.settings.get(n), str)}

    @property
    def title(self) -> str:
        """The first words of the first message, on one line."""
        first = next((m.content for m in self.messages if m.role == "user"), "")
        return " ".join(first.split())[:60]


def load_session(path: Path) -> SavedChat:
    """Replay a session file; lines that cannot be read are skipped and listed in ``damage``.

    Raises:
        UsageError: If the file cannot be opened.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as exc:
        raise UsageError(f'cannot read session "{path.stem}": {exc.strerror}') from exc
    chat = SavedChat(path.stem, path)
    part = {"thoughts": "", "text": ""}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8"))
            _replay(chat, part, entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
            chat.damage.append(
                f"session {chat.id}: line {number} is damaged and was skipped; the rest is used"
            )
    _close_part(chat, part)
    return chat


def _replay(chat: SavedChat, part: dict[str, str], entry: dict[str, Any]) -> None:
    kind = entry["type"]
    if kind == "part":
        for key in part:
            part[key] += str(entry.get(key, ""))
    elif kind == "message":
        message = Message.from_dict(entry["message"])
        part.update(thoughts="", text="")
        chat.messages.append(message)
        usage = (entry.get("end") or {}).get("usage") or {}
        chat.num_tokens += int(usage.get("thinking", 0)) + int(usage.get("answer", 0))
    elif kind == "keep":
        part.update(thoughts="", text="")
        del chat.messages[int(entry["messages"]) :]
    elif kind == "system":
        chat.system = entry["text"]
    elif kind == "session":
        chat.created = str(entry.get("created", ""))
        chat.settings = dict(entry.get("settings") or {})
    else:
        raise ValueError(kind)


def _close_part(chat: SavedChat, part: dict[str, str]) -> None:
    """Keep what was written of an answer when the program was killed."""
    if not part["text"].strip():
        return
    last = chat.messages[-1] if chat.messages else None
    if last is not None and last.role == "assistant":  # it was being gone on with
        thoughts = (last.thoughts or "") + part["thoughts"]
        content = last.content + part["text"]
        chat.messages[-1] = dataclasses.replace(last, content=content, thoughts=thoughts or None)
    else:
        thoughts = part["thoughts"].strip()
        chat.messages.append(Message("assistant", part["text"], thoughts or None))


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


def session_paths() -> list[Path]:
    """The files of all sessions, the newest first."""
    try:
        found = [(p.stat().st_mtime, p) for p in sessions_folder().glob(f"*{SUFFIX}")]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def find_session(name: str = "", *, but: str = "") -> SavedChat:
    """The session of an id, or the newest one that has a message and is not of the id ``but``.

    Raises:
        UsageError: If there is none.
    """
    paths = session_paths()
    if not name:
        for path in paths:
            chat = load_session(path)
            if chat.messages and chat.id != but:
                return chat
        raise UsageError("there is no session to go on with", "erniechat starts one")
    for path in paths:
        if path.stem == name:
            return load_session(path)
    known = ", ".join(path.stem for path in paths[:3])
    hint = f"the newest are {known}; erniechat sessions ls lists all" if known else "there is none"
    raise UsageError(f'there is no session "{name}"', hint)


def remove_session(name: str) -> None:
    """Delete a session's file.

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
            path.unlink()
        finally:
            os.close(file_descriptor)
    except OSError as exc:
        raise ErnieChatError(f"cannot delete session {name}: {exc.strerror}") from exc
