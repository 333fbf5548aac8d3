"""The chat: prompt, answer, prompt; commands; and what stops, fails and leaves."""

import signal
import time
import traceback
from dataclasses import dataclass
from typing import Any

from erniechat.backend import ChatBackend
from erniechat.errors import ErnieChatError
from erniechat.events import TurnEnd
from erniechat.ui.commands import literal, parse_line, run_command
from erniechat.ui.failure import describe
from erniechat.ui.keys import KeyWatch
from erniechat.ui.oneshot import NO_TEMPLATE_NOTICE, length_note
from erniechat.ui.progress import LoadProgress
from erniechat.ui.prompt import Prompt, make_prompt, unquoted
from erniechat.ui.reply_view import ReplyView
from erniechat.ui.screen import Screen, make_screen
from erniechat.ui.session import Session
from erniechat.ui.settings import Settings
from erniechat.ui.signals import Interrupted
from erniechat.ui.stats import toolbar_text
from erniechat.ui.terminal import Terminal
from erniechat.ui.text import count
from erniechat.ui.worker import Reply, Task, Worker

POLL_SECONDS = 0.03
LEAVE_SECONDS = 2.0
LEAVING_WORDS = ("exit", "quit", "bye")


@dataclass(frozen=True, slots=True)
class ChatSetup:
    """What a chat starts with."""

    settings: Settings
    system: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    raw: bool = False
    notice: str = ""
    debug: bool = False


def chat(
    terminal: Terminal,
    worker: Worker,
    load: Task[ChatBackend],
    progress: LoadProgress,
    setup: ChatSetup,
) -> int:
    """Wait for the model, then chat until the user leaves; the exit status.

    Raises:
        Interrupted: If the user leaves by Ctrl-C.
        ErnieChatError: If the model does not load.
    """
    screen = make_screen(terminal)
    sessions: list[Session] = []  # the prompt is there before the session: it owns the keyboard
    prompt = make_prompt(terminal, screen, lambda width: toolbar_text(sessions[0], width))
    terminal.live.wipe()
    wait_for_load(load, progress, prompt.watch(), screen)
    backend = load.result()
    progress.say_warnings()
    raw = setup.raw or not backend.info.has_chat_template
    session = Session(backend, setup.settings, screen, setup.system, setup.tools, raw)
    sessions.append(session)
    return Repl(session, worker, prompt, debug=setup.debug).run(setup.notice)


def wait_for_load(
    load: Task[ChatBackend], progress: LoadProgress, watch: KeyWatch, screen: Screen
) -> None:
    """Draw the load until it ends; keys typed meanwhile go into the first prompt.

    Raises:
        Interrupted: If the user does not want to wait.
    """
    with watch:
        while not load.done:
            screen.live.show(progress.text)
            if watch.poll(POLL_SECONDS):
                screen.live.wipe()
                raise Interrupted(signal.SIGINT)
    screen.live.wipe()


