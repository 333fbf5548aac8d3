"""One prompt, one answer: the answer to stdout, everything else to stderr."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from erniechat.backend import ChatBackend
from erniechat.chat.conversation import Message, ThinkMode
from erniechat.events import Progress, StreamEvent, TextDelta, ThinkingDelta, TurnEnd
from erniechat.options import SamplingOptions
from erniechat.ui.progress import progress_text
from erniechat.ui.reply import (
    AnswerTrim,
    ReplyRecord,
    call_arguments,
    call_json,
    thinking_line,
    thought_line,
    trimmed,
)
from erniechat.ui.signals import Interrupted
from erniechat.ui.terminal import AnswerStream, Terminal
from erniechat.ui.text import rate, seconds, visible
from erniechat.ui.worker import Reply, Worker

POLL_SECONDS = 0.03
STOP_SECONDS = 0.25
NO_TEMPLATE_NOTICE = "this checkpoint has no chat template; it goes on from the text as it stands"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and how it is shown."""

    prompt: str
    system: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    raw: bool = False
    think: ThinkMode = "auto"
    thoughts: str = "auto"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    json: bool = False
    verbose: bool = False

    @property
    def messages(self) -> list[Message]:
        """The conversation that is answered."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, Message("user", self.prompt)]


class _Presenter:
    """Shows the events of one reply as they come."""

    def __init__(self, terminal: Terminal, request: Request, raw: bool) -> None:
        self._terminal = terminal
        self._json = request.json
        self._asked = request.thoughts
        self.mode = request.thoughts
        if self.mode == "auto":
            self.mode = "summary" if terminal.stderr_is_tty else "none"
        self._trim = AnswerTrim(keep_start=raw)
        self.out = AnswerStream(terminal.stdout, sanitize=terminal.stdout_is_tty)
        self.record = ReplyRecord()
        self._thinking = False

    def show(self, events: list[StreamEvent]) -> None:
        """Take a group of events in."""
        answer = ""
        for event in events:
            self.record.add(event)
            match event:
                case Progress() if self.record.elapsed > 0.5:
                    self._terminal.live.show(progress_text(event))
                case ThinkingDelta(text):
                    self._thinking = True
                    self._think(text)
                case TextDelta(text):
                    self._end_thinking()
                    answer += self._trim.feed(text)
        if answer and not self._json:
            self._terminal.live.wipe()
            self.out.write(answer)
        if self._thinking and self.mode != "none":
            elapsed = seconds(self.record.elapsed)
            self._terminal.live.show(thinking_line(elapsed, self.record.num_thinking_deltas))

    def _think(self, text: str) -> None:
        if self.mode == "full" and not self._terminal.quiet:
            text = visible(text) if self._terminal.stderr_is_tty else text
            self._terminal.thoughts(text)

    def _end_thinking(self) -> None:
        if not self._thinking:
            return
        self._thinking = False
        if self.mode == "full" and not self._terminal.quiet:
            self._terminal.write_error("\n\n")
        if self._asked == "summary":
            elapsed = seconds(self.record.elapsed)
            self._terminal.line(thought_line(elapsed, self.record.num_thinking_deltas))

    def finish(self) -> None:
        """Calls and the last newline."""
        self._end_thinking()
        self._terminal.live.wipe()
        if self._json:
            return
        if self.record.calls:
            if not self.out.at_line_start:
                self.out.write("\n")
            self.out.write("".join(call_json(call) + "\n" for call in self.record.calls))
        else:
            self.out.write("\n")


def run_oneshot(
    worker: Worker, backend: ChatBackend, request: Request, terminal: Terminal
) -> TurnEnd:
    """Answer a request on stdout.

    Raises:
        ErnieChatError: What the engine raised, or stdout that cannot be written.
        BrokenPipeError: If the reader of stdout went away; the reply is cancelled.
        Interrupted: After a signal; the part answer is on stdout and ends with a newline.
    """
    raw = request.raw or not backend.info.has_chat_template
    if raw and not request.raw:
        terminal.note(NO_TEMPLATE_NOTICE)
    presenter = _Presenter(terminal, request, raw)
    reply = worker.start(lambda: _events(backend, request, raw), backend.cancel)
    try:
        _pump(reply, presenter)
    except BaseException as exc:
        reply.cancel()
        if isinstance(exc, Interrupted):
            _take_rest(reply, presenter)
            if request.json:
                _write_json(presenter, backend, raw)
        raise
    if request.json:
        _write_json(presenter, backend, raw)
    end = presenter.record.end or TurnEnd("stop")
    _say_end(end, request, backend, terminal)
    return end


def _events(backend: ChatBackend, request: Request, raw: bool) -> Iterator[StreamEvent]:
    if raw:
        return backend.stream_completion(request.prompt, request.sampling)
    return backend.stream_reply(
        request.messages, request.sampling, tools=request.tools, think=request.think
    )


def _pump(reply: Reply, presenter: _Presenter) -> None:
    while not reply.done:
        presenter.show(reply.take(POLL_SECONDS))
        presenter.out.check_reader()
    reply.check()
    presenter.finish()


def _take_rest(reply: Reply, presenter: _Presenter) -> None:
    """After a signal: what comes within the time there is, then the newline."""
    deadline = time.monotonic() + STOP_SECONDS
    while not reply.done and time.monotonic() < deadline:
        presenter.show(reply.take(POLL_SECONDS))
    if presenter.record.text.strip():
        presenter.finish()


def _write_json(presenter: _Presenter, backend: ChatBackend, raw: bool) -> None:
    presenter.out.write(json.dumps(result_object(presenter.record, backend, raw)) + "\n")


def result_object(record: ReplyRecord, backend: ChatBackend, raw: bool = False) -> dict[str, Any]:
    """The one object that --json prints; seconds and bytes."""
    end = record.end or TurnEnd("cancelled")
    info, memory = backend.info, backend.memory()
    usage, spent = end.usage, end.seconds
    return {
        "text": trimmed(record.text, keep_start=raw),
        "thinking": record.thoughts.strip(),
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call_arguments(call)}
            for call in record.calls
        ],
        "finish_reason": end.finish_reason,
        "usage": {
            "prompt": usage.prompt,
            "cached": usage.cached,
            "thinking": usage.thinking,
            "answer": usage.answer,
        },
        "time": {
            "load": round(info.load_seconds, 4),
            "read": round(spent.read, 4),
            "think": round(spent.think, 4),
            "write": round(spent.write, 4),
        },
        "memory": {
            "weights": memory.weights_nbytes,
            "kv_cache": memory.kv_cache_nbytes,
            "host": memory.host_nbytes,
            "host_peak": memory.host_peak_nbytes,
            "gpu": memory.gpu_nbytes,
            "gpu_peak": memory.gpu_peak_nbytes,
        },
        "seed": end.seed,
        "model": info.model,
        "quant": info.quant,
    }


def length_note(limit: int | None, context_length: int) -> str:
    """Why a reply ended before the model was done, and the way out."""
    if limit is not None:
        return f"stopped at --max-tokens {limit}; raise it for the rest"
    return f"stopped: the context of {context_length:,} tokens is full"


def _say_end(end: TurnEnd, request: Request, backend: ChatBackend, terminal: Terminal) -> None:
    if end.finish_reason == "length":
        used = end.usage.thinking + end.usage.answer
        limit = request.sampling.max_tokens
        limit = limit if limit is not None and used >= limit else None
        terminal.note(length_note(limit, backend.info.context_length))
    if request.verbose:
        written = end.usage.answer
        terminal.line(
            f"read {end.usage.prompt:,} tok ({end.usage.cached:,} cached) in"
            f" {seconds(end.seconds.read)} · wrote {written:,} tok at"
            f" {rate(written, end.seconds.write)} tok/s · seed {end.seed}"
        )
