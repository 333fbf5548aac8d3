"""The quantized copies on disk: what there is, and its end."""

import json
import shutil
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from erniechat.errors import ErnieChatError, UsageError

INDEX_FILE = "index.json"


def copies_folder() -> Path:
    """Where quantized copies are kept."""
    return platformdirs.user_cache_path("erniechat") / "copies"


def list_copies() -> list[dict[str, Any]]:
    """Name, model, format, bytes and state of each copy, by name; unfinished ones too."""
    folder = copies_folder()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    finished = [_describe(path) for path in found if (path / INDEX_FILE).is_file()]
    return finished + [_describe_partial(path) for path in found if path.suffix == ".partial"]


def _describe_partial(path: Path) -> dict[str, Any]:
    nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"name": path.name, "model": "", "quant": "", "nbytes": nbytes, "state": "unfinished"}


def _describe(path: Path) -> dict[str, Any]:
    nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        meta = json.loads((path / INDEX_FILE).read_text("utf-8"))["index"]["meta"]
        model, quant = str(meta["model"]), str(meta["quant"])
    except (OSError, ValueError, LookupError, TypeError):
        model, quant = "damaged", "?"
    return {
        "name": path.name,
        "model": model,
        "quant": quant,
        "nbytes": nbytes,
        "state": "finished",
    }


def copy_paths(name: str) -> list[Path]:
    """The folder of a copy, or with "all" of every one.

    Raises:
        UsageError: If there is none of that name.
    """
    names = [copy["name"] for copy in list_copies() if copy["state"] == "finished"]
    if name != "all" and name not in names:
        raise UsageError(f'there is no finished quantized copy "{name}"', _nearest(name, names))
    return [copies_folder() / found for found in names if name in ("all", found)]


def _nearest(name: str, names: Sequence[str]) -> str:
    """What to say to a name that there is no copy of."""
    if not names:
        return "there is none yet"
    near = get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else "erniechat cache ls lists them"


def remove_copy(name: str) -> int:
    """Delete a copy, or with "all" every one; the number of bytes that this frees.

    Raises:
        UsageError: If there is none of that name.
        ErnieChatError: If it cannot be deleted.
    """
    copies = {copy["name"]: copy["nbytes"] for copy in list_copies()}
    names = list(copies) if name == "all" else [name]
    if name != "all" and name not in copies:
        raise UsageError(f'there is no quantized copy "{name}"', _nearest(name, list(copies)))
    for found in names:
        try:
            shutil.rmtree(copies_folder() / found)
        except OSError as exc:
            raise ErnieChatError(f"cannot delete {found}: {exc.strerror}") from exc
    return sum(copies[found] for found in names)
