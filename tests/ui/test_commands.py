"""The commands of the chat: what each shows, changes and refuses."""

import dataclasses
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput

from erniechat.chat.conversation import Message
from erniechat.errors import MemoryLimitError
from erniechat.ui.commands import as_line
from erniechat.ui.stats import toolbar_text
from tests.fakes import INFO, thinking, words
from tests.ui.test_repl import Chat

CLEAR = "\x03"  # empties the prompt


def test_settings_show_value_default_and_source(keys: PipeInput):
    out = Chat(keys, [], temperature=0.3).type("/set")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line}
    assert rows["temperature"] == "0.3 0.8 flag"
    assert rows["top_p"] == "0.8 0.8 checkpoint"
    assert rows["seed"] == "random random built-in"
    assert "ctx" not in rows


def test_a_narrow_terminal_gets_the_first_columns_of_the_settings_whole(keys: PipeInput):
    out = Chat(keys, [], width=30, temperature=0.3).type("/set")
    rows = [line.split() for line in out.splitlines()]
    assert ["setting", "value"] in rows
    assert ["repetition_penalty", "1.0"] in rows or ["repetition_penalty", "off"] in rows
    assert "…" not in out


def test_set_changes_what_the_next_turn_uses(keys: PipeInput):
    chat = Chat(keys, [words("x")])
    out = chat.type("/set temperature 0.1", "/set top-k 5", "/seed 9", "Q")
    assert "temperature 0.1 · /set\n" in out
    sampling = chat.backend.asked[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.1, 5, 9)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/set temprature 1", 'error: no setting "temprature"; did you mean temperature?'),
        ("/set top_p 7", "error: top_p must be a number above 0 and at most 1,"),
        ("/set temperature 08", "error: temperature must be a number at least 0 and at most"),
        ("/retry temperature=08", "error: temperature must be a number at least 0 and at most"),
        ("/set ctx 5", "error: ctx is set when the program starts; erniechat --ctx …"),
        ("/think maybe", 'error: /think takes auto, on, off, got "maybe"'),
        ("/undo x", 'error: /undo takes a number of exchanges, got "x"'),
        ("/retry", "error: there is no message to answer again"),
        ("/undo", "error: there is nothing to undo"),
        ("/system @/nowhere", 'error: cannot read the system prompt "/nowhere": No such'),
        ("/help me", 'error: no command "me"; see /help'),
        ("/help retyr", 'error: no command "retyr"; did you mean /retry'),
        ("/tools", "no tools; erniechat --tools FILE.json gives some"),
        ("/thoughts", "the last answer has no thoughts"),
    ],
)
def test_wrong_commands_are_one_error(keys: PipeInput, line: str, answer: str):
    assert Chat(keys, []).type(line).startswith(answer)


def test_default_takes_a_setting_back(keys: PipeInput):
    out = Chat(keys, [], top_p=0.5).type("/set top_p default")
    assert out.startswith("top_p 0.8 · checkpoint\n")


def test_think_is_refused_where_the_model_cannot(keys: PipeInput):
    info = dataclasses.replace(INFO, thinking="never")
    chat = Chat(keys, [words("x")], info=info)
    assert chat.type("/think on", "/think off", "Q").startswith(
        "error: fake-21B has no thinking mode;"
    )
    assert chat.backend.asked[0].think == "off"


def test_retry_asks_the_same_again_and_replaces_the_answer(keys: PipeInput):
    chat = Chat(keys, [words("One."), words("Two.")])
    chat.type("Q", "/retry")
    assert [message.content for message in chat.session.messages] == ["Q", "Two."]


def test_undo_gives_the_message_back_and_counts_what_is_freed(keys: PipeInput):
    chat = Chat(keys, [words("One two three."), words("Four.")])
    out = chat.type("Q", "/undo", " again")
    assert "undone: 1 exchange, 9 tok freed\n" in out
    assert chat.backend.asked[1].messages == [Message("user", "Q again")]


def test_reset_forgets_the_conversation_and_keeps_the_system_prompt(keys: PipeInput):
    chat = Chat(keys, [words("x")])
    chat.type("/system Be brief.", "Q", "/reset", "R")
    assert [message.content for message in chat.backend.asked[1].messages] == ["Be brief.", "R"]


