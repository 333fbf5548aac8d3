"""What is kept to start sooner, and its end: quantized copies, what was read of sessions."""

import json
import shutil
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from erniechat.chat.sessions import kept_folder
from erniechat.errors import ErnieChatError, UsageError
from quant.copy_names import COPY_VERSION, INDEX_FILE

SESSIONS = "sessions"  # names all that is kept of sessions; a copy's name ends in its key


def copies_folder() -> Path:
    """Where quantized copies are kept."""
    return platformdirs.user_cache_path("erniechat") / "copies"


def list_copies() -> list[dict[str, Any]]:
    """Name, model, format, bytes and state of each copy, by name; unfinished ones too.

    An outdated one was made by another version of this program, and no start uses it.
    """
    folder = copies_folder()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    finished = [_describe(path) for path in found if (path / INDEX_FILE).is_file()]
    return finished + [_describe_partial(path) for path in found if path.suffix == ".partial"]


def list_kept() -> list[dict[str, Any]]:
    """The same of each file of keys and values that a model has read of a session, by name."""
    folder = kept_folder()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        {
            "name": path.name,
            "model": f"session {path.stem.lstrip('.')}",
            "quant": "kv",
            "nbytes": path.stat().st_size,
            "state": "unfinished" if path.name.startswith(".") else "finished",
        }
        for path in found
    ]


def _describe_partial(path: Path) -> dict[str, Any]:
    nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"name": path.name, "model": "", "quant": "", "nbytes": nbytes, "state": "unfinished"}


def _describe(path: Path) -> dict[str, Any]:
    nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        index = json.loads((path / INDEX_FILE).read_text("utf-8"))["index"]
        model, quant = str(index["meta"]["model"]), str(index["meta"]["quant"])
        is_current = index["version"] == COPY_VERSION
    except (OSError, ValueError, LookupError, TypeError):
        model, quant, is_current = "damaged", "?", True
    return {
        "name": path.name,
        "model": model,
        "quant": quant,
        "nbytes": nbytes,
        "state": "finished" if is_current else "outdated",
    }


def copy_paths(name: str) -> list[Path]:
    """The folder of a copy, or with "all" of every one that a start may use.

    Raises:
        UsageError: If there is none of that name.
    """
    copies = [copy for copy in list_copies() if copy["state"] != "unfinished"]
    if name == "all":
        return [copies_folder() / copy["name"] for copy in copies if copy["state"] == "finished"]
    names = [copy["name"] for copy in copies]
    if name not in names:
        raise UsageError(f'there is no finished quantized copy "{name}"', _nearest(name, names))
    return [copies_folder() / name]


def _nearest(name: str, names: Sequence[str]) -> str:
    """What to say to a name that there is no copy of."""
    if not names:
        return "there is none yet"
    near = get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else "erniechat cache ls lists them"


def remove(name: str) -> int:
    """Delete a copy or what is kept of a session; the number of bytes that this frees.

    Args:
        name: Of one of them, "sessions" for all that is kept of sessions, or "all".

    Raises:
        UsageError: If there is none of that name.
        ErnieChatError: If it cannot be deleted.
    """
    copies, kept = list_copies(), list_kept()
    paths = {copies_folder() / copy["name"]: copy["nbytes"] for copy in copies if name != SESSIONS}
    paths |= {kept_folder() / file["name"]: file["nbytes"] for file in kept}
    if name not in ("all", SESSIONS):
        names = [path.name for path in paths]
        paths = {path: nbytes for path, nbytes in paths.items() if path.name == name}
        if not paths:
            raise UsageError(f'nothing that is kept is named "{name}"', _nearest(name, names))
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as exc:
            raise ErnieChatError(f"cannot delete {path.name}: {exc.strerror}") from exc
    return sum(paths.values())
