"""The tools file: what the model may call, and which local command stands behind each tool.

    {"tools": [{"type": "function", "function": {"name": "get_weather", …}}],
     "commands": {"get_weather": ["./weather", "--json"]},
     "allow": ["get_weather"]}

``commands`` counts with --run-tools only, ``allow`` with --yes only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erniechat.chat.tools import check_tools
from erniechat.errors import UsageError
from erniechat.paths import user_path
from erniechat.ui.inputs import decode


@dataclass(frozen=True, slots=True)
class ToolCommand:
    """The command of a tool: program and arguments, and whether it may run without a question."""

    argv: tuple[str, ...]
    is_allowed: bool = False


@dataclass(frozen=True, slots=True)
class ToolFile:
    """What a tools file says."""

    tools: tuple[dict[str, Any], ...] = ()
    commands: Mapping[str, ToolCommand] = field(default_factory=dict)


def read_tool_file(path: str | None, *, yes: bool = False) -> ToolFile:
    """The tools in a file: a list of functions, or an object as above.

    Args:
        path: The file; None is no tools.
        yes: Whether the commands that the file allows need no question.

    Raises:
        UsageError: If the file cannot be read or breaks a rule.
    """
    if path is None:
        return ToolFile()
    source = f'--tools "{path}"'
    try:
        data = json.loads(decode(user_path(path).read_bytes(), source))
    except OSError as exc:
        raise UsageError(f"cannot read {source}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{source} is not JSON: {' '.join(str(exc).split())}") from exc
    if isinstance(data, Mapping) and "tools" not in data:
        data = [data]
    tools = tuple(check_tools(data, source=source))
    names = {tool["function"]["name"] for tool in tools}
    extra = data if isinstance(data, Mapping) else {}
    allowed = _allowed(extra.get("allow", []), names, source) if yes else set()
    if yes and not allowed:
        raise UsageError(f"--yes needs an allow list in {source}", '"allow": ["NAME"]')
    commands = {
        name: ToolCommand(_argv(argv, f'{source}: command of "{name}"'), name in allowed)
        for name, argv in _commands(extra, names, source)
    }
    return ToolFile(tools, commands)


def _commands(
    extra: Mapping[str, Any], names: set[str], source: str
) -> Sequence[tuple[str, object]]:
    commands = extra.get("commands", {})
    if not isinstance(commands, Mapping):
        raise UsageError(f"{source}: commands must be an object", '"commands": {"NAME": ["…"]}')
    for name in commands:
        if name not in names:
            raise UsageError(f'{source}: there is no tool "{name}" to run a command for')
    return list(commands.items())


def _argv(value: object, where: str) -> tuple[str, ...]:
    is_list = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
    if not is_list:
        raise UsageError(f"{where} must be a list of texts", '["program", "argument"]; no shell')
    return tuple(value)  # type: ignore[arg-type]  # checked above


def _allowed(value: object, names: set[str], source: str) -> set[str]:
    if not isinstance(value, list) or not all(name in names for name in value):
        raise UsageError(f"{source}: allow must be a list of names of its tools")
    return set(value)