def test_the_system_prompt_can_come_from_a_file(keys: PipeInput, tmp_path: Path):
    (tmp_path / "prompt.txt").write_text("Be brief.\n")
    chat = Chat(keys, [])
    out = chat.type(f"/system @{tmp_path}/prompt.txt", "/system", "/system -", "/system")
    assert "\nBe brief.\n" in out
    assert out.endswith("no system prompt\n\ngoodbye\n")


def test_stats_hold_tokens_times_context_memory_and_seed(keys: PipeInput):
    chat = Chat(keys, [[*thinking("a b"), *words("The answer is 42.")]])
    page = chat.type("Q", "/stats").split("tok/s\n")[-1]
    table = [line.split() for line in page.splitlines() if line.strip()]
    assert ["last", "read", "4", "0.5", "s", "8.0"] in table
    assert ["think", "2", "2.0", "s", "1.0"] in table
    assert ["write", "4", "4.0", "s", "1.0", "1", "answer"] in table
    assert "context  10 of 4,096 tok (< 1 %)" in page
    assert "weights 1.5 GiB · cache 128 MiB · ram 2.0 GiB" in page
    assert "/set seed 7 repeats the last answer" in page


def test_a_context_that_may_grow_says_from_where_on(keys: PipeInput):
    chat = Chat(keys, [words("x")], width=100)
    info = dataclasses.replace(
        chat.backend.info, kv_nbytes_per_token=1 << 20, context_length=60_000
    )
    chat.backend.info = info
    assert "→ 60.5 GiB at full ctx" in toolbar_text(chat.session, 80)
    chat.backend.info = dataclasses.replace(info, planned_context=8192)
    assert "at full ctx" not in toolbar_text(chat.session, 80)  # experts make room for it
    assert "of 60,000 tok (0 %) · beyond 8,192 experts leave the GPU" in chat.type("/stats")
    assert "context 8,192, grows to 60,000" in chat.out.getvalue()


def test_help_fits_a_screen_and_knows_each_command(keys: PipeInput):
    out = Chat(keys, [], width=80).type("/help")
    assert len(out.split("goodbye")[0].splitlines()) <= 24
    for name in ("reset", "system", "think", "thoughts", "set", "stats", "retry", "undo", "exit"):
        assert f"/{name}" in out
    assert "A single - removes it." in Chat(keys, []).type("/help system")


def test_the_toolbar_counts_exactly_and_drops_from_the_right(keys: PipeInput):
    chat = Chat(keys, [[*thinking("a b c"), *words("The answer is 42.")]])
    chat.type("What is it?")
    # <user> What is it? </user> <assistant> The answer is 42. </assistant> <assistant>
    assert toolbar_text(chat.session, 80) == (
        "ctx 12/4.1k (3 thoughts not kept) · ram 2.0 GiB · fake-21B · nf4"
    )
    assert toolbar_text(chat.session, 50) == "ctx 12/4.1k (3 thoughts not kept) · ram 2.0 GiB"
    assert toolbar_text(chat.session, 20) == "ctx 12/4.1k"


def test_the_thoughts_not_kept_are_those_of_the_answer_that_is_the_last_now(keys: PipeInput):
    chat = Chat(keys, [[*thinking("a b c"), *words("One.")], [*thinking("d"), *words("Two.")]])
    seen = []
    for lines in (("Q",), ("R",), ("/undo", CLEAR + "/fork"), ("/undo", CLEAR)):
        chat.session.exit_status = None
        chat.type(*lines)
        seen.append(toolbar_text(chat.session, 80).split(" · ")[0].partition(" (")[2])
    assert seen == ["3 thoughts not kept)", "1 thoughts not kept)", "3 thoughts not kept)", ""]


