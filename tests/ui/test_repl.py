"""The chat as a transcript: typed keys in, the whole output and the conversation out."""

import dataclasses
import re
from collections.abc import Sequence
from io import StringIO

import pytest
from prompt_toolkit.input import PipeInput
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from erniechat.chat.conversation import Message
from erniechat.errors import ContextLengthError, MemoryLimitError
from erniechat.events import ContextGrown, ToolCall, TurnEnd, Usage
from erniechat.ui.prompt import LinePrompt
from erniechat.ui.repl import Repl
from erniechat.ui.screen import Screen
from erniechat.ui.session import Session
from erniechat.ui.settings import Layer, merge_layers
from erniechat.ui.terminal import LiveLine
from erniechat.ui.worker import Worker
from tests.fakes import INFO, FakeBackend, Script, thinking, words

LEAVE = "\x04"


class Chat:
    """A chat on a scripted backend, fed with keys."""

    def __init__(self, keys: PipeInput, scripts: Sequence[Script], **settings: object) -> None:
        info = settings.pop("info", INFO)
        tools = settings.pop("tools", ())
        raw = bool(settings.pop("raw", False))
        self.backend = FakeBackend(scripts, info)  # type: ignore[arg-type]  # popped
        self.out = StringIO()
        width = int(str(settings.pop("width", 60)))
        console = Console(file=self.out, width=width, color_system=None)
        screen = Screen(console, LiveLine(self.out, enabled=False), moves_cursor=False)
        merged = merge_layers([Layer("flag", settings)])
        self.session = Session(self.backend, merged, screen, tools=tools, raw=raw)  # type: ignore[arg-type]  # popped
        self._keys = keys
        prompt = LinePrompt(
            lambda width, text: "", self.backend.count_tokens, source=keys, output=DummyOutput()
        )
        self._repl = Repl(self.session, Worker(), prompt)

    def type(self, *lines: str) -> str:
        """Send lines and Ctrl-D; what was printed between the greeting and the goodbye."""
        for line in lines:
            self._keys.send_text(line + "\r")
        self._keys.send_text(LEAVE)
        self.status = self._repl.run()
        return re.split(r"Ctrl-D\sleaves\n", self.out.getvalue(), maxsplit=1)[1].removeprefix("\n")


def test_an_answer_its_numbers_and_the_goodbye(keys: PipeInput):
    chat = Chat(keys, [words("The answer is 42.")])
    assert chat.type("What is it?") == (
        "\nThe answer is 42.\n\n4 tok · 1.0 tok/s\n\ngoodbye · 1 exchange\n"
    )
    assert chat.status == 0
    assert chat.session.messages == [
        Message("user", "What is it?"),
        Message("assistant", "The answer is 42."),
    ]


def test_a_context_that_grew_is_a_line_under_the_answer(keys: PipeInput):
    grown = [ContextGrown(12_000, 30), *words("Fine."), ContextGrown(16_384, 1)]
    assert Chat(keys, [grown]).type("What is it?") == (
        "\nFine.\n\n1 tok · 0.2 tok/s\n"
        "context grew to 16,384 tokens; 31 experts left the GPU\n\ngoodbye · 1 exchange\n"
    )


def test_the_next_turn_sees_the_whole_conversation(keys: PipeInput):
    chat = Chat(keys, [words("One."), words("Two.")])
    chat.session.system = "Be brief."
    chat.type("first", "second")
    assert [message.content for message in chat.backend.asked[1].messages] == [
        "Be brief.", "first", "One.", "second",
    ]  # fmt: skip


def test_thinking_is_one_line_unless_asked_for(keys: PipeInput):
    out = Chat(keys, [[*thinking("Hm let me see"), *words("Yes.")]]).type("Q")
    assert out.startswith("\nthought for 2.0 s · 4 tok\n\nYes.\n\n1 tok")
    assert "let me see" not in out
    full = Chat(keys, [[*thinking("Hm let me see"), *words("Yes.")]], thoughts="full").type("Q")
    assert full.startswith("\nHm let me see\nthought for 2.0 s · 4 tok\n\nYes.\n")
    none = Chat(keys, [[*thinking("Hm let me see"), *words("Yes.")]], thoughts="none").type("Q")
    assert none.startswith("\nYes.\n\n1 tok")


