"""config.toml and presets: settings from files, each checked, each told where it comes from."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

import platformdirs

from erniechat.errors import UsageError
from erniechat.option import Option
from erniechat.options import OPTIONS
from erniechat.ui.settings import Layer

SUFFIX = ".toml"


def config_folder() -> Path:
    """Where settings are kept."""
    return platformdirs.user_config_path("erniechat")


def config_path() -> Path:
    """The user's settings; need not exist."""
    return config_folder() / "config.toml"


def config_layer() -> tuple[Layer, list[str]]:
    """The settings in config.toml, if there is one, and a warning for each key without a meaning.

    Raises:
        UsageError: If the file is not TOML, or a value breaks its rule.
    """
    path = config_path()
    if not path.is_file():
        return Layer("config.toml", {}), []
    return _read_layer(path, "config.toml")


def preset_layer(name: str) -> tuple[Layer, list[str]]:
    """The settings of a preset, as `config_layer` gives them.

    Raises:
        UsageError: If there is no such preset, or it is wrong.
    """
    folder = config_folder() / "presets"
    path = folder / f"{name}{SUFFIX}"
    if "/" in name or not path.is_file():
        names = sorted(found.stem for found in folder.glob(f"*{SUFFIX}"))
        near = difflib.get_close_matches(name, names, n=1)
        known = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names) or 'none'}"
        raise UsageError(f'there is no preset "{name}" in {folder}', known)
    return _read_layer(path, f"preset {name}")


def _read_layer(path: Path, origin: str) -> tuple[Layer, list[str]]:
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not UTF-8 text: byte at offset {exc.start}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path} is not TOML: {exc}", "correct the line") from exc
    values, warnings = {}, []
    for key, value in data.items():
        option = OPTIONS.get(key.replace("-", "_"))
        where = f"{path}{_line_of(key, text)}"
        if option is None:
            near = difflib.get_close_matches(key, OPTIONS, n=1)
            guess = f" Did you mean {near[0]}?" if near else ""
            warnings.append(f"{where}: there is no setting {key}; ignored.{guess}")
            continue
        values[option.name] = _checked(option, value, f"{where}: {key}")
    return Layer(origin, values), warnings


def _line_of(key: str, text: str) -> str:
    """Where a key stands: ``, line 3``; nothing where that cannot be told."""
    found = re.search(rf'^[ \t]*"?{re.escape(key)}"?[ \t]*[.=]', text, re.M)
    return f", line {text.count(chr(10), 0, found.start()) + 1}" if found else ""


def _checked(option: Option, value: Any, where: str) -> Any:
    """A value of TOML as the option has it.

    Raises:
        UsageError: If it is of another type or breaks the rule.
    """
    is_bool = isinstance(value, bool)
    if option.type is float and isinstance(value, int) and not is_bool:
        value = float(value)
    if not isinstance(value, option.type) or is_bool != (option.type is bool):
        raise UsageError(f'{where} must be {option.rule}, got "{value}"')
    option.check(value, where)
    return value
