"""Commands that come back to conversations, branch them off, and bring them to files and back."""

from datetime import datetime
from pathlib import Path
from typing import Any

from erniechat.chat.sessions import SavedChat, find_session, load_session, session_paths
from erniechat.chat.summary import as_read
from erniechat.chat.transcript import FORMATS, read_transcript, transcript
from erniechat.errors import UsageError
from erniechat.paths import user_path
from erniechat.ui.config import config_path
from erniechat.ui.files import check_writable, write_whole
from erniechat.ui.screen import columns_that_fit, plain_table
from erniechat.ui.session import Session
from erniechat.ui.text import count, exchanges

NUM_LISTED = 15
BEGINS_WIDTH = 12  # columns below which the first words are left out


def reset_command(session: Session, argument: str) -> None:
    """Start a new conversation; the old one stays saved."""
    name = session.id
    session.reset()
    session.attached.clear()
    back = f" · back with /resume {name}" if name else ""
    session.screen.note(f"new conversation, same settings{back}")


def sessions_command(session: Session, argument: str) -> None:
    """List the newest saved conversations."""
    rows = session_rows(NUM_LISTED)
    if not rows:
        session.screen.line("no saved conversations")
        return
    headers = ("id", "date", "turns", "written", "begins")
    whole = [headers, *((*row[:-1], row[-1][:BEGINS_WIDTH]) for row in rows)]
    shown = columns_that_fit(whole, session.screen.width, least=1)
    table = plain_table(*headers[:shown], right=(2, 3), whole=(0, 1))
    for row in rows:
        table.add_row(*row[:shown])
    session.screen.show(table)
    session.screen.note("/resume ID goes on with one · erniechat sessions lists them all")


def session_facts(limit: int | None = None) -> list[dict[str, Any]]:
    """Id, date (ISO 8601), exchanges, tokens written and first words of the newest sessions."""
    facts = []
    for path in session_paths()[:limit]:
        chat = load_session(path)
        date = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        facts.append(
            {
                "id": chat.id,
                "date": date.isoformat(timespec="seconds"),
                "turns": chat.num_exchanges,
                "tokens": chat.num_tokens,
                "begins": chat.title,
            }
        )
    return facts


def session_rows(limit: int | None = None) -> list[tuple[str, str, str, str, str]]:
    """The same in words."""
    return [
        (
            fact["id"],
            datetime.fromisoformat(fact["date"]).strftime("%d %b %H:%M"),
            count(fact["turns"]),
            count(fact["tokens"]),
            fact["begins"],
        )
        for fact in session_facts(limit)
    ]


def resume_command(session: Session, argument: str) -> None:
    """Go on with a saved conversation."""
    if argument and argument == session.id:
        raise UsageError(f"session {argument} is this one")
    chat = find_session(argument, but=session.id)
    session.resume(chat)
    say_resumed(session, chat)


def say_resumed(session: Session, chat: SavedChat) -> None:
    """Tell which conversation it is that is gone on with, and how much of it."""
    for line in chat.damage:
        session.screen.note(line)
    turns, tokens = exchanges(session.num_exchanges), count(session.num_context_tokens)
    parts = [f"session {chat.id}", turns, f"{tokens} tok", *([chat.title] if chat.title else [])]
    session.screen.note(" · ".join(parts))
    if session.summary is not None:
        session.screen.note("its beginning is read as a summary, which /system shows")


def fork_command(session: Session, argument: str) -> None:
    """Go on in a session of its own; the one until now stays as it is."""
    if not session.messages:
        raise UsageError("there is nothing to branch off yet")
    if not session.id:
        raise UsageError(
            "nothing is saved here", "start without --no-save, where the disk can be written to"
        )
    parent, draft = session.id, session.draft
    session.replace_conversation(list(session.messages), parent, list(session.summaries))
    session.draft = draft
    session.screen.note(f"branched off {parent}: this is session {session.id}")


def export_command(session: Session, argument: str) -> None:
    """Write the conversation to a file."""
    words = argument.split()
    force = "--force" in words
    words = [word for word in words if word != "--force"]
    kind = words.pop(0) if words and words[0] in FORMATS else ""
    path = user_path(" ".join(words)) if words else None
    if not kind and path is not None:
        kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(
            f'/export takes {", ".join(FORMATS)}, got "{argument}"', "/export md notes.md"
        )
    if not session.messages:
        raise UsageError("there is nothing to export yet")
    path = path or Path(f"erniechat-{session.id or 'chat'}.{kind}")
    check_writable(path, force=force)
    write_whole(path, transcript(as_read(session.system, session.messages), kind))
    session.screen.note(f"wrote {path}, {count(len(session.messages))} messages")


def load_command(session: Session, argument: str) -> None:
    """Go on from a conversation in a file, in a session of its own."""
    if not argument:
        raise UsageError("/load takes a path", "/load chat.json")
    messages = read_transcript(user_path(argument))
    session.replace_conversation(messages)
    turns, tokens = exchanges(session.num_exchanges), count(session.num_context_tokens)
    session.screen.note(f"loaded {turns}, {tokens} tok")


def log_command(session: Session, argument: str) -> None:
    """Say where this conversation and the settings are kept."""
    if session.id:
        session.screen.line(f"session {find_session(session.id).path}")
    else:
        session.screen.line(
            "session nothing is saved" if not session.saving else "session none yet"
        )
    session.screen.line(f"settings {config_path()}")
    log = session.settings.display.log
    session.screen.line(f"log {log}" if log else "log none; erniechat --log FILE keeps one")
