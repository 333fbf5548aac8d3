"""A message that does not fit: exact numbers, numbered choices, and nothing sent before one."""

import dataclasses
import io
import sys

import pytest
from prompt_toolkit.input import PipeInput
from prompt_toolkit.key_binding import KeyPress

from erniechat.chat.conversation import Message
from erniechat.chat.sessions import load_session, session_paths
from erniechat.errors import MemoryLimitError
from erniechat.ui.overflow import find_choices, make_fit
from erniechat.ui.prompt import LinePrompt, PlainPrompt
from erniechat.ui.session import Turn
from tests.fakes import INFO, words
from tests.ui.screen_of import erniechat
from tests.ui.test_repl import Chat

# 60 tokens, 15 of them kept for the answer; a rendered message takes 2 more than its words, and
# the opening of the answer 1.
SMALL = dataclasses.replace(
    INFO, context_length=60, max_context_length=8192, kv_nbytes_per_token=1 << 16
)


class Choosing(Chat):
    """A chat in which keys answer the questions."""

    def choose(self, *answers: str) -> None:
        prompt, left = self._repl._prompt, list(answers)
        assert isinstance(prompt, LinePrompt)
        take = prompt._take_typed

        def answer() -> list[KeyPress]:
            typed = take()
            self._keys.send_text(left.pop(0))
            return typed

        prompt._take_typed = answer  # type: ignore[method-assign]  # adds the answer

    def say(self, *texts: str) -> None:
        """Have a conversation so far."""
        for role, text in zip(("user", "assistant") * len(texts), texts, strict=False):
            self.session.messages.append(Message(role, text))  # type: ignore[arg-type]  # of the two


def sent(chat: Chat) -> list[list[str]]:
    return [[message.content for message in asked.messages] for asked in chat.backend.asked]


@pytest.fixture
def chat(keys: PipeInput) -> Choosing:
    chat = Choosing(keys, [words("Fine.")], info=SMALL, width=100)
    chat.say("a1 a2", "b1 b2 b3", "c1", "d1 d2 d3 d4 d5 d6")
    return chat


CLEAR = "\x03"  # empties the prompt
LONG = " ".join(f"w{number}" for number in range(25))


def test_the_numbers_are_exact_and_nothing_is_sent(chat: Choosing) -> None:
    chat.choose("\x1b")
    out = chat.type(LONG, CLEAR)
    assert (
        "error: this does not fit. The message has 27 tok, the conversation 21, and 15 are kept for"
        " the\nanswer: 63 of 60. Nothing was sent.\n"
        "  1  raise the context to 4,096 (+252 MiB when it is full)\n"
        "  2  leave out the first exchange (−9 tok)\n"
        "  3  a new conversation with this message only\n"
    ) in out
    assert sent(chat) == []
    assert len(chat.session.messages) == 4


@pytest.mark.parametrize("key", ["\x1b", "\x03", "\x04"])
def test_without_a_choice_the_message_and_its_files_come_back(chat: Choosing, key: str) -> None:
    chat.choose(key, "1")
    chat.session.attached = ["file one"]
    out = chat.type(LONG, "")  # Enter alone sends it again
    assert "its files come along again; /file - takes them away" in out
    assert sent(chat) == [["a1 a2", "b1 b2 b3", "c1", "d1 d2 d3 d4 d5 d6", f"file one\n\n{LONG}"]]


def test_the_context_can_be_raised(chat: Choosing) -> None:
    chat.choose("1")
    chat.type(LONG)
    assert chat.backend.info.context_length == 4096
    assert sent(chat) == [["a1 a2", "b1 b2 b3", "c1", "d1 d2 d3 d4 d5 d6", LONG]]


def test_the_message_comes_back_where_the_context_cannot_be_raised(
    chat: Choosing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, num_tokens: int) -> None:
        raise MemoryLimitError("no memory for it")

    monkeypatch.setattr(type(chat.backend), "raise_context", refuse)
    chat.choose("1", "3")
    assert "error: no memory for it\n" in chat.type(LONG, "")  # Enter alone sends it again
    assert sent(chat) == [[LONG]]


