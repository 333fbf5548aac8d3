"""The chat on disk: commands that come back to it, that go on, and what a kill leaves."""

import json
import re
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput

from erniechat.chat.conversation import Message
from erniechat.chat.sessions import find_session, load_session, session_paths
from erniechat.events import TurnEnd, Usage
from tests.fakes import Script, words
from tests.ui.test_repl import Chat

MODEL = ("-m", "some-model")
CUT: Script = [*words("Half an"), TurnEnd("length", Usage(prompt=3, answer=2))]


def saving(keys: PipeInput, *scripts: Script, **settings: object) -> Chat:
    chat = Chat(keys, scripts, **settings)
    chat.session.saving = True
    return chat


def contents(messages: list[Message]) -> list[str]:
    return [message.content for message in messages]


def test_the_goodbye_names_the_session_and_the_way_back(keys: PipeInput):
    out = saving(keys, words("Yes.")).type("Q")
    name = session_paths()[0].stem
    assert re.fullmatch(r"\d{4}-a", name)
    assert (
        out.endswith(
            f"saved {name} · 1 exchange · back with: erniechat -c   (or \n--resume {name})\n"
        )
        or f"saved {name} · 1 exchange · back with:" in out
    )
    assert contents(find_session().messages) == ["Q", "Yes."]


def test_the_message_is_on_the_disk_before_the_answer_begins(keys: PipeInput):
    chat = saving(keys, [ValueError("a bug")])
    chat.type("Q", "\x15")  # the message came back: take it away
    lines = [json.loads(line) for line in session_paths()[0].read_text().splitlines()]
    assert [line["type"] for line in lines] == ["session", "message", "keep"]


def test_continue_goes_on_from_the_part_and_joins_it(keys: PipeInput):
    chat = saving(keys, CUT, words(" answer."), max_tokens=2)
    out = chat.type("Q", "/continue")
    asked = chat.backend.asked[1]
    assert contents(asked.messages) == ["Q"]
    assert asked.part == Message("assistant", "Half an")
    assert contents(chat.session.messages) == ["Q", "Half an answer."]
    assert contents(find_session().messages) == ["Q", "Half an answer."]
    assert "raise it for the rest · /continue" in out


def test_an_answer_that_was_complete_has_nothing_to_add(keys: PipeInput):
    chat = saving(keys, words("Yes."), [])
    assert "\nthe model had nothing to add\n" in chat.type("Q", "/continue")
    assert contents(chat.session.messages) == ["Q", "Yes."]


def test_nothing_is_lost_where_going_on_fails(keys: PipeInput):
    chat = saving(keys, CUT, [ValueError("a bug")])
    chat.type("Q", "/continue")
    assert contents(chat.session.messages) == ["Q", "Half an"]


def test_continue_without_an_answer_is_refused(keys: PipeInput):
    assert "\nerror: there is no answer to go on with" in saving(keys).type("/continue")


def test_retry_takes_settings_for_once_and_keeps_the_old_answer_in_the_file(keys: PipeInput):
    chat = saving(keys, words("One."), words("Two."), words("Three."))
    chat.type("Q", "/retry temperature=1.5 seed=3", "R")
    sampling = [asked.sampling for asked in chat.backend.asked]
    assert (sampling[1].temperature, sampling[1].seed) == (1.5, 3)
    assert sampling[2].temperature is None
    assert contents(chat.session.messages) == ["Q", "Two.", "R", "Three."]
    assert '"One."' in session_paths()[0].read_text()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/retry hot", 'error: /retry takes key=value, got "hot"'),
        ("/retry ctx=5", 'error: /retry has no setting "ctx"; there are temperature,'),
        ("/retry tempreature=1", 'error: /retry has no setting "tempreature"; did you mean'),
        ("/retry top_p=7", "error: top_p must be a number above 0"),
        ("/resume zz", 'error: there is no session "zz"'),
        ("/fork", "error: there is nothing to branch off yet"),
        ("/export pdf", 'error: /export takes md, json, txt, got "pdf"'),
        ("/export md", "error: there is nothing to export yet"),
        ("/load nowhere.json", 'error: cannot read "nowhere.json": No such file'),
        ("/copy", "error: there is no answer to copy"),
        ("/file", "error: /file takes a path"),
        ("/file nowhere.*", 'error: there is no file "nowhere.*"'),
        ("/edit all", 'error: /edit takes answer or nothing, got "all"'),
        ("/image x.png", "error: this checkpoint reads text only"),
        ("/think budget x", "error: /think budget must be a whole number at least 0,"),
        ("/model other", "error: the model is chosen when the program starts"),
    ],
)
def test_wrong_commands_are_one_error(keys: PipeInput, line: str, error: str):
    assert f"\n{error}" in saving(keys, words("x")).type(line)


