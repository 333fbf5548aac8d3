"""Commands that work on the turns of a conversation: again, on, back, changed, copied."""

import dataclasses
import re
from difflib import get_close_matches

from erniechat.chat.conversation import Message
from erniechat.errors import UsageError
from erniechat.options import OPTIONS
from erniechat.paths import user_path
from erniechat.ui.clipboard import copy_text
from erniechat.ui.compacting import asked_compaction
from erniechat.ui.editor import edit_text
from erniechat.ui.files import as_message, read_texts
from erniechat.ui.session import Session, Turn
from erniechat.ui.settings import NEAR
from erniechat.ui.stats import percent
from erniechat.ui.text import count, exchanges

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.M | re.S)


def retry_command(session: Session, argument: str) -> None:
    """Answer the last message again, perhaps with other settings for this once."""
    sampling = session.settings.sampling
    values = {}
    for word in argument.split():
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f'/retry takes key=value, got "{word}"', "/retry temperature=0.3")
        option = OPTIONS.get(name.replace("-", "_"))
        if option is None or not hasattr(sampling, option.name):
            names = [field.name for field in dataclasses.fields(sampling)]
            near = get_close_matches(name, names, 1, NEAR)
            guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UsageError(f'/retry has no setting "{name}"', guess)
        values[option.name] = option.parse(text, name)
    message = session.drop_exchange("retry")
    if message is None:
        raise UsageError("there is no message to answer again")
    session.next_turn = Turn(message, sampling=dataclasses.replace(sampling, **values))


def _pop_answer(session: Session) -> Message:
    last = session.messages[-1] if len(session.messages) > session.num_summarised else None
    if last is None or last.role != "assistant" or last.tool_calls:
        raise UsageError("there is no answer to go on with", "type a message")
    return session.messages.pop()


def continue_command(session: Session, argument: str) -> None:
    """Go on with the last answer where it ended."""
    session.next_turn = Turn(None, part=_pop_answer(session))
    session.touch()


def edit_command(session: Session, argument: str) -> None:
    """Change the last message and send it again; or the answer, and go on from it."""
    if argument not in ("", "answer"):
        raise UsageError(f'/edit takes answer or nothing, got "{argument}"')
    if argument == "answer":
        part = _pop_answer(session)
        session.messages.append(part)
        text = edit_text(part.content, session.environ)
        changed = dataclasses.replace(part, content=text)
        session.truncate(len(session.messages) - 1, "edit")
        session.add_results([changed])
        continue_command(session, "")
        return
    index = max((i for i, m in enumerate(session.messages) if m.role == "user"), default=None)
    if index is None:
        raise UsageError("there is no message to edit")
    text = edit_text(session.messages[index].content, session.environ)
    if not text.strip():
        session.screen.note("the message is empty; nothing was changed")
        return
    session.truncate(index, "edit")
    for number, line in enumerate(text.splitlines()):
        session.screen.line(f"  {line}" if number else f"› {line}")
    session.next_turn = Turn(text)


def undo_command(session: Session, argument: str) -> None:
    """Drop the last exchanges; the message returns to the prompt."""
    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise UsageError(f'/undo takes a number of exchanges, got "{argument}"')
    before = session.num_context_tokens
    dropped = num_summaries = 0
    brought_back = False
    for _ in range(int(argument or 1)):
        if (summary := session.drop_summary()) is not None:
            brought_back = brought_back or summary.num_messages > 0
            num_summaries += 1
            continue
        text = session.drop_exchange("undo")
        if text is None:
            break
        session.draft = text
        dropped += 1
    if not dropped and not num_summaries:
        raise UsageError("there is nothing to undo")
    after = session.num_context_tokens
    undone = [exchanges(dropped)] if dropped else []
    if num_summaries:
        undone.insert(0, f"the summary{'; what it stood for is back' if brought_back else ''}")
    freed = f"{count(before - after)} tok freed" if before >= after else f"{count(after)} tok now"
    session.screen.note(f"undone: {', '.join([*undone, freed])}")


def compact_command(session: Session, argument: str) -> None:
    """Let the model sum the first exchanges up, once the user has seen what would go."""
    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise UsageError(f'/compact takes a number of exchanges, got "{argument}"')
    if session.raw:
        raise UsageError("texts that are gone on with by themselves need no summary")
    session.next_turn = Turn(None, compaction=asked_compaction(session, int(argument or 0) or None))


def code_blocks(text: str) -> list[str]:
    """The insides of the fenced code blocks of a Markdown text."""
    return [found.group(2) for found in _FENCE.finditer(text)]


def copy_command(session: Session, argument: str) -> None:
    """Bring the last answer, or its n-th code block, into the clipboard as the model wrote it."""
    answers = [m.content for m in session.messages if m.role == "assistant"]
    if not answers:
        raise UsageError("there is no answer to copy")
    text, what = answers[-1].strip(), "the answer"
    word, _, number = argument.partition(" ")
    if word == "code":
        blocks = code_blocks(text)
        if number and not number.isdecimal():
            raise UsageError(f'/copy code takes a number, got "{number}"')
        index = int(number or len(blocks))
        if not 1 <= index <= len(blocks):
            raise UsageError(f"the answer has {len(blocks)} code blocks", "/copy takes it all")
        text, what = blocks[index - 1], f"code block {index}"
    elif argument:
        raise UsageError(f'/copy takes code or nothing, got "{argument}"')
    way = copy_text(text, session.screen, session.environ)
    session.screen.note(f"copied {what}, {count(len(text))} characters, {way}")


def file_command(session: Session, argument: str) -> None:
    """Put text files before the next message; say what they cost. A single - takes them away."""
    if not argument:
        raise UsageError("/file takes a path", "/file notes.txt, or @notes.txt in a message")
    if argument == "-":
        num_files = len(session.attached)
        session.attached.clear()
        session.screen.note(f"taken away: {'1 file' if num_files == 1 else f'{num_files} files'}")
        return
    found = [item for word in _paths(argument) for item in read_texts(word)]
    whole = session.backend.info.context_length
    for path, text in found:
        body = as_message(path, text)
        tokens = session.backend.count_tokens(body)
        session.attached.append(body)
        share = percent(tokens, whole)
        session.screen.note(f"{path} +{count(tokens)} tok (ctx {share}), with the next message")


def _paths(argument: str) -> list[str]:
    """One path where the whole argument is one, else a path for each word."""
    return [argument] if user_path(argument).exists() else argument.split()
