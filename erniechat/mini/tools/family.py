"""Family: one sort of tool in many spellings, with its requests and results."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from erniechat.mini.skills.knowledge import Facts

Result = Callable[[Random, Facts, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sort of tool.

    Attributes:
        slot: Its name in the request templates.
        kind: The kind of value, a key of `VALUES`.
        names: Names it can have in a schema.
        texts: Descriptions it can have.
        type: Its JSON type.
        enum: The schema lists the values.
        optional: A schema may lack it, and a request need not name it.
    """

    slot: str
    kind: str
    names: list[str]
    texts: list[str]
    type: str = "string"
    enum: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """One sort of tool.

    Attributes:
        names: Names that the tool can have.
        texts: Descriptions that it can have.
        params: Its parameters.
        asks: Requests that name every required slot (and perhaps optional ones).
        results: Functions from the arguments, by slot, to what the tool returns.
        topic: Beginning of the answer, with slots.
    """

    names: list[str]
    texts: list[str]
    params: list[Parameter]
    asks: list[str]
    results: list[Result]
    topic: str


def parameter(
    slot: str,
    kind: str,
    names: str,
    texts: str = "",
    type: str = "string",
    *,
    enum: bool = False,
    optional: bool = False,
) -> Parameter:
    """A parameter from a short notation: names split by spaces, texts by bars."""
    split_texts = [text for text in texts.split("|") if text] or [slot]
    return Parameter(slot, kind, names.split(), split_texts, type, enum, optional)


def calculate(expression: str) -> int | float:
    """The value of 'a op b' with whole numbers; a quotient to two decimals."""
    left_text, operator, right_text = expression.split()
    left, right = int(left_text), int(right_text)
    if operator == "/":
        return left // right if left % right == 0 else round(left / right, 2)
    return {"+": left + right, "-": left - right, "*": left * right}[operator]
