"""The settings in force, merged from layers, each remembered with where it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erniechat.options import (
    OPTIONS,
    DisplayOptions,
    LoadOptions,
    SamplingOptions,
    build,
)

BUILT_IN = "built-in"


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
