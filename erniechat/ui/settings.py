"""The settings in force, merged from layers, each remembered with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from erniechat.options import (
    OPTIONS,
    ChatOptions,
    DisplayOptions,
    LoadOptions,
    SamplingOptions,
    build,
)

if TYPE_CHECKING:  # saves --help the time of importing it
    from erniechat.chat.conversation import ThinkMode

BUILT_IN = "built-in"
PREFIX = "ERNIECHAT_"
NEAR = 0.7  # of difflib's ratio: "temprature" is temperature, "preset" is not seed
NOT_SETTINGS = {"ERNIECHAT_DEBUG"}


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings that one place gives: a name for the user ("flag"), and parsed values."""

    origin: str
    values: Mapping[str, Any]


@dataclass(slots=True)
class Settings:
    """Values by option name, and the origin of each that is not built in."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def load(self) -> LoadOptions:
        """Which model, and how it is held."""
        return build(LoadOptions, self.values)

    @property
    def sampling(self) -> SamplingOptions:
        """How tokens are chosen; None is the checkpoint's own."""
        return build(SamplingOptions, self.values)

    @property
    def display(self) -> DisplayOptions:
        """What is shown, and how."""
        return build(DisplayOptions, self.values)

    @property
    def chat(self) -> ChatOptions:
        """The conversation: system prompt, what is kept, what does not fit."""
        return build(ChatOptions, self.values)

    @property
    def think(self) -> ThinkMode:
        """Whether the model is to think."""
        mode: ThinkMode = self.display.think  # type: ignore[assignment]  # checked by its choices
        return mode

    def origin(self, name: str) -> str:
        """Where a setting's value comes from."""
        return self.origins.get(name, BUILT_IN)

    def set(self, name: str, value: Any, origin: str) -> None:
        """Put one value in force."""
        self.values[name] = value
        self.origins[name] = origin

    def unset(self, name: str) -> None:
        """Go back to the built-in or the checkpoint's own value."""
        self.values.pop(name, None)
        self.origins.pop(name, None)


def merge_layers(layers: Sequence[Layer]) -> Settings:
    """Settings from layers, the weakest first; a later layer wins.

    Raises:
        UsageError: If the merged values break a rule.
    """
    settings = Settings()
    for layer in layers:
        for name, value in layer.values.items():
            settings.set(OPTIONS[name].name, value, layer.origin)
    return settings


def environment_layer(environ: Mapping[str, str]) -> tuple[Layer, str]:
    """The settings that ERNIECHAT_* variables give, and a warning, empty if all are known.

    An empty variable counts as not set. ERNIECHAT_NO_SAVE=1 is ERNIECHAT_SAVE=0, and so for every
    yes-or-no setting. ACCESSIBLE, a convention of many programs, asks for the screen reader's mode.

    Raises:
        UsageError: With the variable, the value and the rule.
    """
    values: dict[str, Any] = {"screen_reader": True} if environ.get("ACCESSIBLE") else {}
    known = set(NOT_SETTINGS)
    for option in OPTIONS.values():
        negative = option.variable.replace(PREFIX, PREFIX + "NO_")
        if option.type is bool:
            known.add(negative)
            if environ.get(negative):
                values[option.name] = not option.parse(environ[negative], negative)
        known.add(option.variable)
        if environ.get(option.variable):
            values[option.name] = option.parse(environ[option.variable], option.variable)
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    warning = f"unknown environment variable {', '.join(unknown)}; ignored" if unknown else ""
    names = sorted(name.removeprefix(PREFIX) for name in known)
    near = get_close_matches(unknown[0].removeprefix(PREFIX), names, 1, NEAR) if unknown else []
    if near:
        warning += f". Did you mean {PREFIX}{near[0]}?"
    return Layer("environment", values), warning
