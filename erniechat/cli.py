"""Arguments in, exit status out; joins a backend to a front-end, and reads the environment.

Heavy modules are imported inside functions, so that --help needs neither torch nor rich.
"""

import difflib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from erniechat.backend import ChatBackend
from erniechat.chat.conversation import Message, ThinkMode
from erniechat.errors import ErnieChatError, UsageError
from erniechat.events import Progress
from erniechat.options import OPTIONS, BenchOptions, DisplayOptions, LoadOptions
from erniechat.ui.arguments import Arguments, parse_arguments, version_line
from erniechat.ui.inputs import (
    WAIT_NOTICE,
    WAIT_NOTICE_SECONDS,
    StdinReader,
    join_prompt,
    read_system,
    read_tools,
)
from erniechat.ui.progress import LoadProgress
from erniechat.ui.settings import BUILT_IN, Layer, Settings, merge_layers
from erniechat.ui.signals import Interrupted, signals_raise
from erniechat.ui.terminal import AnswerStream, Terminal
from erniechat.ui.text import one_line, visible
from erniechat.ui.worker import Task, Worker

PREFIX = "ERNIECHAT_"
NOT_SETTINGS = {"ERNIECHAT_DEBUG"}
REAL_MODEL_NOTICE = (
    "this is mini, the small built-in model; the real one:"
    " erniechat --model baidu/ERNIE-4.5-21B-A3B-PT --4bit"
)
CLOSE_SECONDS = 10.0
HURRIED_CLOSE_SECONDS = 0.1


class PromptTools(Protocol):
    """What --dry-run needs of a model: its template and its tokenizer."""

    def render_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> str:
        """The exact text that the model would read."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        ...


def _load_engine(options: LoadOptions, progress: Callable[[Progress], None] | None) -> ChatBackend:
    from erniechat.loader import load_engine

    return load_engine(options, progress)


def _load_prompt_tools(options: LoadOptions) -> PromptTools:
    from erniechat.loader import load_prompt_tools

    return load_prompt_tools(options)


def _run_bench(
    load: LoadOptions, bench: BenchOptions, report: Callable[[str], None]
) -> dict[str, Any]:
    from erniechat.bench import run_bench

    return run_bench(load, bench, report)


def _format_bench(result: dict[str, Any]) -> str:
    from erniechat.bench import format_bench

    return format_bench(result)


@dataclass(frozen=True, slots=True)
class Services:
    """What the command line calls to get work done; tests put fakes in."""

    load_engine: Callable[[LoadOptions, Callable[[Progress], None] | None], ChatBackend] = (
        _load_engine
    )
    load_prompt_tools: Callable[[LoadOptions], PromptTools] = _load_prompt_tools
    run_bench: Callable[[LoadOptions, BenchOptions, Callable[[str], None]], dict[str, Any]] = (
        _run_bench
    )
    format_bench: Callable[[dict[str, Any]], str] = _format_bench


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the program."""

    arguments: Arguments
    settings: Settings
    terminal: Terminal
    services: Services


