"""One prompt, one answer: the answer to stdout or a file, everything else to stderr."""

import dataclasses
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erniechat.backend import ChatBackend
from erniechat.chat.conversation import Message, ThinkMode
from erniechat.chat.session_file import SessionFile
from erniechat.chat.summary import Summary, as_read
from erniechat.errors import ErnieChatError, StructureError, TimeLimitError
from erniechat.events import StreamEvent, TurnEnd
from erniechat.options import SamplingOptions, Structure
from erniechat.ui.presenter import FileOut, JsonlPresenter, Out, Presenter, TextPresenter
from erniechat.ui.reply import ReplyRecord
from erniechat.ui.result import (
    EMPTY_NOTE,
    NO_TEMPLATE_NOTICE,
    end_line,
    is_empty,
    length_note,
    numbers,
    result_object,
    stats_lines,
)
from erniechat.ui.signals import Interrupted
from erniechat.ui.terminal import AnswerStream, Terminal
from erniechat.ui.text import rate, seconds
from erniechat.ui.worker import Reply, Worker

POLL_SECONDS = 0.03
STOP_SECONDS = 0.25
MAX_SEED = 2**32


@dataclass(frozen=True, slots=True)
class Deadline:
    """When --timeout passes."""

    at: float = float("inf")
    limit: float = 0.0

    @classmethod
    def after(cls, limit: float | None) -> "Deadline":
        """A deadline so many seconds from now; None is never."""
        return cls() if limit is None else cls(time.monotonic() + limit, limit)

    def check(self) -> None:
        """Raise once it has passed.

        Raises:
            TimeLimitError: With the limit.
        """
        if time.monotonic() > self.at:
            raise TimeLimitError(f"no complete answer within --timeout {self.limit:g} seconds")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and how it is shown.

    Attributes:
        prompt: The message.
        earlier: The conversation before it.
        summary: What is read of the conversation in place of its first messages.
        form: text, json or jsonl.
        output: The file that gets the answer instead of stdout.
        file: Where the conversation is saved, if anywhere.
    """

    prompt: str
    system: str | None = None
    earlier: tuple[Message, ...] = ()
    summary: Summary | None = None
    tools: tuple[dict[str, Any], ...] = ()
    raw: bool = False
    think: ThinkMode = "auto"
    thoughts: str = "auto"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    structure: Structure | None = None
    form: str = "text"
    output: Path | None = None
    file: SessionFile | None = None
    deadline: Deadline = field(default_factory=Deadline)
    verbose: bool = False
    stats: bool = False
    sanitize: bool = False

    @property
    def messages(self) -> list[Message]:
        """The conversation that is answered."""
        earlier = as_read(self.system, self.earlier, self.summary)
        return [*earlier, Message("user", self.prompt)]

    def count_tokens(self, backend: ChatBackend, raw: bool) -> int:
        """Tokens of all that the model reads."""
        if raw:
            return backend.count_tokens(self.prompt, raw=True)
        return backend.count_prompt(self.messages, tools=self.tools, think=self.think)


def run_oneshot(
    worker: Worker, backend: ChatBackend, request: Request, terminal: Terminal
) -> TurnEnd:
    """Answer a request.

    Raises:
        ErnieChatError: What the engine raised, or stdout that cannot be written; TimeLimitError
            and StructureError where the request set such limits.
        BrokenPipeError: If the reader of stdout went away; the reply is cancelled.
        Interrupted: After a signal; the part answer is on stdout and ends with a newline.
    """
    raw = request.raw or not backend.info.has_chat_template
    if raw and not request.raw:
        terminal.note(NO_TEMPLATE_NOTICE)
    request = _seeded(request)
    sanitize = request.sanitize or terminal.stdout_is_tty
    out: AnswerStream | FileOut = AnswerStream(terminal.stdout, sanitize=sanitize)
    if request.output is not None:
        out = FileOut(request.output)
    if request.file is not None and not raw:
        request.file.add_message(request.messages[-1])
    presenter = _presenter(terminal, out, request, backend, raw)
    reply = worker.start(lambda: _events(backend, request, raw), backend.cancel)
    try:
        _pump(reply, presenter, request.deadline)
    except BaseException as exc:
        reply.cancel()
        if isinstance(exc, Interrupted | TimeLimitError):
            _take_rest(reply, presenter)
            _write_numbers(presenter, request, backend, raw)
        elif isinstance(exc, ErnieChatError):
            presenter.break_off()
        if request.file is not None:
            request.file.add_part(presenter.record.thoughts, presenter.record.text)
        raise
    _write_numbers(presenter, request, backend, raw)
    end = presenter.record.end or TurnEnd("stop")
    terminal.log.write(end_line(end))
    _save(presenter, request, raw)
    _say_end(end, presenter.record, request, backend, terminal)
    _check_structure(end, presenter.record, request, backend)
    if isinstance(out, FileOut):
        out.commit()
    return end


def _seeded(request: Request) -> Request:
    """A request with a seed, so that it can be told before the reply begins."""
    if request.sampling.seed is not None:
        return request
    sampling = dataclasses.replace(request.sampling, seed=secrets.randbelow(MAX_SEED))
    return dataclasses.replace(request, sampling=sampling)


def _presenter(
    terminal: Terminal, out: Out, request: Request, backend: ChatBackend, raw: bool
) -> Presenter:
    if request.form != "jsonl":
        silent = request.form == "json"
        return TextPresenter(terminal, out, request.thoughts, raw=raw, silent=silent)
    info = backend.info
    start = {
        "session": (request.file.id or None) if request.file else None,
        "model": info.model,
        "quant": info.quant,
        "seed": request.sampling.seed,
        "prompt_tokens": request.count_tokens(backend, raw),
    }
    return JsonlPresenter(terminal, out, start)


def _events(backend: ChatBackend, request: Request, raw: bool) -> Iterator[StreamEvent]:
    sampling, structure = request.sampling, request.structure
    if raw:
        return backend.stream_completion(request.prompt, sampling, structure=structure)
    return backend.stream_reply(
        request.messages,
        sampling,
        tools=request.tools,
        think=request.think,
        structure=structure,
        session=request.file.id if request.file else "",
    )


def _pump(reply: Reply, presenter: Presenter, deadline: Deadline) -> None:
    while not reply.done:
        presenter.show(reply.take(POLL_SECONDS))
        presenter.out.check_reader()
        deadline.check()
    reply.check()
    presenter.finish()


def _take_rest(reply: Reply, presenter: Presenter) -> None:
    """After a signal: what comes within the time there is, then the newline."""
    deadline = time.monotonic() + STOP_SECONDS
    while not reply.done and time.monotonic() < deadline:
        presenter.show(reply.take(POLL_SECONDS))
    if presenter.record.text.strip():
        presenter.finish()


def _write_numbers(presenter: Presenter, request: Request, backend: ChatBackend, raw: bool) -> None:
    """The object of --json, or the last one of --jsonl."""
    if isinstance(presenter, JsonlPresenter):
        presenter.say("end", **numbers(presenter.record, backend))
    elif request.form == "json":
        found = result_object(presenter.record, backend, raw)
        presenter.out.write(json.dumps(found) + "\n")


def _save(presenter: Presenter, request: Request, raw: bool) -> None:
    """The answer into the session's file."""
    record = presenter.record
    if request.file is not None and not raw:
        thoughts = record.thoughts.strip() or None
        answer = Message("assistant", record.text, thoughts, tuple(record.calls))
        request.file.add_message(answer, record.end)


