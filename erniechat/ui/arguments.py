"""The command line: parser, help page, and what a wrong flag is answered with."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from erniechat import __version__
from erniechat.errors import UsageError
from erniechat.options import (
    OPTIONS,
    BenchOptions,
    DisplayOptions,
    LoadOptions,
    Option,
    SamplingOptions,
)
from erniechat.ui.settings import Layer

USAGE = """erniechat [options] [TEXT ...]

  erniechat                                            chat with the built-in model
  git diff | erniechat -p "write a commit message"     answer once, in a pipe
  erniechat -p "three EU capitals" --json | jq .text   answer once, for a script"""

BENCH_USAGE = "erniechat bench [options]"

EPILOG = """commands:
  erniechat bench         measure speed and memory (erniechat bench --help)
  erniechat help          this page

Every setting is also an environment variable: --top-p is ERNIECHAT_TOP_P. A flag beats the
variable, the variable beats the checkpoint's own default. In the chat: /set top_p 0.9.

exit status:
  0 answered    1 bug    2 usage    3 model not available    4 does not fit into memory
  5 input longer than the context    6 answer breaks the asked-for structure
  124 time limit    130 interrupted    143 terminated    141 reader of stdout went away"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A parsed command line: the settings given as flags, and what is no setting."""

    flags: Layer
    text: str = ""
    prompt: str | None = None
    system: str | None = None
    tools: str | None = None
    raw: bool = False
    json: bool = False
    dry_run: bool = False
    no_stdin: bool = False
    help: str = ""
    version: bool = False
    bench: BenchOptions | None = None


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors in this program's words."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        found = re.match(r"argument (\S+): (.*)", message)
        if found:
            flag, problem = found.group(1).split("/")[-1], found.group(2)
            if problem.startswith("expected one argument"):
                message = f"{flag} needs a value"
            elif problem.startswith("ignored explicit argument"):
                message = f"{flag} takes no value"
            else:
                message = f"{flag}: {problem}"
        raise UsageError(message, "erniechat --help lists the options")


def _new_parser(usage: str, epilog: str) -> _Parser:
    return _Parser(
        prog="erniechat",
        usage=usage,
        epilog=epilog,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=30, width=98
        ),
    )


def _metavar(option: Option) -> str:
    if option.spec.choices:
        return "{" + ",".join(option.spec.choices) + "}"
    return option.spec.metavar or {int: "N", float: "X"}.get(option.type, "TEXT")


def _help_text(option: Option) -> str:
    told = option.default is None or isinstance(option.default, bool)
    text = option.spec.help if told else f"{option.spec.help} (default {option.default})"
    return text.replace("%", "%%")


def _add_setting(group: "argparse._ArgumentGroup", option: Option) -> None:
    """One flag for a setting; a yes/no setting gets both ``--flag`` and ``--no-flag``."""
    short = [option.spec.short] if option.spec.short else []
    if option.type is not bool:
        group.add_argument(
            *short, option.flag, dest=option.name, metavar=_metavar(option), help=_help_text(option)
        )
        return
    negative = "--no-" + option.flag[2:]
    shown, hidden = (negative, option.flag) if option.default else (option.flag, negative)
    help_text = "do not " + _help_text(option) if option.default else _help_text(option)
    for flags, text in (([*short, shown], help_text), ([hidden], argparse.SUPPRESS)):
        group.add_argument(
            *flags,
            dest=option.name,
            action="store_const",
            const="no" if flags[-1] == negative else "yes",
            help=text,
        )


def _add_settings(parser: _Parser, title: str, owner: type) -> None:
    group = parser.add_argument_group(title)
    for option in OPTIONS.values():
        if option.owner is not owner:
            continue
        _add_setting(group, option)
        if option.name == "quant":
            for flag, name in (("--4bit", "nf4"), ("--8bit", "int8")):
                group.add_argument(
                    flag,
                    dest="bits",
                    action="append_const",
                    const=name,
                    help=f"short for --quant {name}",
                )


def _add_other(parser: _Parser) -> None:
    group = parser.add_argument_group("other")
    group.add_argument("-h", "--help", action="store_true", help="this page")
    group.add_argument("--version", action="store_true", help="the version")


def chat_parser() -> _Parser:
    """The parser of everything but `erniechat bench`."""
    parser = _new_parser(USAGE, EPILOG)
    parser.add_argument("words", nargs="*", metavar="TEXT", help=argparse.SUPPRESS)
    group = parser.add_argument_group("what to answer")
    add = group.add_argument
    add(
        "-p",
        "--prompt",
        action="append",
        metavar="TEXT",
        help="answer this and leave; piped stdin goes before it; - is stdin alone",
    )
    add("--system", metavar="TEXT|@FILE", help="system prompt, or the file that holds it")
    add("--tools", metavar="FILE.json", help="functions that the model may call; none is run")
    add("--raw", action="store_true", help="go on from the text as it is, without a chat template")
    add("--no-stdin", action="store_true", help="do not read stdin")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--json", action="store_true", help="one object: answer, thinking, counts, times, memory")
    add("--dry-run", action="store_true", help="print the exact prompt and its token count")
    _add_settings(parser, "display", DisplayOptions)
    _add_settings(parser, "model", LoadOptions)
    _add_settings(parser, "sampling (default: the checkpoint's own)", SamplingOptions)
    _add_other(parser)
    return parser


