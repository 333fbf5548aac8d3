"""Tab in the shell: the script for it, and the values that it asks this program for."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erniechat.errors import UsageError
from erniechat.options import OPTIONS
from erniechat.ui.parser import Parser

ASK = "__complete"  # the word after which the script asks for values
SHELLS = ("bash", "zsh", "fish", "tcsh")
# What each flag's values are; a shell function of that name asks for them.
VALUES = {"--model": "models", "--resume": "sessions", "--preset": "presets"}
WORDS = "words"  # the kind of what is no flag: commands, and what follows them
COPY_WORDS = (["cache", "rm"], ["cache", "verify"])  # after which copies are named
# The word before the one that is completed, and those before that, in each shell.
_BEFORE = {
    "bash": '"${COMP_WORDS[@]:1:COMP_CWORD-1}"',
    "zsh": "${words[2,CURRENT-1]}",
    "fish": "(commandline -opc)[2..-1]",
}

# What shtab's script for zsh gets wrong: `source FILE` does not register, where `eval` does; and
# words beyond the first are not completed.
_CORRECTIONS = (
    ("$zsh_eval_context[-1] == eval ", "$zsh_eval_context[-1] == (eval|file) "),
    ('"(*)::a command, or text:', '"*:a command, or text:'),
    ("_shtab_erniechat_defaults_added=0", "_shtab_erniechat_defaults_added=1"),
)


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
    for action in parser._actions:
        option = OPTIONS.get(action.dest)
        if option is not None and option.spec.choices:
            action.choices = option.spec.choices
        complete = _values_of(action, shtab.FILE)
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]  # where shtab looks
        if action.dest == WORDS:
            action.help = "a command, or text"  # what has no help, shtab leaves out
    script = str(shtab.complete(parser, shell, preamble=_preamble(shell)))
    for theirs, ours in _CORRECTIONS:
        script = script.replace(theirs, ours)
    return script + "\n"


def _preamble(shell: str) -> str:
    """The shell functions that ask for values, one for each kind."""
    functions = {
        "bash": '{name}() {{ compgen -W "$({ask})" -- "$1"; }}\n',
        "zsh": '{name}() {{ compadd -- ${{(f)"$({ask})"}} }}\n',
        "fish": "function {name}; {ask}; end\n",
    }
    if shell not in functions:
        return ""
    lines = []
    for kind in (*VALUES.values(), WORDS):
        ask = f"erniechat {ASK} {kind} {_BEFORE[shell] if kind == WORDS else ''} 2>/dev/null"
        lines.append(functions[shell].format(name=f"_erniechat_{kind}", ask=ask))
    return "".join(lines)


def _values_of(action: argparse.Action, file: Any) -> Any:
    kind = next((VALUES[flag] for flag in action.option_strings if flag in VALUES), "")
    if action.dest == WORDS:
        kind = WORDS
    if kind:
        function = f"_erniechat_{kind}"
        return {"bash": function, "zsh": function, "fish": f"({function})", "tcsh": "n/*//"}
    return file if "FILE" in str(action.metavar) else None


def possible_values(
    kind: str,
    environ: Mapping[str, str],
    before: Sequence[str] = (),
    kept: Callable[[str], list[str]] = lambda action: [],
) -> list[str]:
    """The values of a kind: models on this machine, sessions, presets, or what follows words.

    Args:
        kind: One of VALUES' kinds or WORDS; any other has no values.
        environ: The environment, which says where the hub's cache is.
        before: Of WORDS, those that stand before on the command line.
        kept: Names what `cache rm` or `cache verify` may be given.
    """
    if kind == WORDS:
        words = [word for word in before if not word.startswith("-")]
        return kept(words[1]) if words in COPY_WORDS else _next_words(words, environ)
    if kind == "models":
        return ["mini", *_cached_models(environ)]
    if kind == "sessions":
        from erniechat.chat.sessions import session_paths

        return [path.stem for path in session_paths()]
    if kind == "presets":
        from erniechat.ui.config import SUFFIX, config_folder

        return sorted(path.stem for path in (config_folder() / "presets").glob(f"*{SUFFIX}"))
    return []


def _next_words(before: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """What may follow the words of a command line."""
    from erniechat.ui.subcommands import HELPERS, MODEL_COMMANDS

    commands = ["bench", *HELPERS, *MODEL_COMMANDS]
    match list(before):
        case []:
            return [*commands, "help"]
        case ["help"]:
            return commands
        case [command] if command in MODEL_COMMANDS:
            return possible_values("models", environ)
        case [command] if command in HELPERS:
            return [action for action in HELPERS[command] if action]
        case ["sessions", "show" | "rm"]:
            return possible_values("sessions", environ)
    return []


def _cached_models(environ: Mapping[str, str]) -> list[str]:
    """Models in the hub's cache. Its library would say so too, and takes 0.4 s to import."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    folder = Path(environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    found = folder.glob("models--*") if folder.is_dir() else ()
    return sorted(path.name.removeprefix("models--").replace("--", "/") for path in found)
