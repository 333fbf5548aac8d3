"""Tab in the shell: the script for it, and the values that it asks this program for."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erniechat.errors import UsageError
from erniechat.options import OPTIONS
from erniechat.ui.parser import Parser

ASK = "__complete"  # the word after which the script asks for values
# What each flag's values are; a shell function of that name asks for them.
VALUES = {"--model": "models", "--resume": "sessions", "--preset": "presets"}


def completion_script(parser: Parser, shell: str) -> str:
    """The script that a shell reads.

    Raises:
        UsageError: If shtab is not installed.
    """
    try:
        import shtab
    except ImportError as exc:
        raise UsageError(
            "--completion needs shtab, which is not installed",
            "pip install 'erniechat[completion]'",
        ) from exc
    preamble = {"bash": "", "zsh": "", "tcsh": ""}
    for kind in VALUES.values():
        ask = f"$(erniechat {ASK} {kind} 2>/dev/null)"
        preamble["bash"] += f'_erniechat_{kind}() {{ compgen -W "{ask}" -- "$1"; }}\n'
        preamble["zsh"] += f'_erniechat_{kind}() {{ compadd -- ${{(f)"{ask}"}} }}\n'
    for action in parser._actions:
        option = OPTIONS.get(action.dest)
        if option is not None and option.spec.choices:
            action.choices = option.spec.choices
        complete = _values_of(action, shtab.FILE)
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]  # where shtab looks
    return str(shtab.complete(parser, shell, preamble=preamble.get(shell, ""))) + "\n"


def _values_of(action: argparse.Action, file: Any) -> Any:
    kind = next((VALUES[flag] for flag in action.option_strings if flag in VALUES), "")
    if kind:
        return {"bash": f"_erniechat_{kind}", "zsh": f"_erniechat_{kind}", "tcsh": "n/*//"}
    return file if "FILE" in str(action.metavar) else None


def possible_values(kind: str, environ: Mapping[str, str]) -> list[str]:
    """The values of a kind: models on this machine, saved sessions, presets.

    Args:
        kind: One of VALUES' kinds; any other has no values.
        environ: The environment, which says where the hub's cache is.
    """
    if kind == "models":
        return ["mini", *_cached_models(environ)]
    if kind == "sessions":
        from erniechat.chat.sessions import session_paths

        return [path.stem for path in session_paths()]
    if kind == "presets":
        from erniechat.ui.config import SUFFIX, config_folder

        return sorted(path.stem for path in (config_folder() / "presets").glob(f"*{SUFFIX}"))
    return []


def _cached_models(environ: Mapping[str, str]) -> list[str]:
    """Models in the hub's cache. Its library would say so too, and takes 0.4 s to import."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    folder = Path(environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    found = folder.glob("models--*") if folder.is_dir() else ()
    return sorted(path.name.removeprefix("models--").replace("--", "/") for path in found)
