"""One setting: what its values must satisfy, how it is explained, and how a text becomes one."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any

from erniechat import sizes
from erniechat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Spec:
    """What a setting's values must satisfy and how it is explained."""

    help: str
    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    live: bool = False
    is_size: bool = False


def setting(default: Any, help: str, **spec: Any) -> Any:
    """A dataclass field that is a setting."""
    return dataclasses.field(default=default, metadata={"spec": Spec(help, **spec)})


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table: a setting, where it lives, its type and its rule."""

    name: str
    owner: type
    type: type
    default: Any
    spec: Spec

    @property
    def flag(self) -> str:
        """The long command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "ERNIECHAT_" + self.name.upper()

    @property
    def rule(self) -> str:
        """What values are allowed, in words."""
        if self.spec.choices:
            return "one of " + ", ".join(self.spec.choices)
        if self.spec.is_size:
            return sizes.RULE
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        parts = [kind[self.type]]
        if self.spec.above is not None:
            parts.append(f"above {_number(self.spec.above)}")
        if self.spec.low is not None:
            parts.append(f"at least {_number(self.spec.low)}")
        if self.spec.high is not None:
            parts.append(f"at most {_number(self.spec.high)}")
        return parts[0] + (" " + " and ".join(parts[1:]) if parts[1:] else "")

    def check(self, value: Any, source: str = "") -> None:
        """Refuse a value that the rule forbids.

        Args:
            value: A value of the option's type.
            source: What the message calls the setting; the flag if empty.

        Raises:
            UsageError: With the source, the value and the rule.
        """
        if self.breaks_rule(value):
            raise UsageError(f'{source or self.flag} must be {self.rule}, got "{value}"')

    def breaks_rule(self, value: Any) -> bool:
        """Whether the rule forbids a value of the option's type."""
        spec = self.spec
        wrong = bool(spec.choices) and value not in spec.choices
        wrong = wrong or (spec.is_size and not sizes.is_size(value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            wrong = wrong or not math.isfinite(value)
            wrong = wrong or (spec.low is not None and value < spec.low)
            wrong = wrong or (spec.high is not None and value > spec.high)
            wrong = wrong or (spec.above is not None and value <= spec.above)
        return wrong

    def parse(self, text: str, source: str = "") -> Any:
        """The value that a text stands for.

        Args:
            text: As typed.
            source: What the message calls the setting; the flag if empty.

        Raises:
            UsageError: With the source, the text and the rule.
        """
        value: Any = text
        if self.type is bool:
            value = {"1": True, "true": True, "yes": True, "on": True}.get(text.lower())
            if value is None and text.lower() in ("0", "false", "no", "off", ""):
                value = False
        elif self.type in (int, float):
            try:
                value = self.type(text)
            except ValueError:
                value = None
        if value is None or self.breaks_rule(value):
            raise UsageError(f'{source or self.flag} must be {self.rule}, got "{text}"')
        return value


def _number(value: float) -> str:
    """A limit in full: 16, 0.5, 9223372036854775807."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def plain_type(annotation: Any) -> type:
    """The type behind ``X`` or ``X | None``."""
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return typing.cast(type, annotation)
