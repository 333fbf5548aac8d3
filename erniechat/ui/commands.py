"""The slash commands: one table, one function each, and how a line is matched to them."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from erniechat.errors import UsageError
from erniechat.options import OPTIONS
from erniechat.ui.inputs import read_system
from erniechat.ui.screen import plain_table
from erniechat.ui.session import Session
from erniechat.ui.settings import BUILT_IN
from erniechat.ui.stats import stats_tables
from erniechat.ui.text import count, seconds

KEYS = (
    ("Enter", "send"),
    ('Alt-Enter, Ctrl-J, \\ Enter, """', "new line"),
    ("Esc, Ctrl-C", "stop an answer; it stays in the conversation"),
    ("Ctrl-R, Up, Down", "earlier messages"),
    ("Ctrl-X Ctrl-E", "write in $EDITOR"),
    ("Ctrl-D", "leave"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command: how it is written, what it does, what Tab offers after it."""

    name: str
    arguments: str
    summary: str
    run: Callable[[Session, str], None]
    aliases: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    details: str = ""

    @property
    def usage(self) -> str:
        """As it is typed."""
        return f"/{self.name} {self.arguments}".rstrip()


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
    if word.replace("-", "_") in _LIVE:
        _set(session, f"{word} {argument}")
        return
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    names += _LIVE
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join('/' + name for name in near)}?" if near else "see /help"
    raise UsageError(f"no command /{word}", f"{guess} To send it as text: //{word}")


def _one_of(command: str, argument: str, values: Sequence[str]) -> str:
    if argument not in values:
        raise UsageError(f'/{command} takes {", ".join(values)}, got "{argument}"')
    return argument


def _help(session: Session, argument: str) -> None:
    if argument:
        command = find(argument.lstrip("/"))
        if command is None:
            raise UsageError(f'no command "{argument}"', "see /help")
        aliases = "".join(f", /{name}" for name in command.aliases)
        session.screen.line(f"{command.usage}{aliases}", style="bold")
        session.screen.line(command.summary)
        if command.details:
            session.screen.line(command.details)
        return
    table = plain_table()
    for command in COMMANDS:
        table.add_row(command.usage, command.summary)
    table.add_row()
    for key, meaning in KEYS:
        table.add_row(key, meaning)
    session.screen.show(table)
    session.screen.note("//text, or a blank before it, sends a line that starts with a slash")


def _reset(session: Session, argument: str) -> None:
    session.reset()
    session.screen.note("new conversation, same settings")


def _system(session: Session, argument: str) -> None:
    if not argument:
        session.screen.block(session.system or "no system prompt")
        return
    session.system = None if argument == "-" else read_system(argument)
    session.touch()
    count_text = f"{count(session.num_context_tokens)} tok" if session.messages else "nothing yet"
    what = "system prompt set" if session.system else "system prompt removed"
    session.screen.note(f"{what} · the next message re-reads {count_text}")


def _think(session: Session, argument: str) -> None:
    support = session.backend.info.thinking
    if not argument:
        says = {"never": "never thinks", "always": "always thinks", "switchable": "can think"}
        session.screen.line(f"think {session.settings.think} · this model {says[support]}")
        return
    mode = _one_of("think", argument, OPTIONS["think"].spec.choices)
    if mode == "on" and support == "never":
        raise UsageError(
            f"{session.backend.info.model} has no thinking mode",
            "baidu/ERNIE-4.5-21B-A3B-Thinking has",
        )
    session.settings.set("think", mode, "/think")
    session.touch()
    session.screen.note(f"think {mode}, from the next message on")


def _thoughts(session: Session, argument: str) -> None:
    if argument:
        mode = _one_of("thoughts", argument, ("full", "summary", "none"))
        session.settings.set("thoughts", mode, "/thoughts")
        session.screen.note(f"thoughts {mode}")
        return
    record = session.last
    if record is None or not record.thoughts.strip():
        session.screen.line("the last answer has no thoughts")
        return
    num_tokens = session.backend.count_tokens(record.thoughts)
    spent = f" · {seconds(record.end.seconds.think)}" if record.end else ""
    session.screen.note(f"thoughts of the last answer · {count(num_tokens)} tok{spent}")
    session.screen.block(record.thoughts.strip(), style="dim")


def _set(session: Session, argument: str) -> None:
    name, _, text = argument.partition(" ")
    name = name.lstrip("-").replace("-", "_")
    if not name:
        _show_settings(session)
        return
    option = OPTIONS.get(name)
    live = [key for key, found in OPTIONS.items() if found.spec.live]
    if option is None:
        near = difflib.get_close_matches(name, live, n=1)
        raise UsageError(f'no setting "{name}"', f"did you mean {near[0]}?" if near else "see /set")
    if not option.spec.live:
        raise UsageError(f"{name} is set when the program starts", f"erniechat {option.flag} …")
    text = text.strip()
    if text == "default":
        session.settings.unset(name)
    elif text:
        session.settings.set(name, option.parse(text, name), "/set")
    session.touch()
    session.screen.line(f"{name} {_value(session, name)} · {_source(session, name)}")


def _value(session: Session, name: str) -> str:
    """What is in force, where "None" would say nothing."""
    value = session.settings.values.get(name)
    if value is None:
        value = _default(session, name)
    return str(value)


def _default(session: Session, name: str) -> str:
    """What holds without a flag: the checkpoint's own value, or the built-in one."""
    defaults = session.backend.info.defaults
    value = getattr(defaults, name, None)
    if value is None:
        value = OPTIONS[name].default
    words = {"seed": "random", "max_tokens": "what fits"}
    return words.get(name, "off") if value is None else f"{value}"


def _source(session: Session, name: str) -> str:
    origin = session.settings.origin(name)
    if origin == BUILT_IN and getattr(session.backend.info.defaults, name, None) is not None:
        return "checkpoint"
    return origin


def _show_settings(session: Session) -> None:
    table = plain_table("setting", "value", "default", "source")
    for name, option in OPTIONS.items():
        if option.spec.live:
            row = (name, _value(session, name), _default(session, name), _source(session, name))
            table.add_row(*row)
    session.screen.show(table)
    session.screen.note("/set temperature 0.3 changes one · /set temperature default undoes it")


def _stats(session: Session, argument: str) -> None:
    for table in stats_tables(session):
        session.screen.show(table)


def _retry(session: Session, argument: str) -> None:
    text = session.drop_exchange()
    if text is None:
        raise UsageError("there is no message to answer again")
    session.resend = text


def _undo(session: Session, argument: str) -> None:
    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise UsageError(f'/undo takes a number of exchanges, got "{argument}"')
    before = session.num_context_tokens
    dropped = 0
    for _ in range(int(argument or 1)):
        text = session.drop_exchange()
        if text is None:
            break
        session.draft = text
        dropped += 1
    if not dropped:
        raise UsageError("there is nothing to undo")
    freed = before - session.num_context_tokens
    exchanges = "1 exchange" if dropped == 1 else f"{dropped} exchanges"
    session.screen.note(f"undone: {exchanges}, {count(freed)} tok freed")


def _tools(session: Session, argument: str) -> None:
    if not session.tools:
        session.screen.line("no tools; erniechat --tools FILE.json gives some")
        return
    table = plain_table("tool", "what it does")
    for tool in session.tools:
        function = tool["function"]
        table.add_row(str(function["name"]), str(function.get("description", "")))
    session.screen.show(table)
    session.screen.note("calls are shown, not run")


def _exit(session: Session, argument: str) -> None:
    session.exit_status = 0


_LIVE = tuple(name for name, option in OPTIONS.items() if option.spec.live)

COMMANDS: tuple[Command, ...] = (
    Command("help", "[command]", "this page, or one command", _help, ("?",)),
    Command("reset", "", "new conversation, same settings", _reset, ("new", "clear")),
    Command(
        "system", "[text | @file]", "show or set the system prompt", _system, (), (),
        "A single - removes it. The conversation stays.",
    ),
    Command(
        "think", "[on|off|auto]", "whether the model thinks", _think, (), ("on", "off", "auto"),
    ),
    Command(
        "thoughts", "[full|summary|none]", "show the last thoughts, or how they are shown",
        _thoughts, (), ("full", "summary", "none"),
    ),
    Command(
        "set", "[setting [value]]", "show or change settings", _set, (), _LIVE,
        "The value default goes back to the checkpoint's own. /temperature 0.3 is short for it.",
    ),
    Command("stats", "", "tokens, times, context, memory", _stats),
    Command("retry", "", "answer the last message again", _retry, ("regen",)),
    Command(
        "undo", "[n]", "drop the last exchange; its message comes back", _undo, (), (),
        "With a number, the last n exchanges.",
    ),
    Command("tools", "", "the functions that the model may call", _tools),
    Command("exit", "", "leave", _exit, ("quit", "bye")),
)  # fmt: skip  # one command a line or two