def test_a_new_conversation_says_how_to_come_back_and_resume_does(keys: PipeInput):
    chat = saving(keys, words("One."), words("Two."), words("Three."))
    out = chat.type("Q", "/new", "R", "/sessions", "/resume", "S")
    first = min(path.stem for path in session_paths())
    assert f"new conversation, same settings · back with /resume {first}" in out
    assert re.search(rf"{first} .* 1 +1 +Q", out)
    # without an id, the newest but for the one that is open
    assert contents(chat.session.messages) == ["Q", "One.", "S", "Three."]


@pytest.mark.parametrize(("width", "columns"), [(40, 4), (20, 2), (10, 1)])
def test_a_narrow_terminal_gets_the_first_columns_of_the_sessions_whole(
    keys: PipeInput, width: int, columns: int
):
    chat = saving(keys, words("One."), width=width)
    chat.type("Q " * 40, "/sessions")
    name, lines = chat.session.id, chat.out.getvalue().splitlines()
    headers = ["id", "date", "turns", "written"][:columns]
    row = lines[lines.index(next(line for line in lines if line.split() == headers)) + 1]
    assert row.startswith(name)
    assert len(row.split()) == columns + (columns > 1) * 2  # a date is three words
    assert "…" not in chat.out.getvalue()


def test_a_conversation_that_was_undone_is_resumed_without_first_words(keys: PipeInput):
    chat = saving(keys, words("One."))
    chat.type("Q", "/undo", "\x03")
    name = chat.session.id
    chat.session.close()
    assert f"session {name} · 0 exchanges · 0 tok\n" in saving(keys).type(f"/resume {name}")


def test_resume_brings_back_an_older_one_with_its_system_prompt(keys: PipeInput):
    chat = saving(keys, words("One."), words("Two."), words("Three."))
    chat.type("/system Be brief.", "Q")
    first = chat.session.id
    chat.session.close()
    chat = saving(keys, words("Two."))
    out = chat.type(f"/resume {first}", "R")
    assert f"session {first} · 1 exchange ·" in out
    assert contents(chat.backend.asked[0].messages) == ["Be brief.", "Q", "One.", "R"]
    assert contents(load_session(session_paths()[0]).messages) == ["Q", "One.", "R", "Two."]


def test_a_fork_leaves_the_first_as_it_is(keys: PipeInput):
    chat = saving(keys, words("One."), words("Two."))
    out = chat.type("Q", "/fork", "R")
    first, second = sorted(path.stem for path in session_paths())
    assert f"branched off {first}: this is session {second}" in out
    assert contents(find_session(first).messages) == ["Q", "One."]
    assert contents(find_session(second).messages) == ["Q", "One.", "R", "Two."]


def test_a_fork_of_what_cannot_be_saved_is_refused(
    keys: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    out = saving(keys, words("One.")).type("Q", "/fork")
    assert "error: nothing is saved here; start without --no-save, where" in out


def test_export_refuses_to_replace_and_load_reads_back(keys: PipeInput, tmp_path: Path):
    chat = saving(keys, words("One."), words("Two."))
    out = chat.type("Q", "/export json c.json", "/export json c.json", "/export md --force c.json",
                    "/export txt", "/export json d.json", "/load d.json", "R")  # fmt: skip
    assert 'error: "c.json" exists already; add --force to replace it' in out
    assert (tmp_path / "c.json").read_text() == "## You\n\nQ\n\n## Answer\n\nOne.\n"
    assert len(list(tmp_path.glob("erniechat-*.txt"))) == 1
    assert contents(chat.session.messages) == ["Q", "One.", "R", "Two."]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("typed", "sent"), [("/edit", ["Q!"]), ("/edit answer", ["Q"]), ("\x1b\x1b", ["Q!"])]
)
def test_edit_changes_the_message_or_the_answer_and_goes_on(
    keys: PipeInput, tmp_path: Path, typed: str, sent: list[str]
):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s!" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o700)
    chat = saving(keys, words("One."), words(" Two."))
    chat.session.environ = {"EDITOR": str(editor)}
    out = chat.type("Q", typed)
    asked = chat.backend.asked[1]
    assert contents(asked.messages) == sent
    assert ("\n› Q!\n" in out) == (sent == ["Q!"])  # what is asked now can be read
    if sent == ["Q"]:
        assert asked.part == Message("assistant", "One.!")
        assert chat.session.messages[-1].content == "One.! Two."
    assert contents(find_session().messages) == contents(chat.session.messages)


