"""The command line of the chat and of one answer: flags, help page, contradictions."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from erniechat import __version__
from erniechat.errors import UsageError
from erniechat.options import (
    BenchOptions,
    ChatOptions,
    DisplayOptions,
    LoadOptions,
    SamplingOptions,
)
from erniechat.ui.command_words import check_words, command_of_help
from erniechat.ui.parser import Parser, add_other, add_settings, new_parser, parse, settings_layer
from erniechat.ui.settings import Layer
from erniechat.ui.shell_completion import SHELLS
from erniechat.ui.subcommands import (
    HELPERS,
    MODEL_COMMANDS,
    bench_parser,
    parse_bench,
    parse_helper,
    parse_model_command,
)

USAGE = """erniechat [options] [TEXT ...]

  erniechat                                            chat with the built-in model
  git diff | erniechat -p "write a commit message"     answer once, in a pipe
  erniechat -p "three EU capitals" --json | jq .text   answer once, for a script"""

EPILOG = """commands (each has --help):
  erniechat plan          what a start would fetch, keep and use: plan MODEL
  erniechat export        a checkpoint for transformers and bitsandbytes: export MODEL FOLDER
  erniechat bench         measure speed and memory
  erniechat sessions      list, show or delete saved conversations: ls, show ID, rm ID
  erniechat config        where settings come from: path, show
  erniechat cache         quantized copies, read sessions: ls, rm NAME, verify NAME
  erniechat profile       which experts are used most: show, calibrate, reset, export, import
  erniechat doctor        what RAM, bus and disk read a second, and the speed to expect
  erniechat info          devices, kernels, versions, folders
  erniechat help          this page

Every setting is also an environment variable and a key in config.toml:
--top-p is ERNIECHAT_TOP_P and top_p. The first that is given counts: flag,
preset, variable, .erniechat.toml of the project, config.toml, the
checkpoint's own. In the chat: /set top_p 0.9.

