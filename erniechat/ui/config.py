"""config.toml, a project's file and presets: settings from files, checked, with their origin."""

import json
import os
import re
import tomllib
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from erniechat.errors import UsageError
from erniechat.option import Option
from erniechat.options import OPTIONS
from erniechat.ui.settings import NEAR, Layer

SUFFIX = ".toml"
PROJECT_FILE = ".erniechat.toml"
# A project comes from others: what is kept of the user's, where it is written and what is deleted
# is not its to say.
USERS_OWN = frozenset({"discard_originals", "history", "log", "save", "session_cache"})


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
    if not path.exists():
        return Layer("config.toml", {}), []
    return _read_layer(path, "config.toml")


def project_path() -> Path | None:
    """The project's settings: the nearest file from here up to the root of the repository.

    Outside of a repository only the current folder counts. None where there is no such file.
    """
    try:
        here = Path.cwd()
    except OSError:  # the current folder was deleted
        return None
    folders = [here, *here.parents]
    root = next((folder for folder in folders if (folder / ".git").exists()), here)
    for folder in folders[: folders.index(root) + 1]:
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
    return None


def project_layer() -> tuple[Layer, list[str]]:
    """The settings of the project that the current folder is of, as `config_layer` gives them.

    A file of another user is not read, and settings that are the user's own are left out, both with
    a warning.

    Raises:
        UsageError: If the file is not TOML, or a value breaks its rule.
    """
    path = project_path()
    if path is None:
        return Layer(PROJECT_FILE, {}), []
    if path.stat().st_uid not in (os.getuid(), 0):
        return Layer(PROJECT_FILE, {}), [f"{path} belongs to another user; ignored"]
    return _read_layer(path, PROJECT_FILE, USERS_OWN)


def preset_layer(name: str) -> tuple[Layer, list[str]]:
    """The settings of a preset, as `config_layer` gives them.

    Raises:
        UsageError: If there is no such preset, or it is wrong.
    """
    folder = config_folder() / "presets"
    path = folder / f"{name}{SUFFIX}"
    if "/" in name or not path.is_file():
        names = sorted(found.stem for found in folder.glob(f"*{SUFFIX}"))
        near = get_close_matches(name, names, 1)
        known = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names) or 'none'}"
        raise UsageError(f'there is no preset "{name}" in {folder}', known)
    return _read_layer(path, f"preset {name}")


def _read_layer(
    path: Path, origin: str, forbidden: Collection[str] = ()
) -> tuple[Layer, list[str]]:
    text, data = _read_toml(path)
    values, warnings = {}, []
    for key, value in data.items():
        option = OPTIONS.get(key.replace("-", "_"))
        where = f"{path}{_line_of(key, text)}"
        if option is not None and option.name in forbidden:
            warnings.append(f"{where}: {key} is not a project's to say; it counts in config.toml")
        elif option is None:
            warnings.append(f"{where}: {_unknown(key, value)}")
        else:
            values[option.name] = _checked(option, value, f"{where}: {key}")
    return Layer(origin, values), warnings


def _read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """A file's text, and what it says.

    Raises:
        UsageError: If it cannot be read as TOML.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
        return text, tomllib.loads(text)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        bad = f"byte 0x{data[exc.start]:02x} at offset {exc.start}"
        raise UsageError(f"{path} is not UTF-8 text: {bad}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path} is not TOML: {exc}", "correct the line") from exc


def _unknown(key: str, value: Any) -> str:
    """The warning for a key that is no setting."""
    if isinstance(value, dict):
        return f"settings stand without a table; [{key}] is ignored"
    near = get_close_matches(key, OPTIONS, 1, NEAR)
    guess = f" Did you mean {near[0]}?" if near else ""
    return f"there is no setting {key}; ignored.{guess}"


def _line_of(key: str, text: str) -> str:
    """Where a key stands: ``, line 3``; nothing where that cannot be told."""
    found = re.search(rf'^[ \t]*(\[{re.escape(key)}\]|"?{re.escape(key)}"?[ \t]*[.=])', text, re.M)
    return f", line {text.count(chr(10), 0, found.start()) + 1}" if found else ""


def _checked(option: Option, value: Any, where: str) -> Any:
    """A value of TOML as the option has it.

    Raises:
        UsageError: If it is of another type or breaks the rule.
    """
    is_bool = isinstance(value, bool)
    if option.type is float and isinstance(value, int) and not is_bool:
        option.check(value, where)  # before it is a float: the message has what is written
        value = float(value)
    if not isinstance(value, option.type) or is_bool != (option.type is bool):
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        quotes = "write it without quotes" if isinstance(value, str) else ""
        raise UsageError(f'{where} must be {option.rule}, got "{shown}"', quotes)
    option.check(value, where)
    return value
