"""The real command on the built-in model: structures, sessions, budgets, limits, a chat."""

import json
import os
import re
from pathlib import Path

from erniechat.chat.sessions import load_session
from tests.e2e.test_command import COMMAND, SUM, run
from tests.ui.screen_of import TerminalRun

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"sum": {"enum": [41, 42]}},
        "required": ["sum"],
        "additionalProperties": False,
    }
)


def test_json_of_a_schema_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    result = run("-q", "-p", SUM, "--json-schema", f"@{tmp_path}/schema.json")
    assert (result.returncode, json.loads(result.stdout)) == (0, {"sum": 42})


def test_a_structure_that_is_cut_ends_with_6() -> None:
    result = run("-q", "-p", SUM, "--think", "off", "--json-schema", SCHEMA, "--max-tokens", "5")
    assert result.returncode == 6
    assert b"error: JSON incomplete: stopped at --max-tokens 5" in result.stderr


def test_a_bad_schema_ends_with_2() -> None:
    result = run("-q", "-p", SUM, "--json-schema", '{"type": "foo"}')
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"error: --json-schema cannot be used: Invalid type: foo")


def test_the_time_limit_ends_with_124() -> None:
    arguments = ("-q", "--raw", "-p", "a", "--temperature", "2", "--timeout", "0.05")
    result = run(*arguments)
    assert result.returncode == 124
    assert b"--timeout 0.05 seconds" in result.stderr


def test_a_message_without_an_answer_is_not_followed_by_another(tmp_path: Path) -> None:
    path = tmp_path / "erniechat" / "sessions" / "1122-a.jsonl"
    path.parent.mkdir(parents=True)
    lines = [{"type": "session"}]
    for role, text in (("user", "A?"), ("assistant", "B."), ("user", "Who killed me?")):
        lines.append({"type": "message", "message": {"role": role, "content": text}})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    asked = ("-c", "-p", "What is 17 + 25?")
    result = run(*asked, env={**os.environ, "XDG_DATA_HOME": str(tmp_path)})
    assert (
        b"note: the last message of session 1122-a has no answer and is left out" in result.stderr
    )
    roles = [message.role for message in load_session(path).messages]
    assert roles == ["user", "assistant", "user", "assistant"]


def test_a_chat_is_cut_gone_on_with_left_and_come_back_to(tmp_path: Path) -> None:
    home = {"XDG_DATA_HOME": str(tmp_path), "ERNIECHAT_SAVE": "yes"}
    command = [*COMMAND, "--think", "off"]
    with TerminalRun([*command, "--max-tokens", "6"], width=100, **home) as terminal:
        terminal.wait(lambda: "ctx " in terminal.text, timeout=60)
        terminal.send(f"{SUM}\r")
        terminal.wait("stopped at --max-tokens 6", timeout=60)
        terminal.send("/set max_tokens default\r/continue\r")
        terminal.wait("17 \\+ 25 = 42|= 42", timeout=60)
        terminal.wait(r"tok/s[^$]*tok/s", timeout=60)
        terminal.send("\x04")
        assert terminal.end() == 0
        assert re.search(r"saved \d{4}-a · 1 exchange", terminal.text)
    (path,) = (tmp_path / "erniechat" / "sessions").iterdir()
    assert load_session(path).messages[1].content == "17 + 25 = 42"
    shown = run("--dry-run", "-c", "-p", "And 8 + 9?", env={**os.environ, **home})
    assert b"17 + 25 = 42" in shown.stdout
    assert b"And 8 + 9?" in shown.stdout
