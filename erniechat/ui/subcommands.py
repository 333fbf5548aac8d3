"""The commands beside the chat: `bench`, and those that need no model."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from erniechat.errors import UsageError
from erniechat.options import (
    OPTIONS,
    BenchOptions,
    ChatOptions,
    DisplayOptions,
    LoadOptions,
    SamplingOptions,
)
from erniechat.ui.parser import (
    Parser,
    add_other,
    add_setting,
    add_settings,
    new_parser,
    parse,
)

BENCH_USAGE = "erniechat bench [options]"

# Each command's actions, and what follows each: nothing, or one name.
HELPERS: dict[str, dict[str, str]] = {
    "sessions": {"ls": "", "show": "ID", "rm": "ID"},
    "config": {"path": "", "show": ""},
    "cache": {"ls": "", "rm": "NAME", "verify": "NAME"},
    "info": {"": ""},
    "profile": {"show": "", "calibrate": "", "reset": "", "export": "FILE", "import": "FILE"},
    "doctor": {"": ""},
}
# Those that are about one model, and take its settings.
OF_A_MODEL = ("profile", "doctor")
# What may have been meant by a word that these do not take.
_INSTEAD = {
    "info": "erniechat plan MODEL tells of a model; ",
    "config": "erniechat config path names the file to write settings into; ",
}

_ABOUT = {
    "sessions": "Saved conversations: list them, print one, delete one.",
    "config": "Where settings come from: the files, or each value with its source. With any flags"
    " of the chat, --preset too, it shows what they would do.",
    "cache": "What is kept to start sooner, quantized copies of models and what was read of saved"
    " conversations: list or delete it (rm all; rm sessions for the latter), check copies.",
    "info": "Devices, kernels and why not, versions, folders.",
    "doctor": "Measures what RAM, bus and disk read a second, and says how fast a model would be.",
    "profile": "How often a model chose each of its experts: what decides which are kept in fast"
    " memory. Show it as a map, learn it in a minute, forget it, or move it to another machine.",
}


def bench_parser() -> Parser:
    """The parser of `erniechat bench`."""
    parser = new_parser(BENCH_USAGE, "")
    add = parser.add_argument_group("what to measure").add_argument
    add("-p", "--prompt-tokens", metavar="N", help="tokens to read (default 512)")
    add("-n", "--new-tokens", metavar="N", help="tokens to write (default 128)")
    add("-r", "--runs", metavar="N", help="timed runs, after one that is not counted (default 5)")
    add("--synthetic", metavar="CONFIG_DIR", help="random weights of the shape in this folder")
    add("--layers", metavar="N", help="only this many layers of the synthetic model")
    add("--quality", metavar="FILE", help="measure perplexity on this text")
    add("--ab", metavar="NAME=VALUE,…", help="run in turns with these settings and without")
    add("--json", action="store_true", help="print one JSON object")
    add_settings(parser, "model", LoadOptions)
    add_other(parser)
    return parser


def parse_bench(argv: Sequence[str]) -> tuple[argparse.Namespace, BenchOptions, str]:
    """What `erniechat bench` is to measure; and its help page, if that was asked for.

    Raises:
        UsageError: For a wrong flag, number or word.
    """
    parser = bench_parser()
    known, words = parse(parser, argv)
    if known.help:
        return known, BenchOptions(), parser.format_help()
    if words:
        raise UsageError(f'erniechat bench takes no text, got "{words[0]}"')
    numbers: dict[str, Any] = {}
    for name in ("prompt_tokens", "new_tokens", "runs", "layers"):
        if (text := getattr(known, name)) is not None:
            if not re.fullmatch(r"[+-]?\d+", text):
                flag = "--" + name.replace("_", "-")
                raise UsageError(f'{flag} must be a whole number at least 1, got "{text}"')
            numbers[name] = int(text)
    bench = BenchOptions(
        synthetic=known.synthetic,
        quality=known.quality,
        ab=known.ab,
        json=known.json,
        **numbers,
    )
    return known, bench, ""


# Commands on a model: what each takes after its name, and what it is for.
MODEL_COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "plan": (("MODEL",), "What a start would fetch, keep and use here, and whether it fits."),
    "export": (
        ("MODEL", "FOLDER"),
        "Write a model as a checkpoint that transformers and bitsandbytes load.",
    ),
}


def parse_model_command(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], str]:
    """A command on a model: its flags, its words, and its help page if that was asked for.

    Raises:
        UsageError: For a wrong flag, or a word too many or too few.
    """
    command, *rest = argv
    names, about = MODEL_COMMANDS[command]
    parser = new_parser(f"erniechat {command} {' '.join(names)} [options]", about)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    if command == "plan":
        parser.add_argument_group("output").add_argument(
            "--json", action="store_true", help="as JSON"
        )
    add_settings(parser, "model", LoadOptions)
    add_other(parser)
    known, words = parse(parser, rest)
    if known.help:
        return known, [], parser.format_help()
    if len(words) != len(names):
        raise UsageError(f"erniechat {command} takes {' and '.join(names)}, got {len(words)} words")
    return known, words, ""


def _add_hidden_settings(parser: Parser) -> None:
    """All flags of the chat's settings, so that config shows what they would do."""
    for owner in (ChatOptions, DisplayOptions, LoadOptions, SamplingOptions):
        add_settings(parser, "settings", owner)
    parser.add_argument("--preset", metavar="NAME")
    for action in parser._actions:
        if action.dest != "json":
            action.help = argparse.SUPPRESS


def _helper_parser(command: str) -> Parser:
    forms = [f"{action} {name}".strip() for action, name in HELPERS[command].items()]
    usage = " | ".join(forms)
    parser = new_parser(f"erniechat {command} {usage}".rstrip(), _ABOUT[command])
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="as JSON")
    if command == "config":
        _add_hidden_settings(parser)
    if command in OF_A_MODEL:
        for name in ("plain", "color"):
            add_setting(output, OPTIONS[name])
        add_settings(parser, "model", LoadOptions)
    add_other(parser)
    return parser


def parse_helper(argv: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...], str]:
    """A command beside the chat: its flags, its words, and its help page if that was asked for.

    Raises:
        UsageError: For an unknown action, or a name too many or too few.
    """
    command, *rest = argv
    parser = _helper_parser(command)
    known, words = parse(parser, rest)
    if known.help:
        return known, (), parser.format_help()
    actions = HELPERS[command]
    default = next(iter(actions))
    action, *names = words or [default]
    if action not in actions or (not default and words):
        known_actions = ", ".join(filter(None, actions)) or "no words"
        instead = _INSTEAD.get(command, "")
        raise UsageError(
            f'erniechat {command} takes {known_actions}, got "{action}"',
            f'{instead}to ask the model: erniechat -p "{command} …"',
        )
    if len(names) != bool(actions[action]):
        wanted = f"one {actions[action]}" if actions[action] else "nothing more"
        raise UsageError(f"erniechat {command} {action} takes {wanted}, got {len(names)}")
    return known, (command, action, *names), ""
