"""Session files: what a file replays to, who may read it, and what damage costs."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from erniechat.chat.conversation import Message
from erniechat.chat.session_file import SessionFile, remove_session
from erniechat.chat.sessions import find_session, load_session, session_paths, sessions_folder
from erniechat.chat.transcript import read_transcript, transcript
from erniechat.errors import UsageError
from erniechat.events import ToolCall, TurnEnd, Usage

CALL = ToolCall("c1", "get_weather", '{"city": "Köln"}')
CHAT = [
    Message("user", "Weather?"),
    Message("assistant", "", "I look.", (CALL,)),
    Message("tool", '{"t": 23}', content_is_json=True),
    Message("assistant", "23 °C."),
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def refuse(text: str) -> None:
    raise AssertionError(text)


def saved(*messages: Message, system: str | None = None) -> Path:
    session = SessionFile(refuse, {"model": "m", "quant": "nf4"})
    session.set_system(system)
    for message in messages:
        session.add_message(message, TurnEnd("stop", Usage(5, 0, 2, 3)))
    session.close()
    return session_paths()[0]


def test_a_conversation_comes_back_as_it_was():
    path = saved(*CHAT, system="Be brief.")
    chat = load_session(path)
    assert (chat.messages, chat.system, chat.damage) == (CHAT, "Be brief.", [])
    assert chat.settings == {"model": "m", "quant": "nf4"}
    assert (chat.num_exchanges, chat.num_tokens, chat.title) == (1, 20, "Weather?")


def test_files_are_the_users_alone_and_made_by_the_first_message():
    session = SessionFile(refuse, {})
    assert not sessions_folder().exists()
    session.add_message(CHAT[0])
    path = sessions_folder() / f"{session.id}.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    session.close()


def test_every_line_is_on_the_disk_at_once():
    session = SessionFile(refuse, {})
    for number, message in enumerate(CHAT, 1):
        session.add_message(message)
        lines = session_paths()[0].read_text("utf-8").splitlines()
        assert len(lines) == number + 1  # and the head
        assert json.loads(lines[-1])["message"]["role"] == message.role
    session.close()


def test_undone_messages_stay_in_the_file_and_leave_the_conversation():
    session = SessionFile(refuse, {})
    for message in (Message("user", "Q"), Message("assistant", "old")):
        session.add_message(message)
    session.keep(1, "retry")
    session.add_message(Message("assistant", "new"))
    session.close()
    path = session_paths()[0]
    assert [m.content for m in load_session(path).messages] == ["Q", "new"]
    assert '"old"' in path.read_text()


def test_an_answer_that_was_cut_off_by_a_kill_is_kept_as_far_as_it_came():
    session = SessionFile(refuse, {})
    session.add_message(Message("user", "Q"))
    session.add_part("Hm ", "")
    session.add_part("yes.", "Half ")
    session.add_part("", "an")
    chat = load_session(session_paths()[0])
    assert chat.messages[-1] == Message("assistant", "Half an", "Hm yes.")
    session.add_message(Message("assistant", "Half an answer."))
    session.add_part("", " And more")  # gone on with, and killed again
    session.close()
    assert load_session(session_paths()[0]).messages[-1].content == "Half an answer. And more"


@pytest.mark.parametrize(
    "damage", ["{", '{"type": "message"}', '{"type": "x"}', "[]", '{"type": "keep", "messages": 1']
)
def test_a_damaged_line_is_named_and_the_rest_is_used(damage: str):
    path = saved(*CHAT)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], damage, *lines[3:], "{half a li"]))
    chat = load_session(path)
    assert chat.messages == CHAT
    assert chat.damage == [
        f"session {chat.id}: line {number} is damaged and was skipped; the rest is used"
        for number in (4, len(lines) + 2)
    ]
    session = SessionFile.resume(chat, refuse)
    session.add_message(Message("user", "more"))
    session.close()
    assert load_session(path).messages[-1].content == "more"


def test_one_process_at_a_time_goes_on_with_a_session():
    chat = load_session(saved(*CHAT))
    first = SessionFile.resume(chat, refuse)
    with pytest.raises(UsageError, match=f"session {chat.id} is open in another process"):
        SessionFile.resume(chat, refuse)
    with pytest.raises(UsageError, match="is open in another process"):
        remove_session(chat.id)
    first.close()
    SessionFile.resume(chat, refuse).close()
    remove_session(chat.id)
    assert session_paths() == []


def test_two_processes_at_once_have_files_of_their_own():
    code = (
        "from erniechat.chat.session_file import SessionFile\n"
        "from erniechat.chat.conversation import Message\n"
        "for i in range(20):\n"
        "    s = SessionFile(print, {}); s.add_message(Message('user', str(i))); s.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(session_paths()) == 40
    assert all(len(load_session(path).messages) == 1 for path in session_paths())


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path):
    (tmp_path / "data").write_text("a file where the folder should be")
    told: list[str] = []
    session = SessionFile(told.append, {})
    for message in CHAT:
        session.add_message(message)
    assert (len(told), session.id) == (1, "")
    assert told[0].startswith("the session is not saved: ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to")
def test_a_full_disk_costs_the_saving_and_nothing_else():
    path = saved(*CHAT)
    chat = load_session(path)
    told: list[str] = []
    session = SessionFile.resume(chat, told.append)
    assert session._file_descriptor is not None
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), session._file_descriptor)
    session.add_message(Message("user", "more"))
    session.add_message(Message("user", "and more"))
    assert len(told) == 1
    assert "No space left" in told[0]


def test_the_newest_session_is_found_and_a_wrong_name_is_answered():
    old = saved(Message("user", "first"))
    new = saved(Message("user", "second"))
    os.utime(old, (1, 1))
    assert find_session().id == new.stem
    assert find_session(old.stem).title == "first"
    with pytest.raises(UsageError, match='there is no session "zz"; the newest are '):
        find_session("zz")


def test_half_a_surrogate_pair_can_be_saved():
    path = saved(Message("user", "a\ud800b"))
    assert load_session(path).messages[0].content == "a\ud800b"


# --- transcripts


def test_a_transcript_as_json_is_the_conversation(tmp_path: Path):
    file = tmp_path / "chat.json"
    file.write_text(transcript([Message("system", "S"), *CHAT], "json"), "utf-8")
    assert read_transcript(file) == [Message("system", "S"), *CHAT]
    assert read_transcript(saved(*CHAT)) == CHAT


def test_a_transcript_for_people_leaves_the_thoughts_out():
    text = transcript(CHAT, "md")
    assert text.startswith('## You\n\nWeather?\n\n## Answer\n\n→ get_weather({"city": "Köln"})\n')
    assert "I look." not in text
    assert transcript(CHAT[:1], "txt") == "You:\nWeather?\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"messages": 3}', '[{"role": "boss"}]'])
def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError):
        read_transcript(tmp_path / "x.json")