def _check_structure(
    end: TurnEnd, record: ReplyRecord, request: Request, backend: ChatBackend
) -> None:
    """Refuse an answer that ends before its structure does.

    Raises:
        StructureError: With the reason.
    """
    if request.structure is None or end.is_complete:
        return
    what = "JSON" if request.structure.kind == "json_schema" else "the answer is"
    if end.finish_reason == "length":
        note = length_note(record, request.sampling, backend.info.context_length)
        raise StructureError(f"{what} incomplete: {note}")
    raise StructureError(f"{what} incomplete: the model ended its reply")


def _say_end(
    end: TurnEnd, record: ReplyRecord, request: Request, backend: ChatBackend, terminal: Terminal
) -> None:
    if end.finish_reason == "length" and request.structure is None:
        terminal.note(length_note(record, request.sampling, backend.info.context_length))
    if is_empty(record):
        terminal.note(EMPTY_NOTE)
    if request.stats:
        for line in stats_lines(end, backend, request.sampling):
            terminal.write_error(f"{line}\n")
    elif request.verbose:
        written = end.usage.answer
        terminal.line(
            f"read {end.usage.prompt:,} tok ({end.usage.cached:,} cached) in"
            f" {seconds(end.seconds.read)} · wrote {written:,} tok at"
            f" {rate(written, end.seconds.write)} tok/s · seed {end.seed}"
        )
