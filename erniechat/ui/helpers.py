"""The commands that need no model: sessions, config, cache, info; each returns its page."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from erniechat.chat.conversation import Message
from erniechat.chat.session_file import remove_session
from erniechat.chat.sessions import find_session
from erniechat.chat.transcript import transcript
from erniechat.options import OPTIONS, SamplingOptions
from erniechat.ui.config import config_path, project_path
from erniechat.ui.session_commands import session_facts, session_rows
from erniechat.ui.settings import Settings
from erniechat.ui.text import display_width, gib, visible

# What holds where a setting has no value; that of sampling is the model's.
_UNSET = {
    "ctx": "the model's",
    "cpu_memory": "what is free",
    "gpu_memory": "what is free",
    "max_tokens": "what fits",
    "save": "in the chat",
    "seed": "random",
    "think_budget": "none",
    "threads": "physical cores",
}

Facts = Callable[[], dict[str, dict[str, str]]]


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows as lines, the columns two blanks apart.

    Args:
        rows: Of one length each.
        right: Columns of numbers, at the right.
    """
    if not rows:
        return ""
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        blanks = [" " * (width - display_width(c)) for c, width in zip(row, widths, strict=True)]
        padded = (
            blank + cell if number in right else cell + blank
            for number, (cell, blank) in enumerate(zip(row, blanks, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def sessions_page(action: str, name: str, *, as_json: bool) -> str:
    """`erniechat sessions ls|show|rm`.

    Raises:
        UsageError: If there is no such session.
    """
    if action == "rm":
        remove_session(name)
        return f"deleted session {name}\n"
    if action == "show":
        chat = find_session(name)
        kind = "json" if as_json else "md"
        system = [Message("system", chat.system)] if chat.system else []
        return visible(transcript([*system, *chat.messages], kind)) + "".join(
            f"{d}\n" for d in chat.damage
        )
    if as_json:
        return json.dumps(session_facts()) + "\n"
    rows = session_rows()
    names = ("id", "date", "turns", "written", "begins")
    return columns([names, *rows], right=(2, 3)) if rows else "no saved conversations\n"


def config_page(action: str, settings: Settings, *, as_json: bool) -> str:
    """`erniechat config path|show`: each value with its source."""
    if action == "path":
        files = [path for path in (config_path(), project_path()) if path is not None]
        return json.dumps([str(path) for path in files]) + "\n" if as_json else f"{files[0]}\n"
    values = {name: settings.values.get(name, option.default) for name, option in OPTIONS.items()}
    if as_json:
        facts = {n: {"value": v, "source": settings.origin(n)} for n, v in values.items()}
        return json.dumps(facts) + "\n"
    rows = [("setting", "value", "source")]
    for name, value in values.items():
        shown = " ".join(_in_words(name, value).split())[:60]
        rows.append((name, shown, settings.origin(name)))
    return columns(rows)


def _in_words(name: str, value: Any) -> str:
    """A setting's value as config.toml has it, or what holds where none is set."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is not None:
        return str(value)
    if OPTIONS[name].owner is SamplingOptions:
        return _UNSET.get(name, "the model's")
    return _UNSET.get(name, "none")


def cache_page(kept: Sequence[dict[str, Any]], *, as_json: bool) -> str:
    """`erniechat cache ls`."""
    if as_json:
        return json.dumps(list(kept)) + "\n"
    if not kept:
        return "nothing is kept\n"
    rows = [("name", "model", "quant", "size")]
    for file in kept:
        quant = file["state"] if file["state"] == "outdated" else file["quant"] or "unfinished"
        rows.append((file["name"], file["model"], quant, gib(file["nbytes"])))
    if len(kept) > 1:
        rows.append(("in all", "", "", gib(sum(file["nbytes"] for file in kept))))
    outdated = sum(file["nbytes"] for file in kept if file["state"] == "outdated")
    if not outdated:
        return columns(rows, right=(3,))
    return columns(rows, right=(3,)) + (
        "outdated: made by another version of this program, and used by no start; "
        f"erniechat cache rm NAME frees {gib(outdated)}\n"
    )


def info_page(facts: dict[str, dict[str, str]], *, as_json: bool) -> str:
    """`erniechat info`."""
    if as_json:
        return json.dumps(facts) + "\n"
    return "\n".join(f"{group}\n" + columns(list(rows.items())) for group, rows in facts.items())
