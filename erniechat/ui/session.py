"""One chat as state: conversation, settings, totals; what commands change and the loop reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from erniechat.backend import ChatBackend
from erniechat.chat.conversation import Message
from erniechat.chat.session_file import SessionFile
from erniechat.chat.sessions import SavedChat
from erniechat.chat.summary import Compaction, Summary, as_read, summaries_of
from erniechat.errors import ErnieChatError
from erniechat.events import StreamEvent, TurnEnd
from erniechat.options import SamplingOptions
from erniechat.ui.reply import ReplyRecord, Totals
from erniechat.ui.screen import Screen
from erniechat.ui.settings import Settings


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be answered next.

    Attributes:
        text: The user's message; None goes on from the conversation as it is.
        typed: What of it was typed, where files were put before it.
        sampling: How tokens are chosen, where not as the settings say.
        part: What there is of the answer already.
        attached: The files that were put before it by themselves.
        compaction: A summary to be made instead of an answer.
    """

    text: str | None
    typed: str = ""
    sampling: SamplingOptions | None = None
    part: Message | None = None
    attached: tuple[str, ...] = ()
    compaction: Compaction | None = None


@dataclass(slots=True)
class Session:
    """The state of one chat.

    Attributes:
        runnable: Names of tools that may be run.
        raw: Texts are gone on from as they are, each by itself, without a chat template.
        saving: Whether the conversation is kept on disk.
        environ: The environment, for the editor and the clipboard.
        messages: All that was said; the newest of the summaries is read in place of the first.
        last: The newest reply, until it is undone: for /stats; its text is in `last_reply`, too.
        attached: Files that the next message brings along.
        file_prices: What the files named in the prompt cost, for the toolbar.
        draft: Text that the next prompt starts with.
        next_turn: To be answered at once instead of prompting.
        exit_status: Set once the chat is to end.
    """

    backend: ChatBackend
    settings: Settings
    screen: Screen
    tools: tuple[dict[str, Any], ...] = ()
    runnable: tuple[str, ...] = ()
    raw: bool = False
    saving: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    last: ReplyRecord | None = None
    attached: list[str] = field(default_factory=list)
    file_prices: dict[tuple[object, ...], int] = field(default_factory=dict)
    draft: str = ""
    next_turn: Turn | None = None
    exit_status: int | None = None
    _file: SessionFile | None = None
    _parts_written: tuple[int, int] = (0, 0)
    _num_context_tokens: int | None = None
    _thinking: list[tuple[Message, int]] = field(default_factory=list)  # answers, tokens

    @property
    def thoughts_mode(self) -> str:
        """How thinking is shown: full, summary or none."""
        mode = self.settings.display.thoughts
        return "summary" if mode == "auto" else mode

    @property
    def id(self) -> str:
        """The session's name on disk, empty where there is none yet."""
        return self._file.id if self._file else ""

    @property
    def conversation(self) -> list[Message]:
        """What the model reads: the system prompt, then the messages or a summary of the first."""
        return as_read(self.system, self.messages, self.summary)

    @property
    def summary(self) -> Summary | None:
        """What stands for the first messages."""
        return self.summaries[-1] if self.summaries else None

    @property
    def num_summarised(self) -> int:
        """The first messages, which the model does not read."""
        return self.summary.num_messages if self.summary else 0

    @property
    def num_exchanges(self) -> int:
        """Messages of the user."""
        return sum(message.role == "user" for message in self.messages)

    def touch(self) -> None:
        """Say that the conversation has changed."""
        self._num_context_tokens = None

    @property
    def num_context_tokens(self) -> int:
        """Tokens that the conversation takes before the next message, exactly; 0 for an empty one.

        Thoughts are not among them: a template shows those of an answer only until that message.
        """
        if self._num_context_tokens is None:
            conversation = [] if self.raw else self.conversation
            self._num_context_tokens = self.count(conversation)
        return self._num_context_tokens

    def count(self, conversation: Sequence[Message]) -> int:
        """Tokens of what the model would read, without thoughts; 0 for nothing."""
        if not conversation:
            return 0
        try:
            think = self.settings.think
            kept = [replace(message, thoughts=None) for message in conversation]
            return self.backend.count_prompt(kept, tools=self.tools, think=think)
        except ErnieChatError:  # a template may refuse a conversation without a user
            return sum(self.backend.count_tokens(message.content) for message in conversation)

    def begin(self, turn: Turn) -> None:
        """Take a message into the conversation, and to the disk before it is answered."""
        self._parts_written = (0, 0)
        if not self.raw and turn.text is not None:
            self._add(Message("user", turn.text))
        self.touch()

    def events(self, turn: Turn) -> Iterator[StreamEvent]:
        """The reply to the conversation, or in raw mode to the text."""
        sampling = turn.sampling or self.settings.sampling
        if self.raw:
            return self.backend.stream_completion(turn.text or "", sampling)
        return self.backend.stream_reply(
            self.conversation,
            sampling,
            tools=self.tools,
            think=self.settings.think,
            part=turn.part,
            session=self.id,
        )

    def save_part(self, record: ReplyRecord) -> None:
        """Bring to the disk what has come of a reply since the last time."""
        thoughts, text = self._parts_written
        if self._file and (len(record.thoughts), len(record.text)) != self._parts_written:
            self._file.add_part(record.thoughts[thoughts:], record.text[text:])
            self._parts_written = (len(record.thoughts), len(record.text))

    def keep(self, record: ReplyRecord, part: Message | None = None) -> None:
        """Take a reply, whole or a part, into the conversation; after a part, joined to it."""
        self.last = record
        if record.end is not None:
            self.totals.add(record.end)
        thoughts, text = record.thoughts, record.text
        if part is not None:
            thoughts, text = (part.thoughts or "") + thoughts, part.content + text
            self.last = replace(record, thoughts=thoughts, text=text)
            self.summaries = summaries_of(self.summaries, len(self.messages))
            if self._file:
                self._file.keep(len(self.messages), "continue")
        if not self.raw:
            answer = Message("assistant", text, thoughts.strip() or None, tuple(record.calls))
            self._thinking.append((answer, self._num_thoughts(part) + record.num_thoughts))
            self._add(answer, record.end)
        self.touch()

    @property
    def last_reply(self) -> ReplyRecord:
        """The newest reply's thoughts and text; without one here, those of the last message."""
        if self.last is not None:
            return self.last
        message = self.messages[-1] if self.messages else None
        if message is None or message.role != "assistant":
            return ReplyRecord()
        return ReplyRecord(thoughts=message.thoughts or "", text=message.content)

    @property
    def num_dropped_thoughts(self) -> int:
        """Tokens of the last answer's thoughts, which the next prompt has not; 0 if unknown."""
        return self._num_thoughts(self.messages[-1]) if self.messages else 0

    def _num_thoughts(self, answer: Message | None) -> int:
        return next((num for known, num in self._thinking if known is answer), 0)

    def _add(self, message: Message, end: TurnEnd | None = None) -> None:
        self.messages.append(message)
        if self.saving and self._file is None:
            self._file = self._new_file()
        if self._file:
            self._file.set_system(self.system)
            self._file.add_message(message, end)

    def _new_file(self, parent: str = "") -> SessionFile:
        load = self.settings.load
        settings = {"model": load.model, "quant": self.backend.info.quant}
        if load.revision is not None:
            settings["revision"] = load.revision
        return SessionFile(self.screen.note, settings, parent=parent)

    def add_results(self, results: list[Message]) -> None:
        """Take what tools gave into the conversation."""
        for message in results:
            self._add(message)
        self.touch()

    def give_back(self, turn: Turn) -> None:
        """Let the next prompt start with a message that was not sent."""
        if turn.part is not None:
            self.messages.append(turn.part)
        elif turn.text is not None:
            self.draft = turn.typed or turn.text
            self.attached = list(turn.attached)
        self.touch()

    def take_back(self, record: ReplyRecord, turn: Turn) -> None:
        """Forget a message that was not answered; the next prompt starts with it."""
        if record.end is not None:
            self.totals.add(record.end)
        is_asked = turn.part is None and turn.text is not None and not self.raw
        last = record if record.thoughts else self.last
        if is_asked and self.messages and self.messages[-1].role == "user":
            self.truncate(len(self.messages) - 1, "unanswered")
        self.last = last
        self.give_back(turn)

    def truncate(self, num_messages: int, why: str) -> None:
        """Keep only the first messages; the file keeps the others too."""
        if num_messages < len(self.messages):
            self.last = None
        del self.messages[num_messages:]
        self.summaries = summaries_of(self.summaries, num_messages)
        if self._file:
            self._file.keep(num_messages, why)
        self.touch()

    def summarise(self, text: str, num_messages: int) -> None:
        """Let the model read a text in place of the first messages, which are kept."""
        self._add_summary(Summary(text, num_messages, len(self.messages)))

    def _add_summary(self, summary: Summary) -> None:
        self.summaries.append(summary)
        if self._file:
            self._file.add_summary(summary)
        self.touch()

    def drop_summary(self) -> Summary | None:
        """Take the newest summary away if nothing was said since; None otherwise."""
        if self.summary is None or self.summary.made_at < len(self.messages):
            return None
        if self._file:
            self._file.add_summary(None)
        self.touch()
        return self.summaries.pop()

    def drop_exchange(self, why: str) -> str | None:
        """Take the last message of the user and all after it away; None if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                text = self.messages[index].content
                self.truncate(index, why)
                return text
        return None

    def reset(self) -> None:
        """Start a new conversation with the same settings."""
        self.close()
        self.messages.clear()
        self.summaries.clear()
        self.last = None
        self.touch()

    def replace_conversation(
        self, messages: list[Message], parent: str = "", summaries: Sequence[Summary] = ()
    ) -> None:
        """Go on from other messages and summaries of them, in a session of their own."""
        self.reset()
        if messages and messages[0].role == "system":
            self.system, messages = messages[0].content, messages[1:]
        if self.saving:
            self._file = self._new_file(parent)
        for message in messages:
            self._add(message)
        for summary in summaries:
            self._add_summary(summary)

    def resume(self, chat: SavedChat) -> None:
        """Go on with a saved conversation, in its file.

        Raises:
            UsageError: If another process has it open.
        """
        file = SessionFile.resume(chat, self.screen.note) if self.saving else None
        self.reset()
        self._file = file
        self.system = chat.system if chat.system is not None else self.system
        self.messages, self.summaries = list(chat.messages), list(chat.summaries)
        if self.messages and self.messages[-1].role == "user":
            self.draft = self.messages[-1].content
            self.truncate(len(self.messages) - 1, "unanswered")
        self.touch()

    def close(self) -> None:
        """Let go of the session's file."""
        if self._file:
            self._file.close()
            self._file = None
