"""Words that are, or look like, commands: told before they become a prompt that loads a model."""

from collections.abc import Sequence

from erniechat.errors import UsageError
from erniechat.ui.subcommands import HELPERS, MODEL_COMMANDS

COMMANDS = ("bench", *HELPERS, *MODEL_COMMANDS)
NEAR = 0.75  # of difflib's ratio: "bnech" is bench, "explain" is not plan

# What other programs for local models call what this one does another way.
ELSEWHERE = {
    "chat": "erniechat alone chats",
    "run": "erniechat --model NAME",
    "show": "erniechat plan MODEL",
    "ps": "there is no server; erniechat cache ls lists what is kept",
    "version": "erniechat --version",
    "serve": "there is no server; for scripts: erniechat -p TEXT --json",
    "pull": "erniechat --model NAME fetches what is missing",
    "download": "erniechat --model NAME fetches what is missing",
    "list": "erniechat cache ls",
    "ls": "erniechat cache ls",
    "rm": "erniechat cache rm NAME",
    "quantize": "the first start quantizes: erniechat --model NAME --4bit",
    "convert": "the first start quantizes: erniechat --model NAME --4bit",
}


def check_words(words: Sequence[str]) -> None:
    """Refuse text that is a command in the wrong place, or nearly one.

    Only one word, or one and what could be its argument, is looked at: "run to the hills" is text.

    Raises:
        UsageError: With the command that was meant, and the way to ask the model all the same.
    """
    if not words:
        return
    first, *rest = words
    to_ask = f'to ask the model: erniechat -p "{" ".join(words)}"'
    if first in COMMANDS and (not rest or rest[0] in HELPERS.get(first, {})):
        raise UsageError(f"{first} comes first: erniechat {' '.join(words)} …", to_ask)
    if first in ELSEWHERE and (not rest or (len(rest) == 1 and _is_model(rest[0]))):
        raise UsageError(f'there is no command "{first}": {ELSEWHERE[first]}', to_ask)
    if not rest and (near := near_command(first)):
        guess = f"did you mean erniechat {near}? T{to_ask[1:]}"
        raise UsageError(f'there is no command "{first}"', guess)


def _is_model(word: str) -> bool:
    """Whether a word is a model's name here or elsewhere: owner/name, name:tag, a file, mini."""
    name, colon, tag = word.partition(":")
    return "/" in word or word == "mini" or word.endswith(".gguf") or bool(name and colon and tag)


def near_command(word: str) -> str:
    """The command that a word is nearly, or nothing."""
    import difflib  # only for an odd word, and it costs --help time

    return next(iter(difflib.get_close_matches(word, [*COMMANDS, "help"], 1, NEAR)), "")


def command_of_help(words: Sequence[str]) -> str:
    """The command whose page `erniechat help COMMAND` asks for; empty for the whole page.

    Raises:
        UsageError: If there is no such command.
    """
    if len(words) == 1:
        return ""
    name = words[1]
    if name in COMMANDS:
        return name
    to_ask = f'To ask the model: erniechat -p "{" ".join(words)}"'
    near = near_command(name)
    guess = f"did you mean erniechat help {near}?" if near else "erniechat help lists them."
    raise UsageError(f'there is no command "{name}"', f"{guess} {to_ask}")