def main(argv: Sequence[str] | None = None, *, services: Services | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: Arguments; those of the process if None.
        services: Stand-ins for the engine, for tests.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    head = argv[: argv.index("--")] if "--" in argv else argv
    terminal = Terminal(sys.stdin, _stdout(), sys.stderr)
    terminal.configure(DisplayOptions(), os.environ)
    try:
        with signals_raise():
            return _run(argv, terminal, services or Services())
    except Interrupted as exc:
        terminal.live.wipe()
        return exc.exit_status
    except BrokenPipeError:
        _silence(terminal.stdout)
        return 141
    except ErnieChatError as exc:
        return _fail(exc, exc.exit_status, terminal, "--json" in head)
    except Exception as exc:
        return _fail(exc, 1, terminal, "--json" in head)


def _stdout() -> TextIO:
    stream = sys.stdout if sys.stdout is not None else open(os.devnull, "w")  # noqa: SIM115 lives on
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _run(argv: Sequence[str], terminal: Terminal, services: Services) -> int:
    arguments = parse_arguments(argv)
    if arguments.help or arguments.version:
        return _print(terminal, arguments.help or version_line() + "\n")
    environment, unknown = environment_layer(os.environ)
    settings = merge_layers([environment, arguments.flags])
    terminal.configure(settings.display, os.environ)
    for line in unknown:
        terminal.line(f"warning: {line}")
    job = Job(arguments, settings, terminal, services)
    if arguments.bench is not None:
        return _bench(job, arguments.bench)
    has_text = bool(arguments.text or arguments.prompt is not None)
    if not has_text and terminal.stdin_is_tty and not arguments.json and not arguments.dry_run:
        return _repl(job)
    return _oneshot(job)


def environment_layer(environ: Mapping[str, str]) -> tuple[Layer, list[str]]:
    """The settings that ERNIECHAT_* variables give, and a warning if some are unknown.

    An empty variable counts as not set.

    Raises:
        UsageError: With the variable, the value and the rule.
    """
    known = {option.variable: option for option in OPTIONS.values()}
    values = {
        option.name: option.parse(environ[variable], variable)
        for variable, option in known.items()
        if environ.get(variable)
    }
    unknown = sorted(
        name
        for name in environ
        if name.startswith(PREFIX) and name not in known and name not in NOT_SETTINGS
    )
    told = [f"unknown environment variable {', '.join(unknown)}; ignored"] if unknown else []
    if len(unknown) == 1:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.8)
        told = [f"{told[0]}. Did you mean {near[0]}?"] if near else told
    return Layer("environment", values), told


def _print(terminal: Terminal, text: str) -> int:
    """Print a page on stdout, where a full disk is an error."""
    AnswerStream(terminal.stdout, sanitize=False).write(text)
    return 0


def _say_model(job: Job) -> None:
    if job.settings.origin("model") == BUILT_IN:
        job.terminal.note(REAL_MODEL_NOTICE)


def _start_load(job: Job, worker: Worker) -> tuple[Task[ChatBackend], LoadProgress]:
    options = job.settings.load
    progress = LoadProgress(job.terminal, options.model)
    return worker.submit(lambda: job.services.load_engine(options, progress)), progress


def _read_prompt(
    job: Job, load: Task[ChatBackend] | None = None, progress: LoadProgress | None = None
) -> str:
    """The whole prompt, read while the model loads; returns when both are there.

    Raises:
        UsageError: If it is empty, or stdin is not text.
    """
    arguments = job.arguments
    reader = None
    if not arguments.no_stdin and not job.terminal.stdin_is_tty and sys.stdin is not None:
        reader = StdinReader(sys.stdin.fileno())
    elif arguments.prompt == "-":
        raise UsageError("-p - reads stdin, but stdin is a terminal", 'give -p "TEXT"')
    prompt = None if reader else join_prompt("", arguments.prompt, arguments.text)
    noticed = False
    while True:
        if reader is not None and prompt is None and reader.done:
            prompt = join_prompt(reader.text(), arguments.prompt, arguments.text)
        if load is not None and load.failed:
            load.result()
        if prompt is not None and (load is None or load.done):
            return prompt
        if reader and not noticed and reader.silent_seconds >= WAIT_NOTICE_SECONDS:
            noticed = True
            job.terminal.note(WAIT_NOTICE)
        if progress is not None and load is not None and not load.done:
            progress.draw()
        time.sleep(0.01)


