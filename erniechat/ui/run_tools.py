"""Running the commands of called tools: after a yes, without a shell, arguments on stdin."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from erniechat.chat.conversation import Message
from erniechat.events import ToolCall
from erniechat.ui.keys import KeyWatch
from erniechat.ui.prompt import Prompt
from erniechat.ui.reply_view import QUIET_SECONDS, STOP_HINT
from erniechat.ui.screen import Screen
from erniechat.ui.terminal import LiveLine
from erniechat.ui.text import count, one_line, seconds
from erniechat.ui.tool_commands import ToolCommand
from erniechat.ui.worker import Task, Worker

RUN_SECONDS = 60.0
POLL_SECONDS = 0.05
MAX_OUTPUT_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class Consent:
    """Who may run what: the commands of tools, and the keyboard that is asked."""

    commands: Mapping[str, ToolCommand]
    prompt: Prompt
    screen: Screen

    def given_for(self, call: ToolCall, command: ToolCommand) -> bool:
        """Whether a call may be run: its file allows it, or the user says yes."""
        if command.is_allowed:
            return True
        line = one_line(f"{' '.join(command.argv)} < {call.arguments}")
        return self.prompt.confirm(f"run {line} ?")


def run_calls(calls: Sequence[ToolCall], consent: Consent) -> list[Message]:
    """The tool messages of calls, in order; none if nothing was run."""
    if not consent.commands:
        return []
    results, num_run = [], 0
    for call in calls:
        command = consent.commands.get(call.name)
        if command is None:
            results.append(_error(f"there is no command for {call.name}"))
        elif not consent.given_for(call, command):
            results.append(_error("the user did not allow this call"))
        else:
            num_run += 1
            with consent.prompt.watch() as keys:
                live = consent.screen.live
                tick = partial(_show_running, live, call.name)
                results.append(run_command(call, command.argv, keys, tick))
                live.wipe()
            said = one_line(results[-1].content)[:200]
            consent.screen.note(f"← {said} ({count(len(results[-1].content))} characters)")
    if not num_run:
        consent.screen.note("nothing was run; type on, or /retry")
    return results if num_run else []


def _show_running(live: LiveLine, name: str, spent: float) -> None:
    if spent > QUIET_SECONDS:
        live.show(f"running {name} {seconds(spent)}    {STOP_HINT}")


def run_command(
    call: ToolCall,
    argv: Sequence[str],
    keys: KeyWatch,
    tick: Callable[[float], None] = lambda spent: None,
) -> Message:
    """What a command answers to a call: its output, as JSON where it is that.

    Args:
        call: Its arguments are the command's stdin.
        argv: Program and arguments.
        keys: Esc or Ctrl-C ends the command.
        tick: Told again and again for how many seconds it runs.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        return _error(f"cannot run {argv[0]}: {exc}")
    worker = Worker()
    data = call.arguments.encode("utf-8", "replace")
    task = worker.submit(lambda: process.communicate(data, RUN_SECONDS))
    reason = _wait(task, keys, process, tick)
    worker.finish(1.0)
    if reason:
        return _error(reason)
    stdout, stderr = (text.decode("utf-8", "replace") for text in task.result())
    if process.returncode != 0:
        last_words = stderr.strip()[-2000:]
        return _error(f"{argv[0]} ended with status {process.returncode}: {last_words}")
    return _result(stdout[:MAX_OUTPUT_CHARS].strip())


def _wait(
    task: Task[tuple[bytes, bytes]],
    keys: KeyWatch,
    process: "subprocess.Popen[bytes]",
    tick: Callable[[float], None],
) -> str:
    """Wait for a command; why it was ended, empty if it ended by itself."""
    reason, began = "", time.monotonic()
    try:
        while not task.done:
            tick(time.monotonic() - began)
            stops = {"stop", "interrupt"}.intersection(keys.poll(POLL_SECONDS))
            if stops and not reason:
                reason = "stopped by the user"
                _kill(process)
    except BaseException:
        _kill(process)
        raise
    if task.failed and not reason:
        _kill(process)
        process.communicate()
        reason = f"no answer within {RUN_SECONDS:.0f} seconds"
    return reason


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a command and all that it started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _result(text: str) -> Message:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return Message("tool", text)
    return Message("tool", text, content_is_json=True)


def _error(text: str) -> Message:
    return Message("tool", json.dumps({"error": text}, ensure_ascii=False), content_is_json=True)
