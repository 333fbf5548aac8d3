"""Commands that show or change how the model answers."""

import difflib
from collections.abc import Sequence

from erniechat.chat.summary import as_read
from erniechat.errors import UsageError
from erniechat.options import OPTIONS
from erniechat.ui.inputs import read_system
from erniechat.ui.reply import trimmed
from erniechat.ui.screen import columns_that_fit, plain_table
from erniechat.ui.session import Session
from erniechat.ui.settings import BUILT_IN
from erniechat.ui.stats import context_text
from erniechat.ui.text import count, gib, seconds
from erniechat.ui.thoughts import show_thoughts

LIVE = tuple(name for name, option in OPTIONS.items() if option.spec.live)


def _one_of(command: str, argument: str, values: Sequence[str]) -> str:
    if argument not in values:
        raise UsageError(f'/{command} takes {", ".join(values)}, got "{argument}"')
    return argument


def system_command(session: Session, argument: str) -> None:
    """Show or set the system prompt."""
    if not argument:
        read = as_read(session.system, [], session.summary)
        session.screen.block(read[0].content if read else "no system prompt")
        return
    session.system = None if argument == "-" else read_system(argument)
    session.touch()
    count_text = f"{count(session.num_context_tokens)} tok" if session.messages else "nothing yet"
    what = "system prompt set" if session.system else "system prompt removed"
    session.screen.note(f"{what} · the next message re-reads {count_text}")


def _budget(session: Session, text: str) -> None:
    if text in ("off", "default", "none"):
        session.settings.unset("think_budget")
        session.screen.note("no budget for thinking")
        return
    value = OPTIONS["think_budget"].parse(text, "/think budget")
    session.settings.set("think_budget", value, "/think")
    session.screen.note(f"at most {count(value)} tok of thinking, from the next message on")


def think_command(session: Session, argument: str) -> None:
    """Whether the model thinks, and how much."""
    word, _, rest = argument.partition(" ")
    if word == "budget":
        _budget(session, rest.strip())
        return
    support = session.backend.info.thinking
    if not argument:
        says = {"never": "never thinks", "always": "always thinks", "switchable": "can think"}
        budget = session.settings.sampling.think_budget
        limit = f" · budget {count(budget)} tok" if budget is not None else ""
        session.screen.line(f"think {session.settings.think}{limit} · this model {says[support]}")
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


def thoughts_command(session: Session, argument: str) -> None:
    """Show the last thoughts, or set how they are shown."""
    if argument:
        mode = _one_of("thoughts", argument, ("full", "summary", "none"))
        session.settings.set("thoughts", mode, "/thoughts")
        session.screen.note(f"thoughts {mode}")
        return
    record = session.last_reply
    if not record.thoughts.strip():
        session.screen.line("the last answer has no thoughts")
        return
    num_tokens = record.num_thoughts or session.backend.count_tokens(record.thoughts)
    show_thoughts(session.screen, record, num_tokens)


def raw_command(session: Session, argument: str) -> None:
    """Show the last answer as the model wrote it."""
    text = session.last_reply.text
    if not text.strip():
        session.screen.line("there is no answer yet")
        return
    session.screen.raw(trimmed(text, session.raw))


def set_command(session: Session, argument: str) -> None:
    """Show or change any setting."""
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
    return _in_words(value)


def _in_words(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _default(session: Session, name: str) -> str:
    """What holds without a flag: the checkpoint's own value, or the built-in one."""
    defaults = session.backend.info.defaults
    value = getattr(defaults, name, None)
    if value is None:
        value = OPTIONS[name].default
    words = {"seed": "random", "max_tokens": "what fits"}
    return words.get(name, "off") if value is None else _in_words(value)


def _source(session: Session, name: str) -> str:
    origin = session.settings.origin(name)
    if origin == BUILT_IN and getattr(session.backend.info.defaults, name, None) is not None:
        return "checkpoint"
    return origin


def _show_settings(session: Session) -> None:
    live = [name for name, option in OPTIONS.items() if option.spec.live]
    rows = [(n, _value(session, n), _default(session, n), _source(session, n)) for n in live]
    headers = ("setting", "value", "default", "source")
    shown = columns_that_fit([headers, *rows], session.screen.width)
    table = plain_table(*headers[:shown])
    for row in rows:
        table.add_row(*row[:shown])
    session.screen.show(table)
    session.screen.note("/set temperature 0.3 changes one · /set temperature default undoes it")


def model_command(session: Session, argument: str) -> None:
    """Show the model; another one needs a new start."""
    info, memory = session.backend.info, session.backend.memory()
    if argument:
        back = f"erniechat --resume {session.id} -m {argument}" if session.id else ""
        raise UsageError(
            "the model is chosen when the program starts", back or f"erniechat -m {argument}"
        )
    parts = [info.model, info.quant, info.device, context_text(info)]
    session.screen.line(" · ".join(parts))
    held = f"weights {gib(memory.weights_nbytes)} · loaded in {seconds(info.load_seconds)}"
    session.screen.note(held)


def nothink_command(session: Session, argument: str) -> None:
    """Short for /think off."""
    think_command(session, "off")
