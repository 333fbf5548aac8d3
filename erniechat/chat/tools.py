"""Tool schemas: OpenAI's function format, checked, in the one form that templates read."""

import json
from collections.abc import Mapping
from typing import Any

from erniechat.errors import UsageError

_FORM = '[{"type": "function", "function": {"name": "…", "parameters": {…}}}]'


def check_tools(data: object, *, source: str = "tools") -> list[dict[str, Any]]:
    """The tools of a parsed JSON value.

    Args:
        data: A list of ``{"type": "function", "function": {…}}``, a list of bare functions
            ``{"name": …, "parameters": …}``, or ``{"tools": [one of these lists]}``.
        source: Where it came from; error messages begin with it.

    Returns:
        Each tool as ``{"type": "function", "function": {…}}``, keys and order as they were.

    Raises:
        UsageError: If the value is no list of tools, a tool is no function, or a name comes twice.
    """
    if isinstance(data, Mapping):
        data = data.get("tools", data)
    if not isinstance(data, list):
        raise UsageError(f"{source}: must be a list of tools, got {_kind(data)}", f"write {_FORM}")
    tools = [_tool(item, f"{source}: tool {idx + 1}") for idx, item in enumerate(data)]
    names = [tool["function"]["name"] for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f'{source}: the name "{name}" comes {names.count(name)} times',
                "give each tool a name of its own",
            )
    return tools


def _tool(item: object, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise UsageError(f"{where} must be an object, got {_kind(item)}", f"write {_FORM}")
    function = item
    if "function" in item:
        if item.get("type", "function") != "function":
            raise UsageError(
                f'{where} must be of type "function", got {json.dumps(item["type"])}',
                "models call functions only; leave others out",
            )
        function = item["function"]
    if not isinstance(function, dict):
        raise UsageError(f"{where}: function must be an object, got {_kind(function)}", _FORM)
    _check_function(function, where)
    return {"type": "function", "function": function}


def _check_function(function: Mapping[str, Any], where: str) -> None:
    name = function.get("name")
    # Templates write the name between quotes without escaping it.
    if not isinstance(name, str) or not name or any(c in '"\\<>' or c <= " " for c in name):
        got = json.dumps(name, ensure_ascii=False)[:60] if "name" in function else "none"
        raise UsageError(
            f"{where}: name must be text without spaces, quotes, backslashes or angle brackets, "
            f"got {got}",
            'give it one, such as "get_weather"',
        )
    for key, kind, word in (("description", str, "text"), ("parameters", dict, "an object")):
        if key in function and not isinstance(function[key], kind):
            raise UsageError(
                f'{where} ("{name}"): {key} must be {word}, got {_kind(function[key])}',
                "correct it, or leave it out",
            )


def _kind(value: object) -> str:
    """What a JSON value is, in the words of JSON."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