def _oneshot(job: Job) -> int:
    from erniechat.ui.oneshot import Request, run_oneshot

    arguments, settings = job.arguments, job.settings
    system, tools = read_system(arguments.system), read_tools(arguments.tools)
    if arguments.dry_run:
        return _dry_run(job, system, tools)
    if arguments.no_stdin or job.terminal.stdin_is_tty:
        join_prompt("", arguments.prompt, arguments.text)  # nothing is loaded for an empty prompt
    worker = Worker()
    load, progress = _start_load(job, worker)
    prompt = _read_prompt(job, load, progress)
    job.terminal.live.wipe()
    _say_model(job)
    backend = load.result()
    request = Request(
        prompt,
        system,
        tools,
        raw=arguments.raw,
        think=_think(settings),
        thoughts=settings.display.thoughts,
        sampling=settings.sampling,
        json=arguments.json,
        verbose=settings.display.verbose,
    )
    patience = CLOSE_SECONDS
    try:
        run_oneshot(worker, backend, request, job.terminal)
    except (Interrupted, BrokenPipeError):
        patience = HURRIED_CLOSE_SECONDS
        raise
    finally:
        worker.submit(backend.close)
        worker.finish(patience)
    return 0


def _think(settings: Settings) -> ThinkMode:
    mode: ThinkMode = settings.display.think  # type: ignore[assignment]  # checked by its choices
    return mode


def _dry_run(job: Job, system: str | None, tools: Sequence[dict[str, Any]]) -> int:
    """Print the exact prompt on stdout and its token count on stderr; both in one with --json."""
    from erniechat.ui.oneshot import Request

    prompt = _read_prompt(job)
    found = job.services.load_prompt_tools(job.settings.load)
    text = prompt
    if not job.arguments.raw:
        messages = Request(prompt, system).messages
        text = found.render_prompt(messages, tools=tools, think=_think(job.settings))
    num_tokens = found.count_tokens(text)
    out = AnswerStream(job.terminal.stdout, sanitize=job.terminal.stdout_is_tty)
    if job.arguments.json:
        out.write(json.dumps({"prompt": text, "tokens": num_tokens}) + "\n")
        return 0
    out.write(text if text.endswith("\n") else text + "\n")
    job.terminal.line(f"{num_tokens:,} tokens")
    return 0


def _bench(job: Job, bench: BenchOptions) -> int:
    result = job.services.run_bench(job.settings.load, bench, job.terminal.line)
    if bench.json:
        return _print(job.terminal, json.dumps(result) + "\n")
    return _print(job.terminal, job.services.format_bench(result).rstrip("\n") + "\n")


def _repl(job: Job) -> int:
    raise UsageError("the chat is not there yet", 'give -p "TEXT"')


def _error_code(exc: Exception) -> str:
    """The kind of an error as a word: UsageError is ``usage``, a bug ``internal``."""
    if not isinstance(exc, ErnieChatError):
        return "internal"
    name = type(exc).__name__.removesuffix("Error")
    return "error" if name == "ErnieChat" else re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _fail(exc: Exception, status: int, terminal: Terminal, as_json: bool) -> int:
    """Say what went wrong, on stderr and with --json on stdout as well."""
    debug = bool(os.environ.get("ERNIECHAT_DEBUG"))
    message, hint = str(exc), ""
    if isinstance(exc, ErnieChatError):
        message, hint = exc.message, exc.hint
    else:
        message = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    terminal.live.wipe()
    if debug:
        import traceback

        terminal.write_error(visible("".join(traceback.format_exception(exc))))
    if isinstance(exc, ErnieChatError):
        terminal.error(str(exc))
    else:
        tail = "" if debug else " (ERNIECHAT_DEBUG=1 shows where)"
        terminal.write_error(f"internal error: {one_line(message)}{tail}\n")
    error = {"code": _error_code(exc), "message": message, "hint": hint, "exit_status": status}
    try:
        if as_json:
            terminal.stdout.write(json.dumps({"error": error}) + "\n")
        terminal.stdout.flush()
    except OSError:
        _silence(terminal.stdout)
    return status


def _silence(stream: TextIO) -> None:
    """Let the interpreter's last flush of a stream that cannot be written go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return


def flush_quietly(stream: TextIO | None) -> None:
    """Flush a stream that may be closed, or gone."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return
