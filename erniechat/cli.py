"""Arguments in, exit status out; joins a backend to a front-end, and reads the environment.

What only some runs need is imported inside functions: --help takes a tenth of a second and needs
neither torch nor rich.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from erniechat.errors import UsageError
from erniechat.options import BenchOptions, DisplayOptions, LoadOptions
from erniechat.ui.arguments import Arguments, parse_arguments, version_line
from erniechat.ui.failure import report_failure, silence
from erniechat.ui.settings import BUILT_IN, Settings, environment_layer, merge_layers
from erniechat.ui.signals import Interrupted, signals_raise
from erniechat.ui.terminal import AnswerStream, Terminal

if TYPE_CHECKING:
    from erniechat.backend import ChatBackend
    from erniechat.chat.conversation import Message, ThinkMode
    from erniechat.events import Progress
    from erniechat.ui.inputs import StdinReader
    from erniechat.ui.progress import LoadProgress
    from erniechat.ui.worker import Task, Worker

    LoadEngine = Callable[
        [LoadOptions, Callable[[Progress], None], Callable[[str], None]], ChatBackend
    ]

REAL_MODEL_NOTICE = (
    "this is mini, the small built-in model; the real one:"
    " erniechat --model baidu/ERNIE-4.5-21B-A3B-PT --4bit"
)
POLL_SECONDS = 0.01
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


def _load_engine(
    options: LoadOptions, progress: Callable[[Progress], None], warn: Callable[[str], None]
) -> ChatBackend:
    # Before torch starts its threads: while one waits for another that has lost its core, spinning
    # costs more than it saves (with another process on two cores, 10 times the time of a reply).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from erniechat.loader import load_engine

    return load_engine(options, progress, warn)


def _load_prompt_tools(options: LoadOptions) -> PromptTools:
    from erniechat.loader import load_prompt_tools

    return load_prompt_tools(options)


def _run_bench(
    load: LoadOptions, bench: BenchOptions, report: Callable[[str], None]
) -> dict[str, Any]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # measured as it is used
    from erniechat.bench import run_bench

    return run_bench(load, bench, report)


def _format_bench(result: dict[str, Any]) -> str:
    from erniechat.bench import format_bench

    return format_bench(result)


@dataclass(frozen=True, slots=True)
class Services:
    """What the command line calls to get work done; tests put fakes in."""

    load_engine: LoadEngine = _load_engine
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

    @property
    def notice(self) -> str:
        """What to say of the model, if the user named none."""
        return REAL_MODEL_NOTICE if self.settings.origin("model") == BUILT_IN else ""


def main(argv: Sequence[str] | None = None, *, services: Services | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: Arguments; those of the process if None.
        services: Stand-ins for the engine, for tests.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal(sys.stdin, _stdout(), sys.stderr)
    terminal.configure(DisplayOptions(), os.environ)
    try:
        with signals_raise():
            return _run(argv, terminal, services or Services())
    except Interrupted as exc:
        terminal.live.wipe()
        return exc.exit_status
    except BrokenPipeError:
        terminal.live.wipe()
        silence(terminal.stdout)
        return 141
    except Exception as exc:
        as_json = "--json" in (argv[: argv.index("--")] if "--" in argv else argv)
        return report_failure(exc, terminal, as_json=as_json, debug=_debug())


def _debug() -> bool:
    return bool(os.environ.get("ERNIECHAT_DEBUG"))


def _stdout() -> TextIO:
    """stdout, where a character that its encoding lacks becomes an escape."""
    stream = sys.stdout if sys.stdout is not None else open(os.devnull, "w")  # noqa: SIM115  lives on
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _run(argv: Sequence[str], terminal: Terminal, services: Services) -> int:
    arguments = parse_arguments(argv)
    if arguments.help or arguments.version:
        return _print(terminal, arguments.help or version_line() + "\n")
    environment, warning = environment_layer(os.environ)
    settings = merge_layers([environment, arguments.flags])
    terminal.configure(settings.display, os.environ)
    if warning:
        terminal.line(f"warning: {warning}")
    job = Job(arguments, settings, terminal, services)
    if arguments.bench is not None:
        return _bench(job, arguments.bench)
    has_text = bool(arguments.text or arguments.prompt is not None)
    if not has_text and terminal.stdin_is_tty and not arguments.json and not arguments.dry_run:
        return _repl(job)
    return _dry_run(job) if arguments.dry_run else _oneshot(job)


def _print(terminal: Terminal, text: str) -> int:
    """Print a page on stdout, where a full disk is an error."""
    AnswerStream(terminal.stdout, sanitize=False).write(text)
    return 0


@contextmanager
def _engine(job: Job) -> Iterator[tuple[Worker, Task[ChatBackend], LoadProgress]]:
    """Within: the model loads, then runs, on a thread of its own; at the end it is closed."""
    from erniechat.ui.progress import LoadProgress
    from erniechat.ui.worker import Worker

    options = job.settings.load
    progress = LoadProgress(job.terminal, options.model)
    worker = Worker()
    load = worker.submit(lambda: job.services.load_engine(options, progress, progress.warn))
    patience = CLOSE_SECONDS
    try:
        yield worker, load, progress
    except (Interrupted, BrokenPipeError):
        patience = HURRIED_CLOSE_SECONDS
        raise
    finally:
        if load.done and not load.failed:
            worker.submit(load.result().close)
        worker.finish(patience if load.done else 0)
        progress.say_warnings()


def _stdin_reader(job: Job) -> StdinReader | None:
    """A reader of stdin, where it is to be read; it starts at once.

    Raises:
        UsageError: If there is nothing to answer, before anything is loaded.
    """
    from erniechat.ui.inputs import StdinReader

    if not job.arguments.no_stdin and not job.terminal.stdin_is_tty and sys.stdin is not None:
        return StdinReader(sys.stdin.fileno())
    if job.arguments.prompt == "-":
        raise UsageError("-p - reads stdin, but stdin is a terminal", 'give -p "TEXT"')
    _join(job)
    return None


def _read_files(arguments: Arguments) -> tuple[str | None, tuple[dict[str, Any], ...]]:
    """The system prompt and the tools."""
    from erniechat.ui.inputs import read_system, read_tools

    return read_system(arguments.system), read_tools(arguments.tools)


def _join(job: Job, stdin: str = "") -> str:
    from erniechat.ui.inputs import join_prompt

    return join_prompt(stdin, job.arguments.prompt, job.arguments.text)


def _read_prompt(
    job: Job, reader: StdinReader | None, load: Task[Any], tick: Callable[[], None]
) -> str:
    """The whole prompt, read while the model loads; returns when both are there.

    Raises:
        UsageError: If it is empty, or stdin is not text.
        ErnieChatError: If loading failed.
    """
    from erniechat.ui.inputs import WAIT_NOTICE, WAIT_NOTICE_SECONDS

    prompt = None if reader else _join(job)
    noticed = False
    while prompt is None or not load.done:
        if prompt is None and reader is not None and reader.done:
            prompt = _join(job, reader.text())
        if load.failed:
            break
        if reader and not noticed and reader.silent_seconds >= WAIT_NOTICE_SECONDS:
            noticed = True
            job.terminal.note(WAIT_NOTICE)
        if not load.done:
            tick()
        time.sleep(POLL_SECONDS)
    job.terminal.live.wipe()
    load.result()
    return prompt or ""


def _oneshot(job: Job) -> int:
    from erniechat.ui.oneshot import Request, run_oneshot

    arguments, settings = job.arguments, job.settings
    system, tools = _read_files(arguments)
    reader = _stdin_reader(job)
    with _engine(job) as (worker, load, progress):
        prompt = _read_prompt(job, reader, load, progress.draw)
        progress.say_warnings()
        if job.notice:
            job.terminal.note(job.notice)
        request = Request(
            prompt,
            system,
            tools,
            raw=arguments.raw,
            think=settings.think,
            thoughts=settings.display.thoughts,
            sampling=settings.sampling,
            json=arguments.json,
            verbose=settings.display.verbose,
        )
        run_oneshot(worker, load.result(), request, job.terminal)
    return 0


def _dry_run(job: Job) -> int:
    """Print the exact prompt on stdout and its token count on stderr; both in one with --json."""
    from erniechat.ui.oneshot import Request
    from erniechat.ui.worker import Task

    arguments = job.arguments
    system, tools = _read_files(arguments)
    reader = _stdin_reader(job)
    load = Task(lambda: job.services.load_prompt_tools(job.settings.load))
    load.run()
    text = _read_prompt(job, reader, load, lambda: None)
    found = load.result()
    if not arguments.raw:
        messages = Request(text, system).messages
        text = found.render_prompt(messages, tools=tools, think=job.settings.think)
    num_tokens = found.count_tokens(text)
    out = AnswerStream(job.terminal.stdout, sanitize=job.terminal.stdout_is_tty)
    if arguments.json:
        out.write(json.dumps({"prompt": text, "tokens": num_tokens}) + "\n")
    else:
        out.write(text if text.endswith("\n") else text + "\n")
        job.terminal.line(f"{num_tokens:,} tokens")
    return 0


def _bench(job: Job, bench: BenchOptions) -> int:
    result = job.services.run_bench(job.settings.load, bench, job.terminal.line)
    if bench.json:
        return _print(job.terminal, json.dumps(result) + "\n")
    return _print(job.terminal, job.services.format_bench(result).rstrip("\n") + "\n")


def _repl(job: Job) -> int:
    arguments = job.arguments
    if not job.terminal.stdout_is_tty:
        raise UsageError("no prompt, and stdout is no terminal to chat on", 'give -p "TEXT"')
    system, tools = _read_files(arguments)
    job.terminal.live.show(f"loading {job.settings.load.model}")  # before the imports below
    with _engine(job) as (worker, load, progress):
        from erniechat.ui.repl import ChatSetup, chat

        setup = ChatSetup(job.settings, system, tools, arguments.raw, job.notice, _debug())
        return chat(job.terminal, worker, load, progress, setup)


def flush_quietly(stream: TextIO | None) -> None:
    """Flush a stream that may be closed, or gone."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return