def test_the_last_thoughts_can_be_read_afterwards(keys: PipeInput):
    out = Chat(keys, [[*thinking("Hm let me see"), *words("Yes.")]]).type("Q", "/thoughts")
    assert "thoughts of the last answer · 4 tok · 2.0 s\nHm let me see\n" in out


def test_escapes_of_the_model_are_shown_and_not_obeyed(keys: PipeInput):
    out = Chat(keys, [words("\x1b[2Jwiped \x9bm")]).type("Q")
    assert out.startswith("\n␛[2Jwiped ‹9b›m\n")


def test_an_error_gives_the_message_back_and_the_chat_lives_on(keys: PipeInput):
    chat = Chat(keys, [[ContextLengthError("too long by 904 tokens")], words("Fine.")])
    # The message is back in the prompt, so Enter alone sends it again.
    out = chat.type("Q", "")
    assert out.startswith("\nerror: too long by 904 tokens\n\n\nFine.\n")
    assert [message.content for message in chat.session.messages] == ["Q", "Fine."]


def test_a_bug_in_the_engine_ends_the_turn_and_not_the_chat(keys: PipeInput):
    chat = Chat(keys, [[ValueError("shapes differ")], words("Fine.")])
    out = chat.type("Q", "")
    assert "internal error: ValueError: shapes differ (ERNIECHAT_DEBUG=1\n" in out
    assert "\nFine.\n" in out
    assert chat.status == 0


def test_a_failure_in_mid_answer_keeps_the_part(keys: PipeInput):
    chat = Chat(keys, [[*words("Half an"), MemoryLimitError("out of memory")], words("Fine.")])
    out = chat.type("Q", "more")
    assert out.startswith("\nHalf an\n\nerror: out of memory\nthe part above is kept")
    contents = [message.content for message in chat.session.messages]
    assert contents == ["Q", "Half an", "more", "Fine."]


def test_a_length_stop_is_told(keys: PipeInput):
    cut: Script = [*words("Half an"), TurnEnd("length", Usage(prompt=3, answer=2))]
    out = Chat(keys, [cut], max_tokens=2).type("Q")
    assert "2 tok\nstopped at --max-tokens 2; raise it for the rest · /continue\n" in out


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (3, "stopped at --max-tokens 3, still thinking: no answer began; raise it or set "
            "--think-budget · /continue\n"),
        (9, "stopped since the context of 4,096 tokens is full, still thinking: no answer began; "
            "raise --ctx or set --think-budget · /compact makes room\n"),
    ],
)  # fmt: skip
def test_a_length_stop_in_the_thinking_says_that_no_answer_began(
    keys: PipeInput, limit: int, said: str
):
    cut: Script = [*thinking("Hm let me"), TurnEnd("length", Usage(prompt=3, thinking=3))]
    out = Chat(keys, [cut], max_tokens=limit, width=200).type("Q")
    assert said in out


def test_a_full_context_says_what_makes_room(keys: PipeInput):
    cut: Script = [*words("Half an"), TurnEnd("length", Usage(prompt=3, answer=2))]
    out = Chat(keys, [cut], width=200).type("Q")
    assert "stopped: the context of 4,096 tokens is full · /compact makes room\n" in out


def test_a_length_stop_of_one_retry_names_its_own_limit(keys: PipeInput):
    cut: Script = [*words("Half an"), TurnEnd("length", Usage(prompt=3, answer=2))]
    out = Chat(keys, [words("Yes."), cut]).type("Q", "/retry max_tokens=2")
    assert "stopped at --max-tokens 2; raise it for the rest · /continue\n" in out


