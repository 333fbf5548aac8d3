"""Routing profiles of models: where they are kept, what they say, and what a chat adds to them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from erniechat.engine import Engine
from quant.errors import QuantError
from quant.experts.profile import RoutingProfile, add_to_profile, load_profile, profile_path

Warn = Callable[[str], None]


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


def session_profile(engine: Engine, model_key: str) -> RoutingProfile | None:
    """What this process has routed; None without experts or tokens."""
    counts = engine.decoder.experts.counts
    layers: Mapping[int, tuple[float, ...]] = {
        i: tuple(counts[i].tolist()) for i in engine.decoder.config.moe_layers
    }
    if not layers or not engine.num_tokens_seen:
        return None
    return RoutingProfile(model_key, engine.num_tokens_seen, layers)


def keep_profile(engine: Engine, model_key: str, warn: Warn) -> None:
    """Add the routing counts of this process to the model's profile."""
    session = session_profile(engine, model_key)
    if session is None:
        return
    try:
        add_to_profile(profile_path(profile_folder(), model_key), session)
    except QuantError as exc:
        warn(str(exc))
