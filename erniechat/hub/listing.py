"""What a model on the hub consists of: its commit and its shards, with size and identity of each.

Once asked for, the listing is recorded beside the copies, so that a start needs no network, also
where the shards are gone because their weights are in a copy.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from erniechat.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from erniechat.hub.failures import HubUnreachableError, hub_errors, offline_error, patiently
from erniechat.model.folder import INDEX_FILE, MAX_JSON_NBYTES, SINGLE_FILE, shard_names

COMMIT = re.compile(r"[0-9a-f]{40}")
IDENTITY = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SMALL_SUFFIXES = (".json", ".jinja")
MAX_SHARD_NBYTES = 1 << 40
MAX_SHARDS = 10_000

KnownT = TypeVar("KnownT")


class GgufOnly(Exception):
    """A repository has GGUF files instead of safetensors."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A shard on the hub.

    Attributes:
        name: In the repository; a path for GGUF files only, and never one out of it.
        nbytes: Its size.
        identity: SHA-256 of its content, or of small files git's SHA-1; the cache names it so.
    """

    name: str
    nbytes: int
    identity: str


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub at one commit.

    Attributes:
        name: ``owner/name``.
        commit: 40 hexadecimal digits.
        folder: The snapshot in the hub's cache, which has all small files.
        shards: The weights, in order.
    """

    name: str
    commit: str
    folder: Path
    shards: tuple[HubFile, ...]

    @property
    def missing(self) -> list[HubFile]:
        """The shards that are not here."""
        return [shard for shard in self.shards if not (self.folder / shard.name).exists()]

    @property
    def record(self) -> Path:
        """Where the listing and the headers of this commit are kept."""
        return record_folder(self.name, self.commit)


def find_model(name: str, revision: str | None, *, offline: bool) -> HubModel:
    """A model with its small files: from the cache if it is known there, else from the hub.

    What is here already is used without asking the hub. A branch or tag that is named, `main` say,
    is asked for.

    Raises:
        GgufOnly: If it has GGUF files instead of safetensors.
        ModelError: If the model cannot be had.
        UsageError: If the name cannot be one.
    """
    from huggingface_hub import constants

    known = cached_model(name, revision)
    try:
        return known_or_asked(name, revision, known, _ask, offline=offline)
    except HubUnreachableError:
        raise
    except ModelNotFoundError as exc:
        near = _near_names(name, Path(constants.HF_HUB_CACHE))
        if near:
            raise ModelNotFoundError(exc.message, f"in your cache: {', '.join(near)}") from exc
        raise


def known_or_asked(
    name: str,
    revision: str | None,
    known: KnownT | None,
    ask: Callable[[str, str | None], KnownT],
    *,
    offline: bool,
) -> KnownT:
    """What is known of a repository, or what the hub says of it where that may be something else.

    Args:
        name: ``owner/name``.
        revision: Branch, tag or commit; None for the newest that is known.
        known: From an earlier answer; it serves as well where the hub does not answer.
        ask: Asks the hub for a name's revision.
        offline: Whether the network must not be used.

    Raises:
        ModelError: If nothing is known and the hub does not tell.
        UsageError: If the name cannot be one.
    """
    is_settled = revision is None or COMMIT.fullmatch(revision) is not None
    if known is not None and (is_settled or offline):
        return known
    if offline:
        raise offline_error(name)
    try:
        with hub_errors(name, revision):
            return ask(name, revision)
    except HubUnreachableError:
        if known is None:
            raise
        return known


