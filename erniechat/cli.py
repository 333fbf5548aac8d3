"""Arguments in, exit status out; joins a backend to a front-end, and reads the environment.

What only some runs need is imported inside functions: --help takes a tenth of a second and needs
neither torch nor rich.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from erniechat.errors import UsageError
from erniechat.options import BenchOptions, DisplayOptions, LoadOptions
from erniechat.paths import user_path
from erniechat.ui.arguments import Arguments, chat_parser, parse_arguments, version_line
from erniechat.ui.failure import closed_stream, report_failure, silence
from erniechat.ui.inputs import has_stray_bytes
from erniechat.ui.process import imports_that_stay
from erniechat.ui.settings import Layer, Settings, environment_layer, merge_layers
from erniechat.ui.signals import Interrupted, signals_raise
from erniechat.ui.terminal import Terminal, print_page

if TYPE_CHECKING:
    from erniechat.backend import ChatBackend
    from erniechat.chat.sessions import SavedChat
    from erniechat.events import Progress, StartNotice
    from erniechat.ui.jobs import Job, LoadEngine, PromptTools

HUNG_UP = 129  # 128 + SIGHUP
INTERRUPTED = 130  # 128 + SIGINT


def _prepare_process() -> None:
    """Settle what torch finds when it is imported, unless the user has settled it."""
    from quant.allocator import keep_freed_memory

    # While a thread waits for another that has lost its core, spinning costs more than it saves
    # (with another process on two cores, 10 times the time of a reply).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()


def _load_engine(
    options: LoadOptions, progress: Callable[[Progress], None], warn: Callable[[str], None]
) -> ChatBackend:
    _prepare_process()
    with imports_that_stay():
        from erniechat.early import find_early

        early = find_early(options)  # a thread reads on while the rest is imported
        if options.device != "cpu":
            from quant.waking import wake_gpu

            wake_gpu()  # so does this one
        from erniechat.loader import load_engine

    return load_engine(options, progress, warn, early)


def _load_prompt_tools(options: LoadOptions) -> PromptTools:
    from erniechat.loader import load_prompt_tools

    return load_prompt_tools(options)


def _run_bench(
    load: LoadOptions, bench: BenchOptions, report: Callable[[str], None]
) -> dict[str, Any]:
    _prepare_process()  # measured as it is used
    with imports_that_stay():
        from erniechat.bench import run_bench

    return run_bench(load, bench, report)


def _format_bench(result: dict[str, Any]) -> str:
    from erniechat.bench import format_bench

    return format_bench(result)


def _kept_names(action: str) -> list[str]:
    """What `cache rm` or `cache verify` may be given."""
    from erniechat.cache import SESSIONS, list_copies, list_kept

    copies = [str(copy["name"]) for copy in list_copies()]
    kept = [str(file["name"]) for file in list_kept()] if action == "rm" else []
    return [*copies, *kept, *([SESSIONS] if kept else []), "all"] if copies or kept else []


def _start_notice(options: LoadOptions) -> StartNotice | None:
    """What a first start of a model on the hub will fetch."""
    if "/" not in options.model or os.path.exists(user_path(options.model)):
        return None
    from erniechat.resolve import locate

    files = locate(options)  # a model that is not here is told before torch is imported
    if files.hub is None or not files.hub.missing:
        return None
    with imports_that_stay():
        from erniechat.start_notice import first_start_notice

    return first_start_notice(files, options)


@dataclass(frozen=True, slots=True)
class Services:
    """What the command line calls to get work done; tests put fakes in."""

    load_engine: LoadEngine = _load_engine
    load_prompt_tools: Callable[[LoadOptions], PromptTools] = _load_prompt_tools
    run_bench: Callable[[LoadOptions, BenchOptions, Callable[[str], None]], dict[str, Any]] = (
        _run_bench
    )
    format_bench: Callable[[dict[str, Any]], str] = _format_bench
    start_notice: Callable[[LoadOptions], StartNotice | None] = _start_notice


def main(argv: Sequence[str] | None = None, *, services: Services | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: Arguments; those of the process if None.
        services: Stand-ins for the engine, for tests.
    """
    argv = _arguments() if argv is None else list(argv)
    terminal = Terminal(sys.stdin, _stdout(), sys.stderr or closed_stream(is_error=False))
    terminal.configure(DisplayOptions(), os.environ)
    try:
        with signals_raise():
            return _run(argv, terminal, services or Services())
    except Interrupted as exc:
        terminal.live.wipe()
        if exc.exit_status == INTERRUPTED:
            terminal.wipe_echo()
        return exc.exit_status
    except BrokenPipeError:
        terminal.live.wipe()
        silence(terminal.stdout)
        return 141
    except Exception as exc:
        if _is_hang_up(exc, terminal):
            silence(terminal.stdout)
            return HUNG_UP
        return report_failure(exc, terminal, form=_form(argv), debug=_debug())


def _arguments() -> list[str]:
    """Those of the process, as UTF-8 where the locale's encoding does not know what is typed."""
    words = sys.argv[1:]
    for index, word in enumerate(words):
        with suppress(UnicodeDecodeError):
            words[index] = os.fsencode(word).decode() if has_stray_bytes(word) else word
    return words


def _is_hang_up(exc: Exception, terminal: Terminal) -> bool:
    """Whether the terminal is gone; its signal, SIGHUP, may come later than the error."""
    return isinstance(exc, OSError) and exc.errno == errno.EIO and terminal.stdout_is_tty