def test_a_reply_without_an_answer_says_so(keys: PipeInput):
    out = Chat(keys, [[*thinking("Hm."), *words(" ")]]).type("Q")
    assert "\nthe model ended its reply without an answer · /retry\n" in out


def test_calls_are_shown_as_calls_and_kept(keys: PipeInput):
    call = ToolCall("1", "get_weather", '{"city": "Paris", "days": 2}')
    tool = {"type": "function", "function": {"name": "get_weather", "description": "Weather."}}
    chat = Chat(keys, [[*words("I look."), call]], tools=(tool,))
    out = chat.type("Q", "/tools")
    assert out.startswith('\nI look.\n\n→ get_weather(city="Paris", days=2)\n')
    assert "get_weather  Weather.\n" in out
    assert chat.session.messages[-1].tool_calls == (call,)
    assert chat.backend.asked[0].tools == (tool,)


def test_without_a_template_each_text_is_completed_by_itself(keys: PipeInput):
    info = dataclasses.replace(INFO, has_chat_template=False)
    chat = Chat(keys, [words("upon a time")], info=info, raw=True)
    chat.type("Once ", "Twice")
    assert [asked.text for asked in chat.backend.asked] == ["Once ", "Twice"]
    assert "no chat template" in chat.out.getvalue()


# --- lines


def test_unknown_commands_are_never_sent(keys: PipeInput):
    chat = Chat(keys, [words("x")])
    out = chat.type("/hlep", "/usr/bin", "exit")
    assert "error: no command /hlep; did you mean /help?" in out
    assert "error: no command /usr/bin; see /help" in out
    assert "Ctrl-D or /exit leaves" in out
    assert chat.backend.asked == []


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("//help", "/help"),
        (" /help", "/help"),
        (" exit", "exit"),
        ("one\\\rtwo", "one\ntwo"),
        ("one\x0atwo", "one\ntwo"),
        ("one\x1b\rtwo", "one\ntwo"),
        ("one\x1b[13;2utwo", "one\ntwo"),
        ("one\x1b[27;2;13~two", "one\ntwo"),
        ('"""one\r\rtwo"""', "one\n\ntwo"),
        ("/usr/bin is\x0aa folder", "/usr/bin is\na folder"),
        ("\x1b[200~/etc/a\n/etc/b\x1b[201~", "/etc/a\n/etc/b"),
        ("你好", "你好"),
    ],
)
def test_lines_that_are_sent(keys: PipeInput, typed: str, sent: str):
    chat = Chat(keys, [words("x")])
    chat.type(typed)
    assert chat.backend.asked[0].messages[-1].content == sent


def test_ctrl_c_clears_a_line_and_on_an_empty_one_says_how_to_leave(keys: PipeInput):
    chat = Chat(keys, [words("x")])
    out = chat.type("wrong\x03right", "\x03")
    assert chat.backend.asked[0].messages[-1].content == "right"
    assert "\nCtrl-D leaves\ngoodbye" in out


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
def test_exit_leaves(keys: PipeInput, word: str):
    assert Chat(keys, []).type(word) == "goodbye\n"


def test_tab_completes_commands_settings_and_values(keys: PipeInput):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from erniechat.ui.prompt import CommandCompleter

    def offered(text: str) -> list[str]:
        found = CommandCompleter().get_completions(Document(text), CompleteEvent())
        return [completion.text for completion in found]

    assert offered("/un") == ["/undo"]
    assert offered("/set to") == ["top_k", "top_p"]
    assert offered("/set thoughts f") == ["full"]
    assert offered("/think o") == ["on", "off"]
    assert offered("/help st") == ["stats"]
    assert offered("hello /s") == []


def test_ctrl_c_leaves_the_search_and_keeps_the_line(keys: PipeInput):
    chat = Chat(keys, [words("x")])
    chat.type("hello one", "line\x12hel\x03 two")
    assert chat.backend.asked[-1].messages[-1].content == "line two"