def test_a_question_in_a_dumb_terminal_takes_ctrl_c_for_a_no(
    chat: Choosing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "readline", interrupted)
    assert not PlainPrompt(chat.session.screen).confirm("Go on?")


def test_the_first_exchanges_can_be_left_out_and_stay_in_the_old_session(chat: Choosing) -> None:
    messages, chat.session.messages = chat.session.messages, []
    chat.session.saving = True
    for message in messages:
        chat.session._add(message)
    old = chat.session.id
    chat.choose("2")
    out = chat.type(LONG)
    assert f"left out the first exchange, 9 tok · session {old} still has all" in out
    assert sent(chat) == [["c1", "d1 d2 d3 d4 d5 d6", LONG]]
    by_id = {path.stem: load_session(path) for path in session_paths()}
    assert len(by_id[old].messages) == 4
    assert len(by_id.pop(chat.session.id or (by_id.keys() - {old}).pop()).messages) == 4


def test_a_new_conversation_can_begin_with_it(chat: Choosing) -> None:
    chat.choose("3")
    chat.type(LONG)
    assert sent(chat) == [[LONG]]


def test_other_keys_do_nothing(chat: Choosing) -> None:
    chat.choose("9x\r 03")
    chat.type(LONG)
    assert sent(chat) == [[LONG]]


def test_only_what_helps_is_offered(chat: Choosing) -> None:
    chat.choose("\x1b")
    chat.backend.info = dataclasses.replace(SMALL, max_context_length=64)
    out = chat.type(f"{LONG} {LONG}", CLEAR)
    assert "  1  " not in out
    assert "Nothing was sent." in out


def test_an_answer_that_is_gone_on_with_is_counted(chat: Choosing) -> None:
    chat.choose("\x1b")
    part = Message("assistant", LONG)
    turn = Turn(None, part=part)
    texts = [choice.text for choice in find_choices(chat.session, turn, 61, lambda plan: None)]
    assert texts == [
        "raise the context to 4,096 (+252 MiB when it is full)",
        "leave out the first exchange (−9 tok)",
    ]
    assert not make_fit(chat.session, turn, chat._repl._prompt, lambda plan: None)
    assert chat.session.messages[-1] == part


def test_raising_a_context_that_experts_make_room_for_says_so(chat: Choosing) -> None:
    chat.backend.info = dataclasses.replace(SMALL, planned_context=50)
    texts = [choice.text for choice in find_choices(chat.session, Turn("w"), 61, lambda plan: None)]
    assert texts[0] == "raise the context to 4,096 (experts leave the GPU for it)"


def test_what_fits_is_sent_without_a_question(keys: PipeInput) -> None:
    chat = Chat(keys, [words("Fine.")], info=SMALL)
    chat.type(" ".join(["w"] * (60 - 15 - 3)))
    assert len(sent(chat)) == 1


def test_the_choice_on_a_terminal() -> None:
    with erniechat("plain", "-m", "some-model", "--max-tokens", "5", width=90) as run:
        run.wait("ctx ")
        run.send("\x1b[200~" + "word " * 5000 + "\x1b[201~\r")
        run.wait(r"this does not fit. The message has 5,00\d tok")
        run.wait("Esc edits the message ›")
        run.send("\x1b")
        run.wait(r"Esc edits the message ›\n+› \[pasted 1 line · 5,000 tok\]")
        run.send("\x03/exit\r")
        assert run.end() == 0


@pytest.mark.parametrize(("line", "chosen"), [("2", 2), ("", None), ("9", None), ("x", None)])
def test_a_plain_terminal_takes_a_line(
    chat: Choosing, line: str, chosen: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
    prompt = PlainPrompt(chat.session.screen)
    assert prompt.choose(3, "") == chosen
    assert "1-3, Enter edits the message" in chat.out.getvalue()