def test_thoughts_and_raw_show_the_answer_that_is_the_last_now(keys: PipeInput):
    scripts = [[*thinking("Hm one."), *words("**One**")], [*thinking("Hm two."), *words("Two")]]
    chat = Chat(keys, scripts)
    chat.type("Q", "R")

    def shown(*lines: str) -> list[str]:
        chat.session.exit_status, start = None, chat.out.tell()
        chat.type(*lines, "/thoughts", "/raw")
        page = chat.out.getvalue()[start:]
        return [text for text in ("Hm one.", "**One**", "Hm two.", "Two") if text in page]

    assert shown() == ["Hm two.", "Two"]
    assert shown("/undo", CLEAR) == ["Hm one.", "**One**"]
    chat.session.replace_conversation(list(chat.session.messages))  # as /fork and /load do
    assert shown() == ["Hm one.", "**One**"]
    assert shown("/undo", CLEAR) == []


def test_thoughts_and_raw_show_the_whole_of_an_answer_in_two_parts(keys: PipeInput):
    chat = Chat(keys, [[*thinking("Hm."), *words("One")], words("and *more*")])
    page = chat.type("Q", "/continue", "/thoughts", "/raw").split("thoughts of the last")[1]
    assert "Hm." in page
    assert "Oneand *more*" in page


def test_an_answer_that_was_gone_on_with_keeps_the_count_of_its_thoughts(keys: PipeInput):
    chat = Chat(keys, [[*thinking("a b c"), *words("One.")], words("more")])
    chat.type("Q", "/continue")
    assert "(3 thoughts not kept)" in toolbar_text(chat.session, 80)


def test_a_narrow_stats_page_keeps_the_names_of_its_rows(keys: PipeInput):
    chat = Chat(keys, [[*thinking("Hm."), *words("Yes it is.")]], width=24)
    _, _, page = chat.type("Q", "/stats").partition("tokens\n")
    assert [line.split() for line in page.splitlines()[:7]] == [
        ["last", "read", "4"],
        ["think", "1"],
        ["write", "3"],
        [],
        ["all", "read", "4"],
        ["think", "1"],
        ["write", "3"],
    ]


def test_a_file_in_a_folder_that_looks_like_somebodys_home_has_a_price(
    keys: PipeInput, tmp_path: Path
):
    (tmp_path / "~nobody-here").mkdir()
    (tmp_path / "~nobody-here" / "x").write_text("one two")
    chat = Chat(keys, [])
    assert "of files" in toolbar_text(chat.session, 80, "@~nobody-here/x")


def test_the_price_of_files_is_counted_once_and_not_at_each_key(keys: PipeInput, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("one two three")
    chat = Chat(keys, [])
    counted: list[str] = []
    count = chat.backend.count_tokens

    def counting(text: str, *, raw: bool = False) -> int:
        counted.append(text)
        return count(text)

    chat.backend.count_tokens = counting  # type: ignore[method-assign]  # to see it
    for typed in ("@notes.txt", "@notes.txt s", "@notes.txt su"):
        assert "tok of files (ctx < 1 %)" in toolbar_text(chat.session, 80, typed)
    assert len(counted) == 1
    (tmp_path / "notes.txt").write_text("one two three four")
    toolbar_text(chat.session, 80, "@notes.txt sum")
    assert len(counted) == 2


@pytest.mark.parametrize(
    "message", ["/etc/hosts says?", "//x", "exit", "?", " x", "plain", "/help"]
)
def test_a_message_that_comes_back_is_still_a_message(keys: PipeInput, message: str):
    chat = Chat(keys, [[MemoryLimitError("no memory")], words("ok")])
    line = as_line(message)
    chat.type(line, "")  # Enter alone sends what came back
    assert [asked.messages[-1].content for asked in chat.backend.asked] == [message, message]


def test_files_that_were_put_before_the_next_message_can_be_taken_away(
    keys: PipeInput, tmp_path: Path
):
    (tmp_path / "notes.txt").write_text("one two three")
    chat = Chat(keys, [words("Yes.")])
    out = chat.type("/file notes.txt", "/file -", "Q", "/file notes.txt", "/reset", "R")
    assert "taken away: 1 file\n" in out
    assert [asked.messages[-1].content for asked in chat.backend.asked] == ["Q", "R"]


def test_the_tools_page_says_which_may_be_run(keys: PipeInput):
    tool = {"type": "function", "function": {"name": "get_weather", "description": "Weather."}}
    chat = Chat(keys, [], tools=(tool,))
    chat.session.runnable = ("get_weather",)
    assert "may be run: get_weather\n" in chat.type("/tools")
