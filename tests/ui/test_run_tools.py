"""Running called tools: what the file may say, who is asked, and what comes back."""

import json
import sys
import threading
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput
from prompt_toolkit.key_binding import KeyPress

from erniechat.errors import UsageError
from erniechat.events import ToolCall
from erniechat.ui import run_tools
from erniechat.ui.keys import QuietKeys
from erniechat.ui.prompt import LinePrompt
from erniechat.ui.repl import Repl
from erniechat.ui.run_tools import run_command
from erniechat.ui.tool_commands import ToolCommand, read_tool_file
from erniechat.ui.worker import Worker
from tests.fakes import Script, words
from tests.ui.screen_of import erniechat
from tests.ui.test_repl import LEAVE, Chat

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
CALL = ToolCall("1", "get_weather", '{"city": "Köln; rm -rf /"}')
ECHO = (sys.executable, "-c", "import sys; print(sys.stdin.read())")


class ToolChat(Chat):
    """A chat whose tools may be run."""

    def allow(self, commands: dict[str, ToolCommand]) -> None:
        prompt = self._repl._prompt
        self._repl = Repl(self.session, Worker(), prompt, commands)

    def type_and_answer(self, text: str, answer: str) -> str:
        """Send a line, and once a question is asked its answer."""
        prompt = self._repl._prompt
        assert isinstance(prompt, LinePrompt)
        take = prompt._take_typed

        def take_and_answer() -> list[KeyPress]:
            typed = take()
            self._keys.send_text(answer + "\r")
            return typed

        prompt._take_typed = take_and_answer  # type: ignore[method-assign]  # adds the answer
        return self.type(text)


def chat_with(keys: PipeInput, *scripts: Script, allowed: bool = False) -> ToolChat:
    chat = ToolChat(keys, scripts, tools=(TOOL,))
    chat.allow({"get_weather": ToolCommand(ECHO, allowed)})
    return chat


def test_a_yes_runs_the_command_and_the_model_goes_on(keys: PipeInput):
    chat = chat_with(keys, [*words("I look."), CALL], words("23 °C."))
    out = chat.type_and_answer("Q", "y")
    roles = [message.role for message in chat.backend.asked[1].messages]
    assert roles == ["user", "assistant", "tool"]
    result = chat.backend.asked[1].messages[-1]
    assert json.loads(result.content) == {"city": "Köln; rm -rf /"}
    assert result.content_is_json
    assert "23 °C." in out


@pytest.mark.parametrize("answer", ["n", "", "maybe", "\x03"])
def test_nothing_runs_without_a_yes(keys: PipeInput, answer: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_tools, "run_command", None)
    chat = chat_with(keys, [*words("I look."), CALL], words("23 °C."))
    out = chat.type_and_answer("Q", answer)
    assert len(chat.backend.asked) == 1
    assert "\nnothing was run; type on, or /retry\n" in out


def test_what_was_typed_before_the_question_is_no_yes(
    keys: PipeInput, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_tools, "run_command", None)
    chat = chat_with(keys, [*words("I look.", 0.05), CALL], words("Fine."))
    chat._keys.send_text("Q\r")
    threading.Timer(0.05, lambda: keys.send_text("y\r")).start()  # while the model writes
    threading.Timer(0.8, lambda: keys.send_text("n\r" + LEAVE)).start()
    chat._repl.run()
    assert [asked.messages[-1].content for asked in chat.backend.asked] == ["Q", "y"]


def test_an_allowed_command_needs_no_question(keys: PipeInput):
    chat = chat_with(keys, [CALL], words("23 °C."), allowed=True)
    chat.type("Q")
    assert len(chat.backend.asked) == 2


def test_without_run_tools_calls_are_only_shown(keys: PipeInput):
    chat = Chat(keys, [[CALL], words("x")], tools=(TOOL,))
    chat.type("Q")
    assert len(chat.backend.asked) == 1


@pytest.mark.parametrize(
    ("argv", "content"),
    [
        ((sys.executable, "-c", "print('warm')"), "warm"),
        (("/nowhere/program",), '{"error": "cannot run /nowhere/program'),
        ((sys.executable, "-c", "import sys; sys.exit('no net')"), "ended with status 1: no net"),
        (("echo", "$HOME; `id`"), "$HOME; `id`"),
    ],
)
def test_what_comes_back(argv: tuple[str, ...], content: str):
    assert content in run_command(CALL, argv, QuietKeys()).content


def test_a_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_tools, "RUN_SECONDS", 0.3)
    assert "no answer within" in run_command(CALL, ("sleep", "20"), QuietKeys()).content


def test_a_key_ends_a_command():
    class Pressed(QuietKeys):
        def poll(self, timeout: float):  # type: ignore[no-untyped-def]  # as there
            return ["stop"]

    assert "stopped by the user" in run_command(CALL, ("sleep", "20"), Pressed()).content


def test_a_command_that_takes_long_is_shown_with_its_way_out(tmp_path: Path):
    tools = {"tools": [TOOL["function"]], "commands": {"get_weather": ["sleep", "60"]}}
    file = written(tmp_path, tools)
    with erniechat("calls", "-m", "m", "--tools", file, "--run-tools", width=90) as run:
        run.wait("ctx ")
        run.send("Hi\r")
        run.wait(r"run sleep 60 < .* \[y/N\]")
        run.send("y\r")
        run.wait(r"(?m)^running get_weather \d\.\d s    Esc stops$")
        run.send("\x03")
        run.wait("← .*stopped by the user")
        assert "running" not in run.text


def written(tmp_path: Path, data: object) -> str:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(data))
    return str(path)


def test_the_file_gives_tools_commands_and_what_needs_no_question(tmp_path: Path):
    data = {"tools": [TOOL], "commands": {"get_weather": ["w"]}, "allow": ["get_weather"]}
    path = written(tmp_path, data)
    assert read_tool_file(path).commands == {"get_weather": ToolCommand(("w",))}
    assert read_tool_file(path, yes=True).commands["get_weather"].is_allowed
    assert read_tool_file(path).tools == (TOOL,)
    assert read_tool_file(written(tmp_path, TOOL)).tools == (TOOL,)
    assert read_tool_file(written(tmp_path, [TOOL["function"]])).tools == (TOOL,)


@pytest.mark.parametrize(
    ("extra", "yes", "error"),
    [
        ({"commands": {"get_weather": "w --json"}}, False, "must be a list of texts"),
        ({"commands": {"other": ["w"]}}, False, 'there is no tool "other"'),
        ({"commands": []}, False, "commands must be an object"),
        ({"allow": ["other"]}, True, "allow must be a list of names"),
        ({}, True, "--yes needs an allow list"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, extra: object, yes: bool, error: str):
    with pytest.raises(UsageError, match=error):
        read_tool_file(written(tmp_path, {"tools": [TOOL], **extra}), yes=yes)  # type: ignore[dict-item]  # an object