exit status:
  0 answered    1 bug, or what cannot be written    2 usage
  3 model not available    4 does not fit into memory or on the disk
  5 input longer than the context    6 answer breaks the asked-for structure
  124 time limit    130 interrupted    143 terminated
  141 reader of stdout went away"""

STRUCTURES = ("json_schema", "grammar", "regex")


@dataclass(frozen=True, slots=True)
class Arguments:
    """A parsed command line: the settings given as flags, and what is no setting.

    Attributes:
        structure: The kind of structure that is asked for and its text, or None.
        resume: Id of the session to go on with, empty for the newest, None for a new one.
        helper: A command that needs no model, with its own words: ``("sessions", "ls")``.
        task: A command on a model, with its words after the model's name: ``("plan",)``.
    """

    flags: Layer
    text: str = ""
    prompt: str | None = None
    tools: str | None = None
    run_tools: bool = False
    yes: bool = False
    raw: bool = False
    chat: bool = False
    json: bool = False
    jsonl: bool = False
    output: str | None = None
    structure: tuple[str, str] | None = None
    dry_run: bool = False
    no_stdin: bool = False
    preset: str | None = None
    resume: str | None = None
    help: str = ""
    version: bool = False
    completion: str | None = None
    man: bool = False
    bench: BenchOptions | None = None
    helper: tuple[str, ...] = ()
    task: tuple[str, ...] = ()


def chat_parser() -> Parser:
    """The parser of everything but the commands."""
    parser = new_parser(USAGE, EPILOG)
    parser.add_argument("words", nargs="*", metavar="TEXT", help=argparse.SUPPRESS)
    _add_questions(parser)
    _add_output(parser)
    add_settings(parser, "conversation", ChatOptions)
    add_settings(parser, "display", DisplayOptions)
    add_settings(parser, "model", LoadOptions)
    add_settings(parser, "sampling (default: the checkpoint's own)", SamplingOptions)
    group = add_other(parser)
    group.add_argument("--preset", metavar="NAME", help="settings from presets/NAME.toml")
    group.add_argument("--completion", choices=SHELLS, help="completion script")
    group.add_argument("--man", action="store_true", help="this page for man: --man | man -l -")
    return parser


def _add_questions(parser: Parser) -> None:
    add = parser.add_argument_group("what to answer").add_argument
    add(
        "-p",
        "--prompt",
        action="append",
        metavar="TEXT",
        help="answer this and leave; piped stdin goes before it; - is stdin alone",
    )
    add("-c", "--continue", dest="newest", action="store_true", help="go on with the last session")
    add("--resume", metavar="ID", help="go on with this session")
    add("--chat", action="store_true", help="read stdin as the first message, then chat")
    add("--tools", metavar="FILE.json", help="functions that the model may call; none is run")
    add("--run-tools", action="store_true", help="in the chat, run called tools after a yes")
    add("--yes", action="store_true", help="no question before a download or an allowed tool")
    add("--raw", action="store_true", help="go on from the text as it is, without a chat template")
    add("--no-stdin", action="store_true", help="do not read stdin")


def _add_output(parser: Parser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="one object: answer, thinking, counts, times, memory")
    add("--jsonl", action="store_true", help="an object for each event as it comes")
    add("-o", "--output", metavar="FILE", help="write there, once the answer is complete")
    add("--json-schema", metavar="TEXT|@FILE", help="the answer is JSON of this schema")
    add("--grammar", metavar="TEXT|@FILE", help="the answer obeys this Lark grammar")
    add("--regex", metavar="TEXT", help="the answer matches this regular expression")
    add("--dry-run", action="store_true", help="print the exact prompt and its token count")


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """What a command line asks for.

    Raises:
        UsageError: For an unknown flag, a bad value or flags that contradict each other.
    """
    words = list(argv)
    if words[:1] == ["help"] and len(words) <= 2:
        words = [name, "--help"] if (name := command_of_help(words)) else ["--help"]
    if words[:1] == ["bench"]:
        return _bench_arguments(words[1:])
    if words[:1] and words[0] in MODEL_COMMANDS:
        return _model_arguments(words)
    if words[:1] and words[0] in HELPERS:
        return _helper_arguments(words)
    return _chat_arguments(words)


def _bench_arguments(argv: Sequence[str]) -> Arguments:
    known, bench, page = parse_bench(argv)
    if page:
        return Arguments(Layer("flag", {}), help=page)
    flags = settings_layer(known)
    return Arguments(flags, json=known.json, bench=bench, version=known.version)


def _helper_arguments(argv: Sequence[str]) -> Arguments:
    known, helper, page = parse_helper(argv)
    if page:
        return Arguments(Layer("flag", {}), help=page)
    flags = settings_layer(known) if hasattr(known, "bits") else Layer("flag", {})
    as_json, preset = getattr(known, "json", False), getattr(known, "preset", None)
    return Arguments(flags, helper=helper, json=as_json, preset=preset, version=known.version)


def _model_arguments(argv: Sequence[str]) -> Arguments:
    known, words, page = parse_model_command(argv)
    if page:
        return Arguments(Layer("flag", {}), help=page)
    given = settings_layer(known)
    flags = Layer(given.origin, {**given.values, "model": words[0]})
    as_json = getattr(known, "json", False)
    return Arguments(flags, task=(argv[0], *words[1:]), json=as_json, version=known.version)


def _chat_arguments(argv: Sequence[str]) -> Arguments:
    parser = chat_parser()
    known, words = parse(parser, argv)
    if known.help:
        return Arguments(Layer("flag", {}), help=parser.format_help())
    if known.prompt is None and "--" not in argv:
        check_words(words)
    if len(known.prompt or []) > 1:
        raise UsageError("-p is given more than once; join the texts, or pipe one through stdin")
    asked = [(kind, text) for kind in STRUCTURES if (text := getattr(known, kind)) is not None]
    arguments = Arguments(
        settings_layer(known),
        text=" ".join(words),
        prompt=known.prompt[0] if known.prompt else None,
        tools=known.tools,
        run_tools=known.run_tools,
        yes=known.yes,
        raw=known.raw,
        chat=known.chat,
        json=known.json,
        jsonl=known.jsonl,
        output=known.output,
        structure=asked[0] if asked else None,
        dry_run=known.dry_run,
        no_stdin=known.no_stdin,
        preset=known.preset,
        resume="" if known.newest and known.resume is None else known.resume,
        version=known.version,
        completion=known.completion,
        man=known.man,
    )
    _check_contradictions(arguments, known)
    return arguments


def _check_contradictions(arguments: Arguments, known: argparse.Namespace) -> None:
    """Refuse flags of which one would silently lose."""
    given = {
        "--raw": arguments.raw,
        "--system": "system" in arguments.flags.values,
        "--tools": arguments.tools is not None,
        "-p -": arguments.prompt == "-",
        "-p": arguments.prompt is not None,
        "--chat": arguments.chat,
        "--no-stdin": arguments.no_stdin,
        "--json": arguments.json,
        "--jsonl": arguments.jsonl,
        "-c": known.newest,
        "--resume": known.resume is not None,
        "--dry-run": arguments.dry_run,
        "--no-copy": arguments.flags.values.get("copy") is False,
        "--discard-originals": arguments.flags.values.get("discard_originals") is True,
        "--json-schema": known.json_schema is not None,
        "--grammar": known.grammar is not None,
        "--regex": known.regex is not None,
    }
    pairs = """--raw --system, --raw --tools, --raw -c, --raw --resume, -p - --no-stdin,
        --json --jsonl, -c --resume, --chat --json, --chat --jsonl, --chat -p, --chat --dry-run,
        --chat --no-stdin, --json-schema --grammar, --json-schema --regex, --grammar --regex,
        --tools --json-schema, --tools --grammar, --tools --regex, --jsonl --dry-run,
        --no-copy --discard-originals"""
    for pair in pairs.split(","):
        first, _, second = pair.strip().rpartition(" ")
        if given[first] and given[second]:
            raise UsageError(f"{first} and {second} contradict each other; give one of them")
    if arguments.run_tools and arguments.tools is None:
        raise UsageError("--run-tools needs --tools FILE.json")


def version_line() -> str:
    """What --version prints."""
    return f"erniechat {__version__}"


__all__ = ["Arguments", "bench_parser", "chat_parser", "parse_arguments", "version_line"]
