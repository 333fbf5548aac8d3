"""GGUF files on the hub: which of a repository's files is meant, and its parts.

A name is ``owner/name``, ``owner/name:Q4_K_M`` or ``owner/name/FILE.gguf``. Without a choice the
only file is taken, or the one whose type suits the format that is asked for.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from erniechat.errors import CheckpointError, UsageError
from erniechat.hub.failures import patiently
from erniechat.hub.listing import (
    COMMIT,
    HubFile,
    HubModel,
    hub_file,
    is_sound,
    known_or_asked,
    record_folder,
    write_whole,
)

SUFFIX = ".gguf"
RECORD = "gguf.json"
HUB_NAME = re.compile(r"([^/:]+/[^/:]+)(?::([^/:]+)|/(.+\.gguf))?", re.I)
PART = re.compile(r"-(\d{5})-of-(\d{5})$")
TYPE = re.compile(r"(?:^|[-._/])((?:UD-)?I?Q\d\w*|BF16|F16|F32)$", re.I)
NO_MODEL = ("mmproj", "imatrix")  # in the names of files that go with models
# By format, the types that lose least when they are packed as that and fetch no more than needed.
SUITING = {"int8": ("Q8_0",), "bf16": ("BF16", "F16", "F32")}
SUITING_4BIT = ("Q4_K_M", "Q4_0", "Q4_K_S")
MAX_LISTED = 6


@dataclass(frozen=True, slots=True)
class Listing:
    """The GGUF files of a repository at one commit; folder is its snapshot in the cache."""

    commit: str
    folder: Path
    files: tuple[HubFile, ...]


def split_name(name: str) -> tuple[str, str]:
    """A model's name and which of its GGUF files is meant, empty if that is not said."""
    found = HUB_NAME.fullmatch(name)
    return (found[1], found[2] or found[3] or "") if found else (name, "")


def find_gguf(
    name: str, revision: str | None, choice: str, quant: str, *, offline: bool
) -> HubModel:
    """A GGUF file on the hub with its parts: from the record if it is known, else from the hub.

    Args:
        name: ``owner/name``.
        revision: Branch, tag or commit; None for the newest that is known.
        choice: A type, ``Q4_K_M`` say, a file's path in the repository, or empty.
        quant: The format that is asked for.
        offline: Whether the network must not be used.

    Raises:
        UsageError: If no file or several are meant; it names them.
        ModelError: If the model cannot be had.
    """
    known = recorded_gguf(name, revision)
    listing = known_or_asked(name, revision, known, _ask, offline=offline)
    files = choose(name, listing.files, choice, quant)
    return HubModel(name, listing.commit, listing.folder, files)


def recorded_gguf(name: str, revision: str | None) -> Listing | None:
    """The GGUF files of a repository that was asked for before; else None."""
    commit = revision or "main"
    try:
        if not COMMIT.fullmatch(commit):
            commit = _reference(name, revision).read_text("ascii").strip()
        entries = json.loads((record_folder(name, commit) / RECORD).read_text("utf-8"))["files"]
        files = tuple(HubFile(**entry) for entry in entries)
        if not files or not COMMIT.fullmatch(commit) or not all(map(_is_sound, files)):
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Listing(commit, _snapshot(name, commit), files)


def _reference(name: str, revision: str | None) -> Path:
    """Where the commit of a branch or tag is noted."""
    return record_folder(name, "refs") / quote(revision or "main", safe="")


def _snapshot(name: str, commit: str) -> Path:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return cache / "snapshots" / commit


def _ask(name: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi

    info = patiently(lambda: HfApi().model_info(name, revision=revision, files_metadata=True))
    siblings = [s for s in info.siblings or [] if s.rfilename.lower().endswith(SUFFIX)]
    if not siblings:
        raise CheckpointError(f"{name} has no GGUF file", "name a repository that has one")
    files = tuple(hub_file(sibling) for sibling in siblings)
    if not all(map(_is_sound, files)):
        raise CheckpointError(f"{name} lists files outside its folder", "do not trust it")
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise CheckpointError(f"the hub names no commit of {name}", "try again later")
    text = json.dumps({"files": [asdict(file) for file in files]})
    record = record_folder(name, commit) / RECORD
    write_whole(record, lambda path: path.write_text(text, "utf-8"))
    write_whole(_reference(name, revision), lambda path: path.write_text(commit, "ascii"))
    return Listing(commit, _snapshot(name, commit), files)


def _is_sound(file: HubFile) -> bool:
    path = PurePosixPath(file.name)
    return is_sound(file) and not path.is_absolute() and ".." not in path.parts


def choose(name: str, files: Iterable[HubFile], choice: str, quant: str) -> tuple[HubFile, ...]:
    """The file that is meant, with all its parts in order.

    Raises:
        UsageError: If none is meant, or several are.
    """
    models: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        stem = file.name[: -len(SUFFIX)]
        if not any(word in stem.lower() for word in NO_MODEL):
            models.setdefault(PART.sub("", stem), []).append(file)
    found = [model for model in models if _is_meant(choice, model, models[model])]
    if not choice and len(found) > 1:
        suiting = SUITING.get(quant, SUITING_4BIT)
        by_type = [[model for model in found if _type(model) == kind] for kind in suiting]
        found = next((some for some in by_type if some), found)
    if len(found) == 1:
        return tuple(models[found[0]])
    listed = sorted(found or models)
    names = ", ".join(_name_of(name, model, models) for model in listed[:MAX_LISTED])
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    asked = f'"{choice}" is none' if not found else f"{len(found)} could be meant"
    raise UsageError(
        f"of the {len(models)} GGUF files of {name} {asked}", f"name one: {names}{more}"
    )


def _is_meant(choice: str, model: str, files: list[HubFile]) -> bool:
    if choice.lower().endswith(SUFFIX):
        return choice in [file.name for file in files]
    return not choice or _type(model) == choice.upper()


def _type(model: str) -> str:
    found = TYPE.search(model)
    return found[1].upper() if found else ""


def _name_of(name: str, model: str, models: dict[str, list[HubFile]]) -> str:
    """What to type for a model."""
    kind = _type(model)
    if kind and [_type(other) for other in models].count(kind) == 1:
        return f"{name}:{kind}"
    return f"{name}/{models[model][0].name}"
