"""Saved chats on a terminal: killed, private, priced, piped, read out, without a home."""

import os
import re
import signal
import sys
from pathlib import Path

from prompt_toolkit.input import PipeInput

from erniechat.chat.conversation import Message
from erniechat.chat.sessions import load_session
from tests.fakes import Script, thinking, words
from tests.ui.screen_of import TerminalRun, erniechat
from tests.ui.test_saved_chat import MODEL, saving


def run(scenario: str, home: Path, *arguments: str, **environ: str) -> TerminalRun:
    places = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("DATA", "STATE", "CONFIG")}
    environ = {**places, "ERNIECHAT_SAVE": "yes", **environ}
    return erniechat(scenario, *MODEL, *arguments, **environ)


def ready(terminal: TerminalRun) -> None:
    terminal.wait(
        lambda: "ctx " in terminal.text and re.search(r"(?m)^›", terminal.text) is not None
    )


def test_a_kill_in_mid_answer_loses_a_second_at_most(tmp_path: Path):
    with run("slow", tmp_path) as terminal:
        terminal.wait("conversations are kept in")
        ready(terminal)
        terminal.send("Go\r")
        terminal.wait("travel")
        os.kill(terminal.child.pid, signal.SIGKILL)
    with run("plain", tmp_path, "-c", width=100) as terminal:
        terminal.wait(r"session \d{4}-a · 1 exchange · \d+ tok · Go")
        ready(terminal)
        terminal.send("/continue\r")
        terminal.wait("The answer is 42.")
        terminal.send("\x04")
        assert terminal.end() == 0
        assert "back with: erniechat -c" in terminal.text
    (path,) = (tmp_path / "data" / "erniechat" / "sessions").iterdir()
    found = load_session(path).messages
    assert found[0] == Message("user", "Go")
    assert re.fullmatch(r"Two roads .*The answer is 42\.", found[1].content)


def test_the_history_is_private_and_leaves_out_what_begins_with_a_blank(tmp_path: Path):
    with run("plain", tmp_path, ERNIECHAT_HISTORY="yes") as terminal:
        ready(terminal)
        for text in ("first", " secret"):
            terminal.send(f"{text}\r")
            terminal.wait(rf"› {text}\n\n.*\n\n.* tok/s\n\n›")
            ready(terminal)
        terminal.send("\x04")
        assert terminal.end() == 0
    history = tmp_path / "state" / "erniechat" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "+first\n" in history.read_text()
    assert "secret" not in history.read_text()


def test_ctrl_r_finds_a_message_whatever_its_case(tmp_path: Path):
    with run("plain", tmp_path) as terminal:
        ready(terminal)
        terminal.send("What is it?\r")
        terminal.wait("tok/s")
        ready(terminal)
        terminal.send("\x12what")
        terminal.wait(r"tok/s\n\n› What is it\?")


def test_the_price_of_a_file_is_shown_while_it_is_typed(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("one two three four")
    with run("plain", tmp_path) as terminal:
        ready(terminal)
        terminal.send(f"sum up @{tmp_path}/no\t")
        terminal.wait(r"\+7 tok of files \(ctx < 1 %\)")


def test_a_piped_document_opens_the_chat(tmp_path: Path):
    command = [
        "bash", "-c",
        f"echo the document | {sys.executable} -m tests.ui.drive_fake plain -m some-model --chat",
    ]  # fmt: skip
    with TerminalRun(command, XDG_DATA_HOME=str(tmp_path)) as terminal:
        terminal.wait("The answer is 42.")
        ready(terminal)
        terminal.send("and more\r")
        terminal.wait(lambda: terminal.text.count("The answer is 42.") == 2)
        terminal.send("\x04")
        assert terminal.end() == 0


def test_the_budget_is_shown_beside_the_thinking(keys: PipeInput):
    from erniechat.events import BudgetReached

    script: Script = [*thinking("a b"), BudgetReached(2), *words("Yes.")]
    assert "2 tok (budget)" in saving(keys, script).type("Q")


def test_the_screen_reader_gets_sentences_and_no_escapes(tmp_path: Path):
    with run("thinks", tmp_path, ACCESSIBLE="1") as terminal:
        terminal.wait(r"(?m)^›")
        terminal.send("What?\n")
        terminal.wait("Done, 14 tokens.")
        terminal.send("\x04")
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.bytes


def test_a_home_that_cannot_be_written_costs_the_saving_only(tmp_path: Path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with run("plain", tmp_path, ERNIECHAT_HISTORY="yes", XDG_STATE_HOME="/proc/none") as terminal:
        ready(terminal)
        terminal.send("What?\r")
        terminal.wait("The answer is 42.")
        ready(terminal)
        terminal.send("Again?\r")
        terminal.wait(lambda: terminal.text.count("The answer is 42.") == 2)
        terminal.send("\x04")
        assert terminal.end() == 0
        assert terminal.text.count("the session is not saved") == 1
        assert "goodbye · 2 exchanges" in terminal.text


def test_a_session_that_is_open_elsewhere_is_refused_before_the_model_is_loaded(tmp_path: Path):
    with run("plain", tmp_path) as terminal:
        terminal.wait("ctx ")
        terminal.send("Hi\r")
        terminal.wait("session ")
        with run("plain", tmp_path, "-c") as second:
            assert second.end() == 2
            assert "is open in another process; leave it there first" in second.text
            assert b"loading" not in second.bytes
