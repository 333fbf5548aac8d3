"""One turn of the chat: the reply is drawn, may be stopped, and finds its place."""

import signal
import time
import traceback
from collections.abc import Callable, Iterator

from erniechat.errors import ErnieChatError
from erniechat.events import StreamEvent, TurnEnd
from erniechat.ui.failure import describe
from erniechat.ui.prompt import Prompt
from erniechat.ui.reply import ReplyRecord, growth_line
from erniechat.ui.reply_view import ReplyView
from erniechat.ui.result import EMPTY_NOTE, end_line, is_empty, length_note, reached_limit
from erniechat.ui.session import Session, Turn
from erniechat.ui.signals import Interrupted
from erniechat.ui.text import count
from erniechat.ui.worker import Reply, Worker

POLL_SECONDS = 0.03
LEAVE_SECONDS = 2.0
SAVE_SECONDS = 1.0


class Answerer:
    """Answers turns.

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

    @property
    def was_just_stopped(self) -> bool:
        """Whether a Ctrl-C now is the second of two."""
        return time.monotonic() - self._stopped_at < LEAVE_SECONDS

    def answer(self, turn: Turn) -> bool:
        """Send a turn and draw the reply; whether it came to its end.

        Raises:
            Interrupted: For a second Ctrl-C soon after the first.
        """
        session = self._session
        self._screen.line()
        view = self._view()
        session.begin(turn)
        reply = self._worker.start(lambda: session.events(turn), session.backend.cancel)
        try:
            self._draw(reply, view, session.save_part)
            reply.check()
        except EOFError:
            raise
        except Exception as exc:
            self._fail(view, turn, exc)
            return False
        view.finish()
        return self._settle(view, turn)

    def aside(self, events: Callable[[], Iterator[StreamEvent]]) -> ReplyRecord | None:
        """Draw a reply that is no part of the conversation; None if it was stopped or failed.

        Raises:
            Interrupted: For a second Ctrl-C soon after the first.
        """
        self._screen.line()
        view = self._view()
        reply = self._worker.start(events, self._session.backend.cancel)
        try:
            self._draw(reply, view, lambda record: None)
            reply.check()
        except EOFError:
            raise
        except Exception as exc:
            self._report(view, exc)
            self._say_error(exc)
            return None
        view.finish()
        self._screen.line()
        end = view.record.end
        if end is not None:
            self._screen.log.write(end_line(end))
            self._session.totals.add(end)
        return view.record if end is not None and end.finish_reason != "cancelled" else None

    def _view(self) -> ReplyView:
        session = self._session
        return ReplyView(
            self._screen,
            session.thoughts_mode,
            session.raw,
            markdown=session.settings.display.markdown and not session.raw,
            sentences=session.settings.display.screen_reader,
        )

    def _draw(self, reply: Reply, view: ReplyView, save: Callable[[ReplyRecord], None]) -> None:
        """Draw events and obey keys until the reply ends."""
        saved_at = time.monotonic()
        try:
            with self._prompt.watch() as keys:
                while not reply.done:
                    for action in keys.poll(POLL_SECONDS):
                        if action in ("unfold", "resumed"):
                            view.obey(action)
                            continue
                        if action == "interrupt" and self.was_just_stopped:
                            raise Interrupted(signal.SIGINT)
                        if action == "interrupt":
                            self._stopped_at = time.monotonic()
                        reply.cancel()
                        view.stopping()
                    view.show(reply.take(0))
                    if time.monotonic() - saved_at > SAVE_SECONDS:
                        save(view.record)
                        saved_at = time.monotonic()
        except BaseException:
            reply.cancel()
            save(view.record)  # first: the terminal may be gone
            view.finish()
            raise

    def _fail(self, view: ReplyView, turn: Turn, exc: Exception) -> None:
        """An error in a turn: keep what was written, or give the message back."""
        self._report(view, exc)
        if view.record.has_answer:
            self._session.keep(view.record, turn.part)
            self._screen.line()
            self._say_error(exc)
            self._screen.note(
                "the part above is kept in the conversation · /continue, /retry, /undo"
            )
            return
        self._session.take_back(view.record, turn)
        self._say_error(exc)

    def _report(self, view: ReplyView, exc: Exception) -> None:
        """End what was drawn; where it failed goes to the log."""
        self._screen.log.failure(exc)
        view.finish()
        if self._debug:
            self._screen.block("".join(traceback.format_exception(exc)))

    def _say_error(self, exc: Exception) -> None:
        """One line; a bug in the engine ends the turn and not the chat."""
        if isinstance(exc, ErnieChatError):
            self._screen.error(str(exc))
        else:
            tail = "" if self._debug else " (ERNIECHAT_DEBUG=1 shows where)"
            self._screen.line(f"internal error: {describe(exc)}{tail}")

    def _settle(self, view: ReplyView, turn: Turn) -> bool:
        """The lines under an answer, and its place in the conversation."""
        session, record = self._session, view.record
        end = record.end or TurnEnd("cancelled")
        self._screen.log.write(end_line(end))
        if end.finish_reason == "cancelled" and not record.has_answer:
            session.take_back(record, turn)
            what = "nothing was added" if turn.part else "the message is back"
            self._screen.note(f"stopped by you before the answer began · {what}")
            return False
        session.keep(record, turn.part)
        if not self._screen.quiet:
            self._screen.line()
        if end.finish_reason == "cancelled":
            kept = "" if session.raw else " · the part is kept · /continue, /retry, /undo"
            self._screen.note(f"stopped by you after {count(end.usage.answer)} tok{kept}")
        elif session.settings.display.screen_reader:
            self._screen.note(f"Done, {count(end.usage.answer)} tokens.")
        elif not self._screen.quiet:
            self._screen.note(view.summary(end))
        if record.growth is not None and not self._screen.quiet:
            self._screen.note(growth_line(record.growth))
        if is_empty(record):
            said = "the model had nothing to add" if turn.part else f"{EMPTY_NOTE} · /retry"
            self._screen.note(said)
        if end.finish_reason == "length":
            sampling = turn.sampling or session.settings.sampling
            note = length_note(record, sampling, session.backend.info.context_length)
            way = " · /continue" if reached_limit(end, sampling) else " · /compact makes room"
            self._screen.note(note if session.raw else note + way)
        return end.finish_reason != "cancelled"
