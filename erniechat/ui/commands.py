"""The slash commands: one table, and how a line is matched to them."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from erniechat.chat.sessions import session_paths
from erniechat.errors import UsageError
from erniechat.ui.screen import plain_table
from erniechat.ui.session import Session
from erniechat.ui.session_commands import (
    export_command,
    fork_command,
    load_command,
    log_command,
    reset_command,
    resume_command,
    sessions_command,
)
from erniechat.ui.setting_commands import (
    LIVE,
    model_command,
    nothink_command,
    raw_command,
    set_command,
    system_command,
    think_command,
    thoughts_command,
)
from erniechat.ui.stats import stats_tables
from erniechat.ui.turn_commands import (
    compact_command,
    continue_command,
    copy_command,
    edit_command,
    file_command,
    retry_command,
    undo_command,
)

LEAVING_WORDS = ("exit", "quit", "bye")  # not sent to the model by mistake
HELP_WORD = "?"

KEYS = (
    ("Enter", 'send · new line: Alt-Enter, Ctrl-J, \\ Enter, """'),
    ("Esc, Ctrl-C", "stop an answer; it stays in the conversation"),
    ("Ctrl-R, Up", "earlier messages · Ctrl-X Ctrl-E: write in $EDITOR"),
    ("Ctrl-D", "leave"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command: how it is written, what it does, what Tab offers after it.

    Attributes:
        paths: Whether Tab offers files after it.
    """

    name: str
    arguments: str
    summary: str
    run: Callable[[Session, str], None]
    aliases: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    details: str = ""
    paths: bool = False

    @property
    def usage(self) -> str:
        """As it is typed."""
        return f"/{self.name} {self.arguments}".rstrip()

    def completions(self) -> tuple[str, ...]:
        """What Tab offers as its first word."""
        if self.name == "resume":
            return tuple(path.stem for path in session_paths())
        return self.values


def parse_line(text: str) -> tuple[str, str] | None:
    """The command word and its argument, or None where the text is for the model.

    A command starts with a slash in the first column. More than one line is a command only if
    its first word is one: a pasted path or diff is text.
    """
    if not text.startswith("/") or text.startswith("//"):
        return None
    word, _, argument = text[1:].partition(" ")
    first, newline, rest = word.partition("\n")
    if newline:
        word, argument = first, rest + (" " + argument if argument else "")
    if "\n" in text.strip() and find(word) is None:
        return None
    return word, argument.strip()


def literal(text: str) -> str:
    """The message that a line stands for: ``//x`` is ``/x``; a leading blank is dropped."""
    if text.startswith("//"):
        return text[1:]
    return text[1:] if text.startswith(" ") else text


def as_line(text: str) -> str:
    """The line that stands for a message, where the message itself would be a command."""
    if text.startswith("//") or parse_line(text) is not None:
        return "/" + text
    is_word = text.strip() in (*LEAVING_WORDS, HELP_WORD)
    return " " + text if is_word or text.startswith(" ") else text


def find(word: str) -> Command | None:
    """The command of a name or alias."""
    for command in COMMANDS:
        if word == command.name or word in command.aliases:
            return command
    return None


def run_command(session: Session, word: str, argument: str) -> None:
    """Run a command.

    Raises:
        UsageError: If there is none of that name, or its argument is wrong.
    """
    command = find(word)
    if command is not None:
        command.run(session, argument)
        return
    if word.replace("-", "_") in LIVE:
        set_command(session, f"{word} {argument}")
        return
    guess = _guess(word) or "see /help."
    raise UsageError(f"no command /{word}", f"{guess} To send it as text: //{word}")


def _guess(word: str) -> str:
    """Which commands a word may have meant; empty if it is like none."""
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    near = difflib.get_close_matches(word, [*names, *LIVE], n=2, cutoff=0.6)
    return f"did you mean {' or '.join('/' + name for name in near)}?" if near else ""


def _help(session: Session, argument: str) -> None:
    if argument:
        command = find(argument.lstrip("/"))
        if command is None:
            raise UsageError(
                f'no command "{argument}"', _guess(argument.lstrip("/")) or "see /help"
            )
        aliases = "".join(f", /{name}" for name in command.aliases)
        session.screen.line(f"{command.usage}{aliases}", style="bold")
        session.screen.line(command.summary)
        if command.details:
            session.screen.line(command.details)
        return
    table = plain_table()
    for usage, summary in (*PAGE, *KEYS):
        table.add_row(usage, summary)
    session.screen.show(table)
    session.screen.note(
        "/help retry tells more of one · //text, or a blank before it, sends a line with a slash"
    )


def _stats(session: Session, argument: str) -> None:
    for table in stats_tables(session):
        session.screen.show(table)


def _tools(session: Session, argument: str) -> None:
    if not session.tools:
        session.screen.line("no tools; erniechat --tools FILE.json gives some")
        return
    table = plain_table("tool", "what it does")
    for tool in session.tools:
        function = tool["function"]
        table.add_row(str(function["name"]), str(function.get("description", "")))
    session.screen.show(table)
    names = ", ".join(session.runnable)
    session.screen.note(f"may be run: {names}" if names else "calls are shown, not run")


def _image(session: Session, argument: str) -> None:
    raise UsageError("this checkpoint reads text only", "/file adds a text file")


def _exit(session: Session, argument: str) -> None:
    session.exit_status = 0


# The page of /help: related commands share a line.
PAGE = (
    ("/retry [key=value …]", "answer the last message again"),
    ("/continue", "go on with an answer that was stopped or cut"),
    ("/edit [answer]", "change the last message, or the answer, in $EDITOR"),
    ("/undo [n]", "drop the last exchanges; the message comes back"),
    ("/copy [code [n]], /raw", "the last answer, or code of it; as the model wrote it"),
    ("/file PATH …, @path", "put text files before the message"),
    ("/set [setting [value]]", "show or change settings; /temperature 0.3 is short for it"),
    ("/system [text | @file]", "show or set the system prompt"),
    ("/think [mode | budget N]", "whether, and how much, the model thinks"),
    ("/thoughts [mode], Ctrl-O", "show the last thoughts, or set how they are shown"),
    ("/model, /stats, /tools", "what is loaded; tokens, times, memory; functions"),
    ("/compact [n], /reset", "summarise the first exchanges; begin a new conversation"),
    ("/sessions, /resume [ID]", "list saved conversations; go on with one"),
    ("/fork, /load PATH", "branch this one off; take one from a file"),
    ("/export FORMAT [PATH]", "write it as md, json or txt"),
    ("/log, /exit", "where things are kept; leave"),
)

COMMANDS: tuple[Command, ...] = (
    Command("help", "[command]", "this page, or one command", _help, ("?",)),
    Command(
        "reset", "", "new conversation, same settings", reset_command, ("new", "clear"), (),
        "The old one stays saved.",
    ),
    Command(
        "system", "[text | @file]", "show or set the system prompt", system_command, (), (),
        "A single - removes it. The conversation stays.",
    ),
    Command(
        "think", "[on|off|auto|budget N]", "whether the model thinks", think_command, (),
        ("on", "off", "auto", "budget"),
        "/think budget 500 ends the thinking after 500 tokens; /think budget off undoes that.",
    ),
    Command("nothink", "", "short for /think off", nothink_command),
    Command(
        "thoughts", "[full|summary|none]", "show the last thoughts, or how they are shown",
        thoughts_command, (), ("full", "summary", "none"),
    ),
    Command(
        "set", "[setting [value]]", "show or change settings", set_command, ("show",), LIVE,
        "The value default goes back to the checkpoint's own. /temperature 0.3 is short for it.",
    ),
    Command("model", "", "what is loaded", model_command),
    Command("stats", "", "tokens, times, context, memory", _stats, ("tokens",)),
    Command(
        "retry", "[key=value …]", "answer the last message again", retry_command, ("regen",), (),
        "Settings after it count for this answer: /retry temperature=1.2 seed=4. The old answer "
        "stays in the session's file.",
    ),
    Command(
        "continue", "", "go on with the last answer", continue_command, (), (),
        "After a stop or a length limit: the model goes on from the part.",
    ),
    Command(
        "edit", "[answer]", "change the last message in $EDITOR, then send it", edit_command, (),
        ("answer",), "/edit answer changes what the model said, and it goes on from there.",
    ),
    Command(
        "undo", "[n]", "drop the last exchange; its message comes back", undo_command, (), (),
        "With a number, the last n exchanges. A summary that /compact made goes before what was "
        "said before it.",
    ),
    Command(
        "compact", "[n]", "summarise the first n exchanges", compact_command, (), (),
        "Without n all but the last. What would go is shown first. The originals stay in the "
        "session and in what /export writes; /undo brings them back, /system shows the summary.",
    ),
    Command(
        "copy", "[code [n]]", "copy the last answer", copy_command, (), ("code",),
        "/copy code takes its last code block, /copy code 1 its first.",
    ),
    Command(
        "file", "PATH …", "put text files before the next message", file_command, (), (),
        "Patterns such as *.py are allowed; @path in a message does the same. A single - takes "
        "away what was put there.", True,
    ),
    Command(
        "raw", "", "the last answer as the model wrote it", raw_command, (), (),
        "/markdown off shows every answer so.",
    ),
    Command("tools", "", "the functions that the model may call", _tools),
    Command("sessions", "", "list saved conversations", sessions_command),
    Command(
        "resume", "[ID]", "go on with a saved conversation", resume_command, (), (),
        "Without an id, the newest.",
    ),
    Command("fork", "", "go on in a new session; the old one stays as it is", fork_command),
    Command(
        "export", "md|json|txt [PATH]", "write the conversation to a file", export_command,
        ("save",), ("md", "json", "txt"), "--force replaces a file that is there.", True,
    ),
    Command("load", "PATH", "go on from a file: .json or .jsonl", load_command, (), (), "", True),
    Command("log", "", "where the session and the settings are kept", log_command),
    Command("image", "", "not with this model", _image),
    Command("exit", "", "leave", _exit, ("quit", "bye")),
)  # fmt: skip  # one command a line or two
