"""Routing profiles of models: where they are kept, what they say, and what a chat adds to them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from torch import Tensor

from erniechat.engine import Engine
from erniechat.errors import ErnieChatError, UsageError
from erniechat.model.config import ModelConfig
from erniechat.options import LoadOptions
from erniechat.planning import make_plan
from erniechat.resolve import locate
from quant.errors import QuantError
from quant.experts.profile import RoutingProfile, add_to_profile, load_profile, profile_path

Warn = Callable[[str], None]
PAUSE_SECONDS = 1e-4  # of the thread that writes, between layers: enough for another to wake up


def profile_folder() -> Path:
    """Where routing profiles are kept."""
    return platformdirs.user_state_path("erniechat") / "profiles"


def known_profile(model_key: str, warn: Warn) -> RoutingProfile | None:
    """A model's profile; None if there is none, or with a warning if it cannot be used.

    Args:
        model_key: The checkpoint's fingerprint.
        warn: Told, in one line, what is wrong with the file.
    """
    try:
        return load_profile(profile_path(profile_folder(), model_key), model_key)
    except QuantError as exc:
        warn(str(exc))
        return None


class ProfileKeeper:
    """Adds what a process routes to its model's profile: after each turn, and the rest at the end.

    A turn's end waits for no disk: it takes the counts, and a thread writes. What was written once
    is not counted again, and what could not be is written with the next turn's, or at the end.

    Args:
        model_key: The checkpoint's fingerprint.
        warn: Told at the end, in one line, why counts are lost.
    """

    def __init__(self, model_key: str, warn: Warn) -> None:
        self._model_key = model_key
        self._warn = warn
        self._kept = _Routed(0, None)
        self._writer: threading.Thread | None = None

    def turn_ended(self, engine: Engine) -> None:
        """Begin to write what was routed since the last time; the next turn's, if that goes on."""
        if self._writer is not None and self._writer.is_alive():
            return
        now, path = _routed(engine), profile_path(profile_folder(), self._model_key)

        def pause() -> None:
            time.sleep(PAUSE_SECONDS)

        def write() -> None:
            pause()
            with suppress(QuantError):  # tried again later; the end tells
                self._add(path, now, pause)

        writer = threading.Thread(target=write, name="profile-writer", daemon=True)
        with suppress(RuntimeError):  # the system gives no thread: written at the end
            writer.start()
            self._writer = writer

    def close(self, engine: Engine) -> None:
        """Write what is not written yet."""
        if self._writer is not None:
            self._writer.join()
        try:
            self._add(profile_path(profile_folder(), self._model_key), _routed(engine))
        except QuantError as exc:
            self._warn(str(exc))

    def _add(self, path: Path, now: "_Routed", pause: Callable[[], None] = lambda: None) -> None:
        news = now.since(self._kept, self._model_key)
        if news is not None:
            add_to_profile(path, news, pause=pause)
            self._kept = now


@dataclass(frozen=True, slots=True)
class _Routed:
    """What a process has routed since its start.

    Attributes:
        num_tokens: Tokens computed.
        counts: int64 ``[num_layers, num_experts]``; None before the first token.
        layers: Those with routed experts.
    """

    num_tokens: int
    counts: Tensor | None
    layers: Sequence[int] = ()

    def since(self, before: "_Routed", model_key: str) -> RoutingProfile | None:
        """What came after before; None if no token did, or there are no routed experts."""
        num_tokens = self.num_tokens - before.num_tokens
        if self.counts is None or not self.layers or num_tokens <= 0:
            return None
        news = self.counts if before.counts is None else self.counts - before.counts
        rows = {i: tuple(news[i].tolist()) for i in self.layers}
        return RoutingProfile(model_key, num_tokens, rows)


def _routed(engine: Engine) -> _Routed:
    layers = tuple(engine.decoder.config.moe_layers)
    return _Routed(engine.num_tokens_seen, engine.decoder.experts.counts.clone(), layers)


def _model(options: LoadOptions) -> tuple[str, ModelConfig]:
    """A model's fingerprint and shape.

    Raises:
        ModelError: If it cannot be had or read.
        UsageError: If it has no routed experts.
    """
    plan = make_plan(locate(options), options)
    if not plan.config.moe_layers:
        raise UsageError(f"{options.model} has no routed experts, so it has no routing profile")
    return plan.fingerprint, plan.config


def facts(options: LoadOptions) -> dict[str, Any]:
    """What is known of a model's routing, as JSON has it; without a profile all counts are 0.

    Raises:
        ErnieChatError: If the model or its profile cannot be read.
    """
    model_key, config = _model(options)
    with _translated():
        profile = load_profile(profile_path(profile_folder(), model_key), model_key)
    counts = dict.fromkeys(config.moe_layers, (0.0,) * config.num_experts)
    return {
        "model": options.model,
        "revision": model_key,
        "num_tokens": profile.num_tokens if profile else 0.0,
        "counts": {str(i): list((profile.counts if profile else counts)[i]) for i in counts},
    }


def forget(options: LoadOptions) -> str:
    """Delete a model's profile; what was done, in words.

    Raises:
        ErnieChatError: If it cannot be deleted.
    """
    path = profile_path(profile_folder(), _model(options)[0])
    try:
        path.unlink()
    except FileNotFoundError:
        return f"{options.model} had no routing profile"
    except OSError as exc:
        raise ErnieChatError(f"cannot delete {path}: {exc.strerror}") from exc
    return f"forgot the routing profile of {options.model}"


def export(options: LoadOptions, file: str) -> str:
    """Write a model's profile to a file; what was done, in words.

    Raises:
        UsageError: If there is none, or the file cannot be written.
    """
    path = profile_path(profile_folder(), _model(options)[0])
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{options.model} has no routing profile", "erniechat profile calibrate makes one"
        ) from None
    except OSError as exc:
        raise ErnieChatError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        Path(file).write_bytes(data)
    except OSError as exc:
        raise UsageError(f"cannot write {file}: {exc.strerror}") from exc
    return f"wrote the routing profile of {options.model} to {file}"


def bring_in(options: LoadOptions, file: str) -> str:
    """Take a profile from a file in the place of the model's own; what was done, in words.

    Raises:
        UsageError: If there is no such file.
        ErnieChatError: If it is damaged, or of another model.
    """
    model_key, config = _model(options)
    with _translated():
        profile = load_profile(Path(file), model_key)
        if profile is None:
            raise UsageError(f"there is no file {file}")
        sizes = {i: len(row) for i, row in profile.counts.items()}
        if sizes != dict.fromkeys(config.moe_layers, config.num_experts):
            raise UsageError(f"{file} has other layers and experts than {options.model}")
        path = profile_path(profile_folder(), model_key)
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise ErnieChatError(f"cannot replace {path}: {exc.strerror}") from exc
        add_to_profile(path, profile)
    return f"{options.model} now has the routing profile in {file}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except QuantError as exc:
        raise UsageError(str(exc)) from exc