class Repl:
    """The loop of one chat.

    Args:
        session: The state.
        worker: The thread that the model runs on.
        prompt: The keyboard.
        debug: Whether a bug in a turn is shown with its traceback.
    """

    def __init__(
        self, session: Session, worker: Worker, prompt: Prompt, *, debug: bool = False
    ) -> None:
        self._debug = debug
        self._session = session
        self._screen = session.screen
        self._worker = worker
        self._prompt = prompt
        self._stopped_at = float("-inf")

    def run(self, notice: str = "") -> int:
        """Chat until the user leaves; return the exit status.

        Raises:
            Interrupted: If the user leaves by a second Ctrl-C.
        """
        self._say_hello(notice)
        while self._session.exit_status is None:
            try:
                self._step()
            except EOFError:
                self._session.exit_status = 0
            except Interrupted:
                raise
            except KeyboardInterrupt:
                if time.monotonic() - self._stopped_at < LEAVE_SECONDS:
                    raise Interrupted(signal.SIGINT) from None
                self._screen.note("Ctrl-D leaves")
        self._say_goodbye()
        return self._session.exit_status

    def _say_hello(self, notice: str) -> None:
        info = self._session.backend.info
        thinks = {
            "never": "does not think",
            "always": "thinks before it answers",
            "switchable": "can think",
        }
        parts = [info.model, info.quant, info.device, f"context {count(info.context_length)}"]
        if info.has_chat_template:
            parts.append(thinks[info.thinking])
        if self._screen.quiet:
            return
        self._screen.line(" · ".join(parts), style="bold")
        keys = "Alt-Enter new line · Esc stops an answer"
        if not self._screen.moves_cursor:
            keys = "\\ Enter new line · Ctrl-C stops an answer"
        self._screen.note(f"/help lists commands · {keys} · Ctrl-D leaves")
        if notice:
            self._screen.note(notice)
        if self._session.raw:
            self._screen.note(NO_TEMPLATE_NOTICE)
        self._screen.line()

    def _say_goodbye(self) -> None:
        if not self._screen.quiet:
            exchanges = self._session.num_exchanges
            said = f" · {exchanges} exchange{'s' if exchanges != 1 else ''}" if exchanges else ""
            self._screen.note(f"goodbye{said}")

    def _step(self) -> None:
        """One prompt and what it leads to."""
        draft, self._session.draft = self._session.draft, ""
        text = self._prompt.ask(draft)
        if not text.strip():
            return
        try:
            self._obey_or_send(text)
        except ErnieChatError as exc:
            self._screen.error(str(exc))
        if self._session.exit_status is None:
            self._screen.line()

    def _obey_or_send(self, text: str) -> None:
        command = ("help", "") if text.strip() == "?" else parse_line(text)
        if command is None and text.strip() in LEAVING_WORDS and not text.startswith(" "):
            word = text.strip()
            self._screen.note(f'Ctrl-D or /exit leaves; " {word}" with a blank before it sends it')
            return
        if command is None:
            self._answer(unquoted(literal(text)))
            return
        run_command(self._session, *command)
        resend, self._session.resend = self._session.resend, None
        if resend is not None:
            self._answer(resend)

    def _answer(self, text: str) -> None:
        """Send a message and draw the reply."""
        session = self._session
        self._screen.line()
        view = ReplyView(
            self._screen, session.thoughts_mode, session.backend.count_tokens, session.raw
        )
        session.begin(text)
        reply = self._worker.start(lambda: session.events(text), session.backend.cancel)
        try:
            self._draw(reply, view)
            reply.check()
        except EOFError:
            raise
        except Exception as exc:
            self._fail(view, text, exc)
            return
        view.finish()
        self._settle(view, text)

    def _draw(self, reply: Reply, view: ReplyView) -> None:
        """Draw events and obey keys until the reply ends.

        Raises:
            Interrupted: For a second Ctrl-C soon after the first.
        """
        try:
            with self._prompt.watch() as keys:
                while not reply.done:
                    for action in keys.poll(POLL_SECONDS):
                        now = time.monotonic()
                        if action == "interrupt" and now - self._stopped_at < LEAVE_SECONDS:
                            raise Interrupted(signal.SIGINT)
                        if action == "interrupt":
                            self._stopped_at = now
                        reply.cancel()
                        view.stopping()
                    view.show(reply.take(0))
        except BaseException:
            reply.cancel()
            view.finish()
            raise

    def _fail(self, view: ReplyView, text: str, exc: Exception) -> None:
        """An error in a turn: keep what was written, or give the message back."""
        view.finish()
        if self._debug:
            self._screen.block("".join(traceback.format_exception(exc)))
        if view.record.has_answer:
            self._session.keep(view.record)
            self._screen.line()
            self._say_error(exc)
            self._screen.note("the part above is kept in the conversation · /retry, /undo")
            return
        self._session.take_back(view.record, text)
        self._say_error(exc)

    def _say_error(self, exc: Exception) -> None:
        """One line; a bug in the engine ends the turn and not the chat."""
        if isinstance(exc, ErnieChatError):
            self._screen.error(str(exc))
        else:
            tail = "" if self._debug else " (ERNIECHAT_DEBUG=1 shows where)"
            self._screen.line(f"internal error: {describe(exc)}{tail}")

    def _settle(self, view: ReplyView, text: str) -> None:
        """The lines under an answer, and its place in the conversation."""
        session, record = self._session, view.record
        end = record.end or TurnEnd("cancelled")
        if end.finish_reason == "cancelled" and not record.has_answer:
            session.take_back(record, text)
            self._screen.note("stopped by you before the answer began · the message is back")
            return
        session.keep(record)
        if not self._screen.quiet:
            self._screen.line()
        if end.finish_reason == "cancelled":
            kept = "" if session.raw else " · the part is kept · /retry, /undo or type on"
            self._screen.note(f"stopped by you after {count(end.usage.answer)} tok{kept}")
        elif not self._screen.quiet:
            self._screen.note(view.summary(end))
        if end.finish_reason == "length":
            limit = session.settings.sampling.max_tokens
            self._screen.note(length_note(limit, session.backend.info.context_length))
