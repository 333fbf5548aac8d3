"""The commands beside the chat, from the one that was asked for to its page on stdout.

Each imports what it needs when it runs: `sessions ls` does not wait for torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from erniechat.options import LoadOptions
from erniechat.ui import helpers
from erniechat.ui.arguments import Arguments
from erniechat.ui.settings import Settings
from erniechat.ui.terminal import Terminal, columns, is_utf8, print_page

if TYPE_CHECKING:  # brings what only a reply needs
    from erniechat.ui.jobs import LoadEngine


def run_side_command(
    arguments: Arguments, settings: Settings, terminal: Terminal, load_engine: LoadEngine
) -> int:
    """Run sessions, config, cache, info, profile, doctor, plan or export; the exit status.

    Args:
        arguments: The command and its words.
        settings: Of the model that it is about.
        terminal: Where its page and its progress go.
        load_engine: Loads the model, for those that run it.

    Raises:
        ErnieChatError: What the command raised, with the exit status.
    """
    if arguments.task:
        return _task(arguments, settings.load, terminal)
    command, action, *names = arguments.helper
    name, as_json = "".join(names), arguments.json
    if command == "sessions":
        page = helpers.sessions_page(action, name, as_json=as_json)
        return print_page(terminal, page, for_people=action == "ls" and not as_json)
    if command == "config":
        page = helpers.config_page(action, settings, as_json=as_json)
        return print_page(terminal, page, for_people=not as_json)
    if command == "cache":
        from erniechat.cache import list_copies, list_kept, remove

        if action == "verify":
            return _task(arguments, settings.load, terminal)
        if action == "rm":
            return print_page(terminal, f"freed {remove(name) / 2**20:,.0f} MiB\n")
        page = helpers.cache_page([*list_copies(), *list_kept()], as_json=as_json)
        return print_page(terminal, page, for_people=not as_json)
    if command == "profile":
        return _profile(arguments, settings, terminal, load_engine)
    if command == "doctor":
        return _doctor(terminal, settings.load, as_json=as_json)
    from erniechat.info import gather_facts

    page = helpers.info_page(gather_facts(), as_json=as_json)
    return print_page(terminal, page, for_people=not as_json)


def _doctor(terminal: Terminal, load: LoadOptions, *, as_json: bool) -> int:
    from erniechat.doctor import format_doctor, run_doctor

    result = run_doctor(load, terminal.line)
    page = json.dumps(result) + "\n" if as_json else format_doctor(result)
    return print_page(terminal, page, for_people=not as_json)


def _profile(
    arguments: Arguments, settings: Settings, terminal: Terminal, load_engine: LoadEngine
) -> int:
    from erniechat import profiles
    from erniechat.ui.profile_page import profile_page

    _, action, *names = arguments.helper
    load, file = settings.load, "".join(names)
    if action == "calibrate":
        from erniechat.calibration import calibrate

        terminal.live.show(f"loading {load.model}")
        engine = load_engine(load, lambda progress: None, terminal.line)
        calibrate(engine, lambda text: terminal.live.show(text, now=True))
        engine.close()
        terminal.live.wipe()
    elif action == "reset":
        return print_page(terminal, profiles.forget(load) + "\n")
    elif action == "export":
        return print_page(terminal, profiles.export(load, file) + "\n")
    elif action == "import":
        return print_page(terminal, profiles.bring_in(load, file) + "\n")
    facts = profiles.facts(load)
    if arguments.json:
        return print_page(terminal, json.dumps(facts) + "\n")
    color, utf8 = terminal.stdout_color, is_utf8(terminal.stdout)
    width = columns(terminal.stdout) if terminal.stdout_is_tty else None
    return print_page(terminal, profile_page(facts, color=color, utf8=utf8, width=width))


def _task(arguments: Arguments, load: LoadOptions, terminal: Terminal) -> int:
    from erniechat import model_commands

    def say(text: str) -> None:
        terminal.live.wipe()
        print_page(terminal, text, for_people=not arguments.json)

    if arguments.helper:
        model_commands.verify(arguments.helper[2], terminal.live.show, say)
    else:
        as_json = arguments.json
        model_commands.run(arguments.task, load, terminal.live.show, say, as_json=as_json)
    return 0