def _form(argv: Sequence[str]) -> str:
    """What stdout holds, told from words that may be wrong: text, json or jsonl."""
    flags = argv[: argv.index("--")] if "--" in argv else argv
    return next((form for form in ("jsonl", "json") if f"--{form}" in flags), "text")


def _debug() -> bool:
    return bool(os.environ.get("ERNIECHAT_DEBUG"))


def _stdout() -> TextIO:
    """stdout, where a character that its encoding lacks becomes an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout or closed_stream(is_error=True)


def _run(argv: Sequence[str], terminal: Terminal, services: Services) -> int:
    if argv[:1] == ["__complete"]:
        from erniechat.ui.shell_completion import possible_values

        values = possible_values("".join(argv[1:2]), os.environ, argv[2:], _kept_names)
        return print_page(terminal, "".join(f"{value}\n" for value in values))
    arguments = parse_arguments(argv)
    if arguments.help:
        return print_page(terminal, arguments.help, for_people=True)
    if arguments.completion:
        return _completion(terminal, arguments.completion)
    if arguments.man:
        from erniechat.ui.manual import man_page

        return print_page(terminal, man_page(chat_parser()))
    saved = _saved_session(arguments)
    settings, warnings = _merge(arguments, saved)
    terminal.configure(settings.display, os.environ)
    if arguments.version:
        return _version(terminal, settings, arguments)
    given = [f"{name} {settings.origin(name)}" for name in settings.values]
    terminal.log.write(f"{version_line()} python {sys.version.split()[0]}: {', '.join(given)}")
    for warning in warnings:
        terminal.line(f"warning: {warning}")
    if arguments.helper or arguments.task:
        from erniechat.side_commands import run_side_command

        return run_side_command(arguments, settings, terminal, services.load_engine)
    if arguments.bench is not None:
        return _bench(terminal, services, settings.load, arguments.bench)
    from erniechat.ui.jobs import Job, answer_once, dry_run

    load, tools = services.load_engine, services.load_prompt_tools
    job = Job(arguments, settings, terminal, load, tools, saved, services.start_notice)
    if arguments.chat or _wants_chat(job):
        return _repl(job)
    return dry_run(job) if arguments.dry_run else answer_once(job)


def _wants_chat(job: Job) -> bool:
    arguments = job.arguments
    has_text = bool(arguments.text or arguments.prompt is not None)
    for_script = arguments.json or arguments.jsonl or arguments.dry_run or arguments.output
    return not has_text and job.terminal.stdin_is_tty and not for_script


def _saved_session(arguments: Arguments) -> SavedChat | None:
    if arguments.resume is None:
        return None
    from erniechat.chat.sessions import find_session

    return find_session(arguments.resume)


def _merge(arguments: Arguments, saved: SavedChat | None) -> tuple[Settings, list[str]]:
    """The settings from all that gives some, the weakest first, and warnings."""
    from erniechat.ui.config import config_layer, preset_layer, project_layer

    config, warnings = config_layer()
    project, more = project_layer()
    warnings += more
    environment, warning = environment_layer(os.environ)
    layers = [config, project, environment]
    if arguments.preset is not None:
        preset, more = preset_layer(arguments.preset)
        layers.append(preset)
        warnings += more
    if saved is not None and "model" not in arguments.flags.values:
        layers.append(Layer(f"session {saved.id}", saved.load_settings))
    settings = merge_layers([*layers, arguments.flags])
    return settings, [*warnings, *([warning] if warning else [])]


def _completion(terminal: Terminal, shell: str) -> int:
    from erniechat.ui.shell_completion import completion_script

    return print_page(terminal, completion_script(chat_parser(), shell))


def _version(terminal: Terminal, settings: Settings, arguments: Arguments) -> int:
    if not settings.display.verbose and not arguments.json:
        return print_page(terminal, version_line() + "\n")
    from erniechat.info import gather_facts
    from erniechat.ui.helpers import info_page

    facts = {name: rows for name, rows in gather_facts().items() if name in ("versions", "devices")}
    return print_page(terminal, info_page(facts, as_json=arguments.json))


def _bench(terminal: Terminal, services: Services, load: LoadOptions, bench: BenchOptions) -> int:
    result = services.run_bench(load, bench, terminal.line)
    if bench.json:
        return print_page(terminal, json.dumps(result) + "\n")
    return print_page(terminal, services.format_bench(result).rstrip("\n") + "\n")


def _repl(job: Job) -> int:
    from erniechat.chat.session_file import SessionFile
    from erniechat.ui.asking import read_document
    from erniechat.ui.jobs import engine
    from erniechat.ui.tool_commands import read_tool_file

    arguments, terminal = job.arguments, job.terminal
    if not terminal.stdout_is_tty:
        raise UsageError("no prompt, and stdout is no terminal to chat on", 'give -p "TEXT"')
    tools = read_tool_file(arguments.tools, yes=arguments.yes)
    if job.saved is not None and job.settings.chat.save is not False:
        SessionFile.resume(job.saved, terminal.log.write).close()  # in use: told before the load
    document = read_document(arguments, terminal, job.settings.chat)
    terminal.live.show(f"loading {job.settings.load.model}")  # before the imports below
    with engine(job) as (worker, load, progress):
        from erniechat.ui.repl import ChatSetup, chat

        setup = ChatSetup(
            job.settings,
            tools.tools,
            arguments.raw,
            job.notice,
            _debug(),
            document,
            tools.commands if arguments.run_tools else {},
            job.saved,
            dict(os.environ),
        )
        return chat(terminal, worker, load, progress, setup)
