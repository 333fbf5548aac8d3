"""The parts that this program's parsers are made of, and what a wrong flag is answered with."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from erniechat.errors import UsageError
from erniechat.option import Option
from erniechat.options import OPTIONS
from erniechat.ui.settings import Layer
from erniechat.ui.terminal import columns, is_tty

PAGE_WIDTH = 98


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors in this program's words."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        found = re.match(r"argument (\S+): (.*)", message)
        if found:
            flag, problem = found.group(1).split("/")[-1], found.group(2)
            if problem.startswith("expected one argument"):
                message = f"{flag} needs a value"
            elif problem.startswith("ignored explicit argument"):
                message = f"{flag} takes no value"
            elif choice := re.match(r"invalid choice: '(.*)' \(choose from (.*)\)", problem):
                allowed = choice.group(2).replace("'", "")
                message = f'{flag} must be one of {allowed}, got "{choice.group(1)}"'
            else:
                message = f"{flag}: {problem}"
        raise UsageError(message, "erniechat --help lists the options")


def new_parser(usage: str, epilog: str) -> Parser:
    """An empty parser; nothing is abbreviated."""
    return Parser(
        prog="erniechat",
        usage=usage,
        epilog=epilog,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=30, width=_page_width()
        ),
    )


def _page_width() -> int:
    """Columns of a help page: those of the terminal that it goes to, 98 at most."""
    return min(PAGE_WIDTH, columns(sys.stdout) - 2) if is_tty(sys.stdout) else PAGE_WIDTH


def _metavar(option: Option) -> str:
    if option.spec.choices:
        return "{" + ",".join(option.spec.choices) + "}"
    return option.spec.metavar or {int: "N", float: "X"}.get(option.type, "TEXT")


def _help_text(option: Option) -> str:
    told = option.default is None or isinstance(option.default, bool)
    text = option.spec.help if told else f"{option.spec.help} (default {option.default})"
    return text.replace("%", "%%")


def add_setting(group: "argparse._ArgumentGroup", option: Option) -> None:
    """One flag for a setting; a yes/no setting gets both ``--flag`` and ``--no-flag``."""
    short = [option.spec.short] if option.spec.short else []
    if option.type is not bool:
        group.add_argument(
            *short, option.flag, dest=option.name, metavar=_metavar(option), help=_help_text(option)
        )
        return
    negative = "--no-" + option.flag[2:]
    shown, hidden = (negative, option.flag) if option.default else (option.flag, negative)
    help_text = "do not " + _help_text(option) if option.default else _help_text(option)
    for flags, text in (([*short, shown], help_text), ([hidden], argparse.SUPPRESS)):
        group.add_argument(
            *flags,
            dest=option.name,
            action=_Verbose if option.name == "verbose" else "store_const",
            const="no" if flags[-1] == negative else "yes",
            help=text,
        )


class _Verbose(argparse._StoreConstAction):
    """-v; a second one writes the log to stderr."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if option == "-v" and getattr(namespace, self.dest) == self.const and not namespace.log:
            namespace.log = "-"
        super().__call__(parser, namespace, values, option)


def add_settings(parser: Parser, title: str, owner: type) -> None:
    """A group with the flags of all settings of an options class."""
    group = parser.add_argument_group(title)
    for option in OPTIONS.values():
        if option.owner is not owner:
            continue
        add_setting(group, option)
        if option.name == "quant":
            for flag, name in (("--4bit", "nf4"), ("--8bit", "int8")):
                group.add_argument(
                    flag,
                    dest="bits",
                    action="append_const",
                    const=name,
                    help=f"short for --quant {name}",
                )


def add_other(parser: Parser) -> "argparse._ArgumentGroup":
    """The flags that every command has."""
    group = parser.add_argument_group("other")
    group.add_argument("-h", "--help", action="store_true", help="this page")
    group.add_argument("-V", "--version", action="store_true", help="the version; with -v more")
    return group


def _flags_of(parser: Parser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


def unknown_flag(word: str, flags: Sequence[str]) -> UsageError:
    """The error for a flag that there is none of: the nearest one, or the full names."""
    import difflib  # only for an error, and it costs --help time

    word = word.split("=")[0]
    full = [flag for flag in flags if flag.startswith(word) and word.startswith("--")]
    if full and len(word) > 2:
        return UsageError(
            f"unknown option {word}. Flags are not abbreviated; in full: {', '.join(full)}"
            "   (erniechat --help)"
        )
    near = difflib.get_close_matches(word, flags, n=1, cutoff=0.6)
    guess = f". Did you mean {near[0]}?" if near else ""
    return UsageError(f"unknown option {word}{guess}   (erniechat --help)")


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse flags and words in any order; ``--`` ends the flags.

    Raises:
        UsageError: For an unknown flag or a missing value.
    """
    head, tail = list(argv), []
    if "--" in head:
        cut = head.index("--")
        head, tail = head[:cut], head[cut + 1 :]
    known, extras = parser.parse_known_intermixed_args(head)
    words = list(getattr(known, "words", None) or [])
    for extra in extras:
        if extra.startswith("-") and extra != "-":
            raise unknown_flag(extra, _flags_of(parser))
        words.append(extra)
    return known, words + tail


def settings_layer(known: argparse.Namespace) -> Layer:
    """The settings that are given as flags.

    Raises:
        UsageError: For a bad value, or for two that contradict each other.
    """
    values: dict[str, Any] = {
        name: option.parse(text)
        for name, option in OPTIONS.items()
        if (text := getattr(known, name, None)) is not None
    }
    asked = {*(known.bits or []), *([values["quant"]] if "quant" in values else [])}
    if len(asked) > 1:
        names = {"nf4": "--4bit", "int8": "--8bit"}
        given = [names[name] for name in known.bits]
        given += [f"--quant {values['quant']}"] if "quant" in values else []
        raise UsageError(f"{' and '.join(given)} contradict each other; give one of them")
    if asked:
        values["quant"] = asked.pop()
    return Layer("flag", values)
