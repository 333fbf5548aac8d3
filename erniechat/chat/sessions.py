"""Conversations on disk: append-only files of one JSON object a line, each line flushed at once.

Kinds of lines, told by ``type``:

    session  the head: version, id, time, settings, and the id that it was branched off
    system   the system prompt in force from here on; text or null
    message  a message; an answer's also has how it ended
    part     a further piece of an answer under way; the message replaces it
    keep     only the first messages are still in the conversation; why: undo, retry, edit, …
    summary  a text that the model reads in place of the first messages; null ends the newest

What `keep` takes out of the conversation stays in the file: an answer that was asked for again
is its first answer's sibling. So do the messages that a summary stands for.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from erniechat.chat.conversation import Message
from erniechat.chat.summary import Summary, summaries_of
from erniechat.errors import UsageError

VERSION = 1
SUFFIX = ".jsonl"


def sessions_folder() -> Path:
    """Where sessions are kept."""
    return platformdirs.user_data_path("erniechat") / "sessions"


def kept_folder() -> Path:
    """Where what a model has read of sessions is kept; it can be deleted at any time."""
    return platformdirs.user_cache_path("erniechat") / "sessions"


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
    summaries: list[Summary] = field(default_factory=list)
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
        chat.summaries = summaries_of(chat.summaries, len(chat.messages))
    elif kind == "summary" and entry["text"] is None:
        del chat.summaries[-1:]
    elif kind == "summary":
        made_at = min(int(entry["made_at"]), len(chat.messages))
        num_messages = min(int(entry["messages"]), made_at)
        chat.summaries.append(Summary(str(entry["text"]), num_messages, made_at))
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
    hint = f"the newest are {known}; erniechat sessions ls lists all" if known else "none is saved"
    raise UsageError(f'there is no session "{name}"', hint)