def cached_model(name: str, revision: str | None) -> HubModel | None:
    """A model whose small files are in the hub's cache and whose shards are known; else None.

    Raises:
        CheckpointError: If what is in the cache is damaged.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / commit).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
    snapshot = folder / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not (snapshot / "config.json").exists():
        return None
    shards = _recorded(name, commit) or _shards_in(snapshot)
    return HubModel(name, commit, snapshot, tuple(shards)) if shards else None


def _shards_in(snapshot: Path) -> list[HubFile]:
    """The shards of a snapshot that another tool has fetched as a whole; else none."""
    if not (snapshot / INDEX_FILE).exists() and not (snapshot / SINGLE_FILE).exists():
        return []
    names = shard_names(snapshot)
    if not all((snapshot / name).exists() for name in names):
        return []
    found = [(name, (snapshot / name).resolve()) for name in names]
    return [HubFile(name, path.stat().st_size, path.name) for name, path in found]


def _ask(name: str, revision: str | None) -> HubModel:
    """The model as the hub has it; fetches the small files and keeps a record."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # public by its documents

    class Silent(tqdm):  # the program has bars of its own
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]  # theirs

    info = patiently(lambda: HfApi().model_info(name, revision=revision, files_metadata=True))
    siblings = {s.rfilename: s for s in info.siblings or []}
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise CheckpointError(f"the hub names no commit of {name}", "try again later")
    small = [n for n in siblings if "/" not in n and n.endswith(SMALL_SUFFIXES)]
    large = [n for n in small if (siblings[n].size or 0) > MAX_JSON_NBYTES]
    if large:
        raise CheckpointError(f"{large[0]} of {name} is larger than 64 MiB", "do not trust it")
    _check_kind(name, siblings)

    def fetch_small() -> Path:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=small, tqdm_class=Silent)
        )

    folder = patiently(fetch_small)
    names = shard_names(folder) if INDEX_FILE in siblings else [SINGLE_FILE]
    missing = [n for n in names if n not in siblings]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} files of {name} are not on the hub: {missing[0]}",
            "use another revision",
        )
    shards = tuple(hub_file(siblings[n]) for n in names[:MAX_SHARDS])
    model = HubModel(name, folder.name, folder, shards)
    _keep(model)
    return model


def _check_kind(name: str, names: Sequence[str] | dict[str, Any]) -> None:
    """Refuse a repository without weights that this program opens.

    Raises:
        GgufOnly: If it has GGUF files instead.
    """
    has_weights = INDEX_FILE in names or SINGLE_FILE in names
    if not has_weights and any(n.lower().endswith(".gguf") for n in names):
        raise GgufOnly
    if "config.json" not in names:
        raise CheckpointError(f"{name} has no config.json", "name a model in Hugging Face layout")
    if has_weights:
        return
    if any(n.endswith(".pdparams") for n in names):
        raise UnsupportedModelError(
            f"{name} is in Paddle's format", "use the checkpoint whose name ends in -PT"
        )
    if any(n.endswith((".bin", ".pt", ".pth")) for n in names):
        raise UnsupportedModelError(
            f"{name} has pickled weights only, which can run code when opened",
            "use a checkpoint with safetensors files",
        )
    raise CheckpointError(
        f"{name} has neither {SINGLE_FILE} nor {INDEX_FILE}", "name a model with safetensors files"
    )


def hub_file(sibling: Any) -> HubFile:
    """A file as the hub lists it.

    Raises:
        CheckpointError: If it lists no size or hash.
    """
    lfs = sibling.lfs
    nbytes = lfs.size if lfs is not None else sibling.size
    identity = lfs.sha256 if lfs is not None else sibling.blob_id
    if not isinstance(nbytes, int) or not 0 < nbytes < MAX_SHARD_NBYTES:
        raise CheckpointError(f"the hub gives no size of {sibling.rfilename}", "try again later")
    if not isinstance(identity, str) or not IDENTITY.fullmatch(identity):
        raise CheckpointError(f"the hub gives no hash of {sibling.rfilename}", "try again later")
    return HubFile(sibling.rfilename, nbytes, identity)


def record_folder(name: str, commit: str) -> Path:
    """Where what is known of a model at one commit is kept."""
    cache = platformdirs.user_cache_path("erniechat")
    return cache / "hub" / name.replace("/", "--") / commit


def _keep(model: HubModel) -> None:
    """Write the record; without one the next start asks the hub again, or reads the files."""
    text = json.dumps({"shards": [asdict(shard) for shard in model.shards]})
    write_whole(model.record / "listing.json", lambda path: path.write_text(text, "utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Make a small file that is there as a whole or not at all; none where that cannot be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _recorded(name: str, commit: str) -> list[HubFile]:
    """The shards of a record; none if there is no sound one."""
    try:
        listed = json.loads((record_folder(name, commit) / "listing.json").read_text("utf-8"))
        found = [HubFile(**entry) for entry in listed["shards"]]
        sound = all(Path(f.name).name == f.name and is_sound(f) for f in found)
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return found if sound else []


def is_sound(file: HubFile) -> bool:
    """Whether a recorded file has a size and a hash that a hub could have listed."""
    return type(file.nbytes) is int and IDENTITY.fullmatch(file.identity) is not None


def _near_names(name: str, cache: Path) -> list[str]:
    """Models in the hub's cache whose names are like this one."""
    import difflib  # only for an error

    known = [path.name[8:].replace("--", "/", 1) for path in cache.glob("models--*--*")]
    return difflib.get_close_matches(name, [k for k in known if k != name], n=2)
