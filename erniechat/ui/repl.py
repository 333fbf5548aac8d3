"""The chat: prompt, answer, prompt; commands; and the ways in and out."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from erniechat.backend import ChatBackend
from erniechat.chat.sessions import SavedChat, session_paths, sessions_folder
from erniechat.chat.summary import Compaction
from erniechat.errors import ErnieChatError
from erniechat.ui.answering import POLL_SECONDS, Answerer
from erniechat.ui.attachments import expand
from erniechat.ui.bindings import unquoted
from erniechat.ui.commands import (
    HELP_WORD,
    LEAVING_WORDS,
    as_line,
    literal,
    parse_line,
    run_command,
)
from erniechat.ui.compacting import compact, show
from erniechat.ui.inputs import read_system
from erniechat.ui.keys import KeyWatch
from erniechat.ui.overflow import make_fit
from erniechat.ui.progress import LoadProgress
from erniechat.ui.prompt import Prompt, make_prompt
from erniechat.ui.result import NO_TEMPLATE_NOTICE
from erniechat.ui.run_tools import Consent, run_calls
from erniechat.ui.screen import Screen, make_screen
from erniechat.ui.session import Session, Turn
from erniechat.ui.session_commands import say_resumed
from erniechat.ui.settings import Settings
from erniechat.ui.signals import Interrupted
from erniechat.ui.stats import context_text, stats_tables, toolbar_text
from erniechat.ui.terminal import Terminal
from erniechat.ui.text import count, exchanges
from erniechat.ui.tool_commands import ToolCommand
from erniechat.ui.worker import Task, Worker


@dataclass(frozen=True, slots=True)
class ChatSetup:
    """What a chat starts with.

    Attributes:
        document: The first message, read from a pipe; empty for none.
        runners: The commands of tools that may be run, by name; empty where none may.
        saved: The session to go on with.
    """

    settings: Settings
    tools: tuple[dict[str, Any], ...] = ()
    raw: bool = False
    notice: str = ""
    debug: bool = False
    document: str = ""
    runners: Mapping[str, ToolCommand] = field(default_factory=dict)
    saved: SavedChat | None = None
    environ: Mapping[str, str] = field(default_factory=dict)


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
    prompt = make_prompt(
        terminal,
        screen,
        lambda width, text: toolbar_text(sessions[0], width, text),
        lambda text: sessions[0].backend.count_tokens(text),
        history=setup.settings.chat.history,
    )
    terminal.live.wipe()
    wait_for_load(load, progress, prompt.watch(), screen)
    backend = load.result()
    progress.say_warnings()
    session = _new_session(backend, screen, setup)
    sessions.append(session)
    sampling = setup.settings.sampling
    worker.submit(lambda: backend.warm_up(sampling, lambda: worker.is_wanted))  # while they type
    try:
        return Repl(session, worker, prompt, setup.runners, debug=setup.debug).run(setup)
    finally:
        session.close()


def _new_session(backend: ChatBackend, screen: Screen, setup: ChatSetup) -> Session:
    raw = setup.raw or not backend.info.has_chat_template
    save = setup.settings.chat.save
    session = Session(
        backend,
        setup.settings,
        screen,
        tools=setup.tools,
        raw=raw,
        saving=not raw and (save is None or save),
        environ=setup.environ,
        system=read_system(setup.settings.chat.system),
    )
    if setup.saved is not None:
        session.resume(setup.saved)
    return session


def wait_for_load(
    load: Task[ChatBackend], progress: LoadProgress, watch: KeyWatch, screen: Screen
) -> None:
    """Draw the load until it ends; keys typed meanwhile go into the first prompt.

    Raises:
        Interrupted: If the user does not want to wait.
    """
    with watch:
        while not load.done:
            progress.draw_on(screen.live)
            if {"interrupt", "stop"} & set(watch.poll(POLL_SECONDS)):
                screen.live.wipe()
                raise Interrupted(signal.SIGINT)
    screen.live.wipe()


class Repl:
    """The loop of one chat.

    Args:
        session: The state.
        worker: The thread that the model runs on.
        prompt: The keyboard.
        runners: The commands of tools that may be run.
        debug: Whether a bug in a turn is shown with its traceback.
    """

    def __init__(
        self,
        session: Session,
        worker: Worker,
        prompt: Prompt,
        runners: Mapping[str, ToolCommand] | None = None,
        *,
        debug: bool = False,
    ) -> None:
        self._session = session
        self._screen = session.screen
        self._prompt = prompt
        self._consent = Consent(runners or {}, prompt, session.screen)
        session.runnable = tuple(runners or {})
        self._answerer = Answerer(session, worker, prompt, debug=debug)

    def run(self, setup: ChatSetup | None = None) -> int:
        """Chat until the user leaves; return the exit status.

        Raises:
            Interrupted: If the user leaves by a second Ctrl-C.
        """
        session = self._session
        self._say_hello(setup)
        if setup and setup.document:
            session.next_turn = Turn(setup.document)
        while session.exit_status is None:
            try:
                self._step()
            except EOFError:
                session.exit_status = 0
            except Interrupted:
                raise
            except KeyboardInterrupt:
                if self._answerer.was_just_stopped:
                    raise Interrupted(signal.SIGINT) from None
                self._screen.note("Ctrl-D leaves")
        self._say_goodbye()
        return session.exit_status

    def _say_hello(self, setup: ChatSetup | None) -> None:
        info = self._session.backend.info
        thinks = {
            "never": "does not think",
            "always": "thinks before it answers",
            "switchable": "can think",
        }
        parts = [info.model, info.quant, info.device, context_text(info)]
        if info.has_chat_template:
            parts.append(thinks[info.thinking])
        if self._screen.quiet:
            return
        self._screen.line(" · ".join(parts), style="bold")
        keys = "Alt-Enter new line · Esc stops an answer"
        if not self._screen.moves_cursor:
            keys = "\\ Enter new line · Ctrl-C stops an answer"
        self._screen.note(f"/help lists commands · {keys} · Ctrl-D leaves")
        if setup and setup.notice:
            self._screen.note(setup.notice)
        if self._session.raw:
            self._screen.note(NO_TEMPLATE_NOTICE)
        self._say_where(setup)
        self._screen.line()

    def _say_where(self, setup: ChatSetup | None) -> None:
        """Where the conversation is kept: the first time, and when an old one is gone on with."""
        session = self._session
        if setup and setup.saved is not None:
            say_resumed(session, setup.saved)
            if session.draft:
                self._screen.note("its last message was not answered; it is back in the prompt")
        elif session.saving and not session_paths():
            self._screen.note(
                f"conversations are kept in {sessions_folder()}; --no-save keeps none"
            )

    def _say_goodbye(self) -> None:
        if self._screen.quiet:
            return
        said = f" · {exchanges(self._session.num_exchanges)}" if self._session.num_exchanges else ""
        if name := self._session.id:
            back = f"back with: erniechat -c   (or --resume {name})"
            self._screen.block(f"saved {name}{said} · {back}", style="dim")
        else:
            self._screen.note(f"goodbye{said}")

    def _step(self) -> None:
        """One prompt and what it leads to."""
        session = self._session
        try:
            if session.next_turn is None:
                draft, session.draft = session.draft, ""
                text = self._prompt.ask(as_line(draft))
                if not text.strip():
                    return
                self._obey_or_send(text)
            while session.next_turn is not None and session.exit_status is None:
                turn, session.next_turn = session.next_turn, None
                self._answer(turn)
        except ErnieChatError as exc:
            self._screen.error(str(exc))
        if session.exit_status is None:
            self._screen.line()

    def _obey_or_send(self, text: str) -> None:
        command = ("help", "") if text.rstrip() == HELP_WORD else parse_line(text)
        if command is None and text.strip() in LEAVING_WORDS and not text.startswith(" "):
            word = text.strip()
            self._screen.note(f'Ctrl-D or /exit leaves; " {word}" with a blank before it sends it')
        elif command is None:
            typed = unquoted(literal(text))
            attached = tuple(self._session.attached)
            whole = self._whole_message(typed)
            self._session.next_turn = Turn(whole, typed, attached=attached)
        else:
            run_command(self._session, *command)

    def _whole_message(self, text: str) -> str:
        """A message with the files that it names or that were attached before."""
        session = self._session
        text, files = (text, []) if session.raw else expand(text)
        for path, body in files:
            tokens = count(session.backend.count_tokens(body))
            self._screen.note(f"@{path} +{tokens} tok")
        attached, session.attached = session.attached, []
        return "\n\n".join([*attached, *(body for _, body in files), text])

    def _compact(self, plan: Compaction) -> None:
        compact(self._session, plan, self._answerer.aside, self._prompt.confirm)

    def _answer(self, turn: Turn) -> None:
        """Answer a turn, and run the tools that it calls if the user says so."""
        session = self._session
        if turn.compaction is not None:
            show(session, turn.compaction)
            if self._prompt.confirm("Go on?"):
                self._compact(turn.compaction)
            return
        if not make_fit(session, turn, self._prompt, self._compact):
            return
        if self._answerer.answer(turn):
            calls = session.messages[-1].tool_calls if session.messages else ()
            results = run_calls(calls, self._consent) if calls else []
            if results:
                session.add_results(results)
                session.next_turn = Turn(None)
        if session.settings.display.stats and not session.next_turn:
            for table in stats_tables(session):
                self._screen.show(table)
