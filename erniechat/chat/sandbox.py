"""Where chat templates run: Jinja's immutable sandbox with transformers' settings, and bounds."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Longest text or list that one multiplication may make, and largest number of one power.
MAX_REPEATED = 1_000_000
MAX_POWER_BITS = 4096


class TemplateRefusal(TemplateError):
    """The template itself said, by ``raise_exception``, that it cannot render the messages."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with bounded ``*`` and ``**``; ``range`` is bounded by Jinja (100,000).

    Intercepted operators are also not computed by the compiler, which would else hang on
    ``9 ** (9 ** 9)`` before anything is rendered.
    """

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    _bound(len(sequence) * times, MAX_REPEATED, "a repeated text or list")
        elif isinstance(left, int) and isinstance(right, int):
            _bound(left.bit_length() * right, MAX_POWER_BITS, "a power")
        return super().call_binop(context, operator, left, right)


class _Namespace(Namespace):
    """Jinja's namespace without underscored attributes, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def make_environment() -> ImmutableSandboxedEnvironment:
    """A fresh environment for one template.

    Source: huggingface/transformers, src/transformers/utils/chat_template_utils.py; templates are
    written against its settings.
    """
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = _make_dict
    # Text without end for the asking, and of no use in a prompt.
    environment.globals.pop("lipsum", None)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: Jinja's own filter escapes HTML and non-ASCII."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
    """``dict(…)`` without the class, whose attributes are none of a template's business."""
    return dict(*args, **kwargs)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}")


def _bound(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise SecurityError(f"{what} of {size} is over the limit of {limit}")
