"""The man page, from the parser that reads the command line."""

import argparse

from erniechat import __version__
from erniechat.ui.commands import COMMANDS
from erniechat.ui.parser import Parser


def man_page(parser: Parser) -> str:
    """The page in roff: synopsis, options, commands of the chat, what the help page ends with."""
    lines = [
        f'.TH ERNIECHAT 1 "" "erniechat {__version__}" "User Commands"',
        ".SH NAME",
        "erniechat \\- chat with ERNIE 4.5 models in the terminal",
        ".SH SYNOPSIS",
        *_verbatim(parser.usage or ""),
        ".SH OPTIONS",
    ]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        if actions:
            lines.append(f".SS {_escape(group.title or 'options')}")
        for action in actions:
            lines += [".TP", f".B {_escape(_name(action))}", _escape(action.help or "")]
    lines.append(".SH COMMANDS IN THE CHAT")
    for command in COMMANDS:
        lines += [".TP", f".B {_escape(command.usage)}"]
        lines.append(_escape(f"{command.summary}. {command.details}".rstrip()))
    lines += [".SH NOTES", *_verbatim(parser.epilog or "")]
    return "\n".join(lines) + "\n"


def _name(action: argparse.Action) -> str:
    value = action.metavar
    if value is None and action.choices:
        value = "{" + ",".join(action.choices) + "}"
    return " ".join([", ".join(action.option_strings), *([str(value)] if value else [])])


def _verbatim(text: str) -> list[str]:
    return [".nf", *(_escape(line) for line in text.splitlines()), ".fi"]


def _escape(text: str) -> str:
    """Text that roff takes as text."""
    text = text.replace("%%", "%").replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text