def bench_parser() -> _Parser:
    """The parser of `erniechat bench`."""
    parser = _new_parser(BENCH_USAGE, "")
    add = parser.add_argument_group("what to measure").add_argument
    add("-p", "--prompt-tokens", metavar="N", help="tokens to read (default 512)")
    add("-n", "--new-tokens", metavar="N", help="tokens to write (default 128)")
    add("-r", "--runs", metavar="N", help="timed runs, after one that is not counted (default 5)")
    add("--synthetic", metavar="CONFIG_DIR", help="random weights of the shape in this folder")
    add("--layers", metavar="N", help="only this many layers of the synthetic model")
    add("--quality", metavar="FILE", help="measure perplexity on this text")
    add("--json", action="store_true", help="print one JSON object")
    _add_settings(parser, "model", LoadOptions)
    _add_other(parser)
    return parser


def _flags_of(parser: _Parser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


def unknown_flag(word: str, flags: Sequence[str]) -> UsageError:
    """The error for a flag that there is none of: the nearest one, or the full names."""
    import difflib  # only for an error, and it costs --help time

    word = word.split("=")[0]
    full = [flag for flag in flags if flag.startswith(word) and word.startswith("--")]
    if full and len(word) > 2:
        return UsageError(
            f"unknown option {word}. Flags are not abbreviated; in full: {', '.join(full)}"
            "   (erniechat --help)"
        )
    near = difflib.get_close_matches(word, flags, n=1, cutoff=0.6)
    guess = f". Did you mean {near[0]}?" if near else "."
    return UsageError(f"unknown option {word}{guess}   (erniechat --help)")


def _parse(parser: _Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse flags and words in any order; ``--`` ends the flags."""
    head, tail = list(argv), []
    if "--" in head:
        cut = head.index("--")
        head, tail = head[:cut], head[cut + 1 :]
    known, extras = parser.parse_known_intermixed_args(head)
    words = list(getattr(known, "words", None) or [])
    for extra in extras:
        if extra.startswith("-") and extra != "-":
            raise unknown_flag(extra, _flags_of(parser))
        words.append(extra)
    return known, words + tail


def _settings_layer(known: argparse.Namespace) -> Layer:
    values: dict[str, Any] = {
        name: option.parse(text)
        for name, option in OPTIONS.items()
        if (text := getattr(known, name, None)) is not None
    }
    asked = {*(known.bits or []), *([values["quant"]] if "quant" in values else [])}
    if len(asked) > 1:
        names = {"nf4": "--4bit", "int8": "--8bit"}
        given = [names[name] for name in known.bits]
        given += [f"--quant {values['quant']}"] if "quant" in values else []
        raise UsageError(f"{' and '.join(given)} contradict each other; give one of them")
    if asked:
        values["quant"] = asked.pop()
    return Layer("flag", values)


def _parse_bench(argv: Sequence[str]) -> Arguments:
    parser = bench_parser()
    known, words = _parse(parser, argv)
    if known.help:
        return Arguments(Layer("flag", {}), help=parser.format_help())
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
        synthetic=known.synthetic, quality=known.quality, json=known.json, **numbers
    )
    return Arguments(_settings_layer(known), json=known.json, bench=bench, version=known.version)


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """What a command line asks for.

    Raises:
        UsageError: For an unknown flag, a bad value or flags that contradict each other.
    """
    if argv[:1] == ["bench"]:
        return _parse_bench(argv[1:])
    parser = chat_parser()
    if argv == ["help"]:
        return Arguments(Layer("flag", {}), help=parser.format_help())
    if argv[:2] == ["help", "bench"] and len(argv) == 2:
        return Arguments(Layer("flag", {}), help=bench_parser().format_help())
    known, words = _parse(parser, argv)
    if known.help:
        return Arguments(Layer("flag", {}), help=parser.format_help())
    if words == ["bench"]:
        raise UsageError("bench comes first: erniechat bench …", 'to ask it: -p "bench"')
    if len(known.prompt or []) > 1:
        raise UsageError("-p is given more than once; join the texts, or pipe one through stdin")
    arguments = Arguments(
        _settings_layer(known),
        text=" ".join(words),
        prompt=known.prompt[0] if known.prompt else None,
        system=known.system,
        tools=known.tools,
        raw=known.raw,
        json=known.json,
        dry_run=known.dry_run,
        no_stdin=known.no_stdin,
        version=known.version,
    )
    _check_contradictions(arguments)
    return arguments


def _check_contradictions(arguments: Arguments) -> None:
    """Refuse flags of which one would silently lose."""
    pairs = [
        ("--raw", arguments.raw, "--system", arguments.system is not None),
        ("--raw", arguments.raw, "--tools", arguments.tools is not None),
        ("-p -", arguments.prompt == "-", "--no-stdin", arguments.no_stdin),
    ]
    for first, has_first, second, has_second in pairs:
        if has_first and has_second:
            raise UsageError(f"{first} and {second} contradict each other; give one of them")


def version_line() -> str:
    """What --version prints."""
    return f"erniechat {__version__}"