def test_an_editor_that_cannot_run_is_an_error(keys: PipeInput):
    chat = saving(keys, words("One."))
    chat.session.environ = {"VISUAL": "/nowhere/editor"}
    assert 'error: cannot edit with "/nowhere/editor"' in chat.type("Q", "/edit")
    assert contents(chat.session.messages) == ["Q", "One."]


def test_copy_sends_the_text_as_the_model_wrote_it(keys: PipeInput):
    text = "Look:\n```py\nx = 1\n```\nand\n~~~\ny\n~~~\n"
    chat = saving(keys, [*words(text)])
    chat.session.screen.moves_cursor = True
    out = chat.type("Q", "/copy code 1", "/copy code", "/copy code 3")
    assert "\x1b]52;c;eCA9IDEK\x07" in out  # base64 of "x = 1\n"
    assert "\x1b]52;c;eQo=\x07" in out
    assert "copied code block 1, 6 characters, by the terminal (OSC 52)" in out
    assert "error: the answer has 2 code blocks" in out


def test_files_are_priced_and_stand_before_the_message(keys: PipeInput, tmp_path: Path):
    (tmp_path / "a.txt").write_text("one two three\n")
    (tmp_path / "b.txt").write_text("four\n")
    (tmp_path / "bad.bin").write_bytes(b"a\0b")
    chat = saving(keys, words("x"))
    out = chat.type("/file *.txt", "Sum up @a.txt, please @nobody", "/file bad.bin", "see @bad.bin")
    assert "a.txt +6 tok (ctx < 1 %), with the next message" in out
    assert "b.txt +4 tok" in out
    assert chat.backend.asked[0].messages[0].content == (
        "a.txt\n```\none two three\n```\n\nb.txt\n```\nfour\n```\n\n"
        "a.txt\n```\none two three\n```\n\nSum up @a.txt, please @nobody"
    )
    assert 'error: "bad.bin" is binary: a zero byte at offset 1' in out
    assert len(chat.backend.asked) == 1


def test_a_long_paste_is_folded_sent_whole_and_deleted_with_its_mark(keys: PipeInput):
    paste = "\n".join(f"line {number}" for number in range(20))
    chat = saving(keys, words("x"), words("y"))
    bracketed = f"\x1b[200~{paste}\x1b[201~"
    unfolded = f"{bracketed}\x0f\x7f!"  # Ctrl-O, then its last character becomes another
    chat.type(f"{bracketed} what?", f"{bracketed}\x7fno paste", "no fold\x0f.", unfolded)
    sent = [asked.messages[-1].content for asked in chat.backend.asked]
    assert sent == [f"{paste} what?", "no paste", "no fold.", f"{paste[:-1]}!"]


def test_the_thinking_budget_is_set_in_the_chat(keys: PipeInput):
    chat = saving(keys, words("x"))
    out = chat.type("/think budget 500", "/think", "Q", "/think budget off", "R")
    assert "at most 500 tok of thinking" in out
    assert "think auto · budget 500 tok · this model can think" in " ".join(out.split())
    assert [asked.sampling.think_budget for asked in chat.backend.asked] == [500, None]


def test_help_of_a_command_and_the_page_name_them_all(keys: PipeInput):
    out = saving(keys, words("x"), width=80).type("/help", "/help retry")
    for name in (
        "continue",
        "edit",
        "copy",
        "file",
        "sessions",
        "resume",
        "fork",
        "export",
        "load",
    ):
        assert f"/{name}" in out
    assert "/retry [key=value …], /regen" in out
