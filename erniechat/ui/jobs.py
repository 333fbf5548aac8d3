"""One run of the program that needs a model: it is loaded, asked, and closed."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from erniechat.backend import ChatBackend
from erniechat.chat.conversation import Message, ThinkMode
from erniechat.chat.session_file import SessionFile
from erniechat.chat.sessions import SavedChat
from erniechat.chat.summary import summaries_of
from erniechat.errors import TimeLimitError, UsageError
from erniechat.events import Progress
from erniechat.options import LoadOptions
from erniechat.paths import user_path
from erniechat.ui.announce import GetNotice, announce
from erniechat.ui.arguments import Arguments
from erniechat.ui.asking import Asking, read_structure
from erniechat.ui.files import check_writable
from erniechat.ui.fitting import fit
from erniechat.ui.inputs import read_system
from erniechat.ui.oneshot import Deadline, Request, run_oneshot
from erniechat.ui.progress import LoadProgress
from erniechat.ui.settings import BUILT_IN, Settings
from erniechat.ui.signals import Interrupted
from erniechat.ui.terminal import AnswerStream, Terminal
from erniechat.ui.tool_commands import read_tool_file
from erniechat.ui.worker import Task, Worker

LoadEngine = Callable[[LoadOptions, Callable[[Progress], None], Callable[[str], None]], ChatBackend]

REAL_MODEL_NOTICE = (
    "mini is small and built in; the real one: erniechat --model baidu/ERNIE-4.5-21B-A3B-PT --4bit"
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

    def count_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> int:
        """Tokens of that text, as the model would read it."""
        ...

    def count_tokens(self, text: str, *, raw: bool = False) -> int:
        """Tokens of a text."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the program.

    Attributes:
        saved: The session to go on with.
        start_notice: What a first start would fetch.
    """

    arguments: Arguments
    settings: Settings
    terminal: Terminal
    load_engine: LoadEngine
    load_prompt_tools: Callable[[LoadOptions], PromptTools]
    saved: SavedChat | None = None
    start_notice: GetNotice | None = None

    @property
    def notice(self) -> str:
        """What to say of the model, if the user named none."""
        return REAL_MODEL_NOTICE if self.settings.origin("model") == BUILT_IN else ""


@contextmanager
def engine(job: Job) -> Iterator[tuple[Worker, Task[ChatBackend], LoadProgress]]:
    """Within: the model loads, then runs, on a thread of its own; at the end it is closed."""
    options = job.settings.load
    progress = LoadProgress(job.terminal, options.model)
    worker = Worker()
    if job.start_notice is not None:
        announce(
            options,
            job.start_notice,
            worker,
            job.terminal,
            sys.stdin,
            yes=job.arguments.yes,
        )
    load = worker.submit(lambda: _load(job, progress))
    patience = CLOSE_SECONDS
    try:
        yield worker, load, progress
    except (Interrupted, BrokenPipeError, TimeLimitError):
        patience = HURRIED_CLOSE_SECONDS
        raise
    finally:
        if load.done and not load.failed:
            worker.submit(load.result().close)
        worker.finish(patience if load.done else 0)
        progress.say_warnings()


def _load(job: Job, progress: LoadProgress) -> ChatBackend:
    log, options = job.terminal.log, job.settings.load
    log.write(f"loading {options.model} quant {options.quant} device {options.device}")
    backend = job.load_engine(options, progress, progress.warn)
    info, memory = backend.info, backend.memory()
    log.write(
        f"loaded {info.model} {info.quant} on {info.device} in {info.load_seconds:.2f} s, context "
        f"{info.context_length}, weights {memory.weights_nbytes} bytes"
    )
    return backend


def answer_once(job: Job) -> int:
    """Answer one question; the exit status.

    Raises:
        ErnieChatError: What any part of it raised, with the exit status.
    """
    arguments, settings = job.arguments, job.settings
    if arguments.run_tools:
        raise UsageError("--run-tools asks before it runs, so it needs the chat", "leave -p out")
    deadline = Deadline.after(settings.chat.timeout)
    request = _request(job, deadline)
    asking = Asking.start(arguments, job.terminal, settings.chat, deadline)
    with engine(job) as (worker, load, progress), _session_file(job, request) as file:
        question = asking.wait(load, progress.draw)
        progress.say_warnings()
        if job.notice:
            job.terminal.note(job.notice)
        backend = load.result()
        text, share = fit(question, settings.chat.overflow, backend, request)
        if share:
            job.terminal.note(f"{100 * share:.0f} % of the input was cut (--overflow)")
        request = dataclasses.replace(request, prompt=text, file=file)
        run_oneshot(worker, backend, request, job.terminal)
    return 0


def _request(job: Job, deadline: Deadline) -> Request:
    """All of a request but its text.

    Raises:
        UsageError: If a file that it names cannot be read or written.
    """
    arguments, settings, saved = job.arguments, job.settings, job.saved
    output = user_path(arguments.output) if arguments.output else None
    if output is not None:
        check_writable(output, force=True)
    system = read_system(settings.chat.system)
    earlier = _answered(saved)
    summaries = summaries_of(saved.summaries if saved else (), len(earlier))
    return Request(
        "",
        system if system is not None or saved is None else saved.system,
        tuple(earlier),
        summaries[-1] if summaries else None,
        read_tool_file(arguments.tools).tools,
        raw=arguments.raw,
        think=settings.think,
        thoughts=settings.display.thoughts,
        sampling=settings.sampling,
        structure=read_structure(arguments.structure),
        form="json" if arguments.json else "jsonl" if arguments.jsonl else "text",
        output=output,
        deadline=deadline,
        verbose=settings.display.verbose,
        stats=settings.display.stats,
        sanitize=settings.display.sanitize,
    )


def _answered(saved: SavedChat | None) -> list[Message]:
    """The messages of a session but a last one without an answer: another one follows it."""
    messages = list(saved.messages) if saved else []
    if messages and messages[-1].role == "user":
        messages.pop()
    return messages


@contextmanager
def _session_file(job: Job, request: Request) -> Iterator[SessionFile | None]:
    """Where one answer is saved: in the session that it goes on with, or with --save in a new one.

    Raises:
        UsageError: If another process has the session open.
    """
    save, saved = job.settings.chat.save, job.saved
    if save is False or (save is None and saved is None):
        yield None
        return

    for line in saved.damage if saved else ():
        job.terminal.note(line)
    load = {"model": job.settings.load.model, "quant": job.settings.load.quant}
    warn = job.terminal.note
    file = SessionFile.resume(saved, warn) if saved else SessionFile(warn, load)
    file.set_system(request.system)
    if saved and len(request.earlier) < len(saved.messages):
        job.terminal.note(f"the last message of session {saved.id} has no answer and is left out")
        file.keep(len(request.earlier), "unanswered")
    try:
        yield file
    finally:
        file.close()


def dry_run(job: Job) -> int:
    """Print the exact prompt on stdout and its token count on stderr; both in one with --json."""
    arguments = job.arguments
    request = _request(job, Deadline())
    asking = Asking.start(arguments, job.terminal, job.settings.chat)
    load = Task(lambda: job.load_prompt_tools(job.settings.load))
    load.run()
    text = asking.wait(load, lambda: None).text
    found = load.result()
    if arguments.raw:
        num_tokens = found.count_tokens(text, raw=True)
    else:
        messages = dataclasses.replace(request, prompt=text).messages
        text = found.render_prompt(messages, tools=request.tools, think=request.think)
        num_tokens = found.count_prompt(messages, tools=request.tools, think=request.think)
    out = AnswerStream(job.terminal.stdout, sanitize=job.terminal.stdout_is_tty)
    if arguments.json:
        out.write(json.dumps({"prompt": text, "tokens": num_tokens}) + "\n")
    else:
        out.write(text if text.endswith("\n") else text + "\n")
        job.terminal.line(f"{num_tokens:,} tokens")
    return 0
