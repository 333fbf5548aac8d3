"""Routing counts on disk: how often each expert of a model was chosen, kept across chats.

One JSON file a model. It is written to a temporary file beside it and renamed, readable by its
owner only, and under a lock, so that two processes that end together both leave their counts.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from quant.errors import QuantError
from quant.file_lock import try_lock

KIND = "routing-profile"
VERSION = 1
# Counts fade by tokens, not by sessions, so that ten short chats weigh as much as one long one.
# The half-life is some hundred replies: long enough that one odd chat does not move the experts,
# short enough that a new habit (another language, code instead of prose) wins within days.
HALF_LIFE_TOKENS = 131_072
LOCK_TIMEOUT_SECONDS = 5.0
MAX_COUNT = 1e15  # beyond it a file is damaged; floats count exactly up to 9e15

Pause = Callable[[], None]


def _go_on() -> None:
    """Do not pause."""


@dataclass(frozen=True, slots=True)
class RoutingProfile:
    """How often each expert of one model was chosen.

    Attributes:
        model_key: The model; counts of another model mean nothing to it.
        num_tokens: Tokens that the counts come from. It fades as the counts do.
        counts: By layer index one count an expert. Layers without routed experts are left out.
    """

    model_key: str
    num_tokens: float
    counts: Mapping[int, tuple[float, ...]]


def profile_path(folder: Path, model_key: str) -> Path:
    """The file of a model's profile: a readable name, and a hash that keeps models apart."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model_key)[-80:].strip("-.") or "model"
    digest = hashlib.sha256(model_key.encode()).hexdigest()[:12]
    return folder / f"{readable}-{digest}.json"


def load_profile(path: Path, model_key: str, pause: Pause = _go_on) -> RoutingProfile | None:
    """Read a profile; None if there is no file.

    Args:
        path: Its file.
        model_key: The model that it must be of.
        pause: Called after each layer.

    Raises:
        QuantError: If the file cannot be read, is damaged, or is of another model or version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise QuantError(f"cannot read the routing profile {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise _damaged(path, "it is no text") from exc
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _damaged(path, "it is no JSON") from exc
    return _parse(path, fields, model_key, pause)


def merge_profiles(
    old: RoutingProfile, new: RoutingProfile, half_life_tokens: int = HALF_LIFE_TOKENS
) -> RoutingProfile:
    """Add newer counts to older ones, which fade by half every half_life_tokens new tokens.

    Raises:
        QuantError: If the two are not of the same model, layers and experts.
    """
    if old.model_key != new.model_key:
        raise QuantError(
            f"cannot add routing counts of {new.model_key} to those of {old.model_key}"
        )
    if _sizes(old) != _sizes(new):
        raise QuantError(
            f"the routing profile of {old.model_key} is of {_describe(old)}, the model has "
            f"{_describe(new)}; delete the profile to start anew"
        )
    keep = 0.5 ** (new.num_tokens / half_life_tokens)
    counts = {
        layer_idx: tuple(
            before * keep + now
            for before, now in zip(layer_counts, new.counts[layer_idx], strict=True)
        )
        for layer_idx, layer_counts in old.counts.items()
    }
    return RoutingProfile(old.model_key, old.num_tokens * keep + new.num_tokens, counts)


def add_to_profile(
    path: Path,
    session: RoutingProfile,
    half_life_tokens: int = HALF_LIFE_TOKENS,
    pause: Pause = _go_on,
) -> RoutingProfile:
    """Merge the counts of one session into the file, or start it. Returns what is there now.

    The file is read again under the lock, so nothing is lost to a process that wrote meanwhile.

    Args:
        path: The file; its folder is made.
        session: What is new.
        half_life_tokens: See `merge_profiles`.
        pause: Called between layers: on a thread beside others, it lets them have Python's lock,
            which this would keep for milliseconds.

    Raises:
        QuantError: If the folder cannot be written, another process keeps the lock, or the file
            that is there is refused by `load_profile`; then the file stays as it is.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock")):
            old = load_profile(path, session.model_key, pause)
            merged = session if old is None else merge_profiles(old, session, half_life_tokens)
            _write(path, merged, pause)
    except OSError as exc:
        raise QuantError(
            f"cannot write the routing profile {path}: {exc.strerror}; this chat's counts are lost"
        ) from exc
    return merged


def _sizes(profile: RoutingProfile) -> dict[int, int]:
    return {layer_idx: len(counts) for layer_idx, counts in profile.counts.items()}


def _describe(profile: RoutingProfile) -> str:
    sizes = _sizes(profile)
    experts = "/".join(str(size) for size in sorted(set(sizes.values())))
    return f"{len(sizes)} layers from {min(sizes, default=0)} with {experts} experts"


def _damaged(path: Path, why: str) -> QuantError:
    return QuantError(f"the routing profile {path} is damaged ({why}); delete it to start anew")


def _parse(path: Path, fields: object, model_key: str, pause: Pause) -> RoutingProfile:
    if not isinstance(fields, dict) or fields.get("kind") != KIND:
        raise QuantError(f"{path} is no routing profile; move it away, a new one is then started")
    version = fields.get("version")
    if version != VERSION:
        raise QuantError(
            f"the routing profile {path} has version {version}, and this program reads {VERSION}; "
            "update the program or delete the file"
        )
    if fields.get("model") != model_key:
        raise QuantError(
            f"the routing profile {path} is of the model {fields.get('model')}, not of "
            f"{model_key}; delete it to start anew"
        )
    num_tokens, layers = fields.get("num_tokens"), fields.get("counts")
    if not _is_count(num_tokens) or not isinstance(layers, dict):
        raise _damaged(path, "num_tokens or counts is missing or wrong")
    counts = {}
    for name, layer_counts in layers.items():
        pause()
        if not (name.isdecimal() and isinstance(layer_counts, list)):
            raise _damaged(path, f'"{name}" is no layer with a list of counts')
        if not all(_is_count(count) for count in layer_counts):
            raise _damaged(path, f"a count of layer {name} is not a number from 0 up")
        counts[int(name)] = tuple(float(count) for count in layer_counts)
    return RoutingProfile(model_key, float(num_tokens), counts)


def _is_count(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= MAX_COUNT  # NaN fails too


def _write(path: Path, profile: RoutingProfile, pause: Pause) -> None:
    """Write beside the file and rename, so that a crash leaves the old file or the new one."""
    text = _format(profile, pause)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:  # mkstemp made it 0600
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    with suppress(OSError):  # the counts are in the file: added again they would count twice
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)


def _format(profile: RoutingProfile, pause: Pause) -> str:
    """JSON with one line a layer, to be looked at."""
    head = {
        "kind": KIND,
        "version": VERSION,
        "model": profile.model_key,
        "num_tokens": round(profile.num_tokens, 3),
    }
    layers = []
    for layer_idx in sorted(profile.counts):
        pause()
        counts = [round(count, 3) for count in profile.counts[layer_idx]]
        layers.append(f'    "{layer_idx}": {json.dumps(counts)}')
    opening = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    return opening + ',\n  "counts": {\n' + ",\n".join(layers) + "\n  }\n}\n"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which stays behind: deleting it could part two processes that wait."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                if try_lock(handle):
                    break
            except OSError:  # no locks here: what two that end together count may be one's alone
                break
            if time.monotonic() > deadline:
                raise QuantError(
                    f"another process has held {path} for {LOCK_TIMEOUT_SECONDS:g} s; end it, "
                    "or this chat's counts are lost"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)
