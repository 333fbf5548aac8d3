"""/compact: what would go is shown, the model sums it up, and nothing is ever lost."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput

from erniechat.chat.conversation import Message
from erniechat.chat.sessions import find_session, load_session
from erniechat.chat.summary import SUMMARY_HEAD, SUMMARY_REQUEST, Summary
from erniechat.errors import MemoryLimitError
from erniechat.events import TurnEnd, Usage
from erniechat.ui.log import Log
from tests.fakes import INFO, Script, thinking, words
from tests.ui.screen_of import TerminalRun, erniechat
from tests.ui.test_overflow import CLEAR, Choosing

LONG = " ".join(f"w{number}" for number in range(200))
TALK = (LONG, "b1 b2", "c1 c2", "d1 d2 d3", "e1", "f1")  # three exchanges
SUMMARY = "They said w0 to w199."
READ = f"{SUMMARY_HEAD}\n{SUMMARY}"


def talking(keys: PipeInput, *scripts: Script, saving: bool = False, **info: object) -> Choosing:
    chat = Choosing(keys, scripts, info=dataclasses.replace(INFO, **info), width=100)  # type: ignore[arg-type]  # of its fields
    chat.session.saving = saving
    for role, text in zip(("user", "assistant") * 3, TALK, strict=True):
        thoughts = "a long thought" if role == "assistant" else None
        chat.session._add(Message(role, text, thoughts))  # type: ignore[arg-type]  # of the two
    return chat


def contents(messages: list[Message]) -> list[str]:
    return [message.content for message in messages]


def test_the_whole_screen(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words("Fine."))
    chat.choose("y\r")
    # Of the messages' 200, 2, 2, 3, 1 and 1 words with 2 around each, and 1 that opens the answer,
    # the first four go; the summary's head comes, 8 and 2 around it.
    assert chat.type("/compact", "more") == (
        "summarise the first 2 exchanges: 205 tok become at most 102, the conversation 222 → at"
        " most 119 tok\n"
        "this chat keeps the originals, and /undo brings them back\n"
        "\n"
        "They said w0 to w199.\n"
        "\n"
        "summarised the first 2 exchanges: 222 → 22 tok, which the next message re-reads · /undo"
        " brings them\nback\n"
        "\n"
        "\n"
        "Fine.\n"
        "\n"
        "1 tok · 0.2 tok/s\n"
        "\n"
        "goodbye · 4 exchanges\n"
    )


def test_the_model_is_asked_once_and_reads_the_summary_from_then_on(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words("Fine."))
    chat.session.system = "Be brief."
    chat.choose("y\r")
    chat.type("/compact", "more")
    request, after = chat.backend.asked
    assert contents(request.messages) == [
        "Be brief.", *TALK[:4], SUMMARY_REQUEST.format(words=62)
    ]  # fmt: skip
    assert [message.thoughts for message in request.messages] == [None] * 6
    assert (request.think, request.sampling.max_tokens) == ("off", 103)
    assert contents(after.messages) == [f"Be brief.\n\n{READ}", "e1", "f1", "more"]
    assert contents(chat.session.messages) == [*TALK, "more", "Fine."]


def test_a_no_asks_nothing_and_changes_nothing(keys: PipeInput) -> None:
    chat = talking(keys)
    chat.choose("\r")
    chat.type("/compact")
    assert chat.backend.asked == []
    assert contents(chat.session.conversation) == list(TALK)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([*words("They said"), TurnEnd("cancelled")], "no summary was made; the conversation is"),
        ([*words("They said"), MemoryLimitError("no memory")], "error: no memory\nno summary was"),
        (words("  "), "no summary was made; the conversation is as it was"),
    ],
)
def test_what_is_stopped_fails_or_is_empty_changes_nothing(
    keys: PipeInput, script: Script, said: str
) -> None:
    chat = talking(keys, script, saving=True)
    chat.choose("y\r")
    assert said in chat.type("/compact")
    assert contents(chat.session.conversation) == list(TALK)
    assert load_session(find_session().path).summaries == []


@pytest.mark.parametrize(("answer", "num_summaries"), [("y\r", 1), ("n\r", 0)])
def test_a_summary_that_was_cut_is_asked_about(
    keys: PipeInput, answer: str, num_summaries: int
) -> None:
    chat = talking(keys, [*words("They said"), TurnEnd("length", Usage())])
    chat.choose("y\r", answer)
    chat.type("/compact")
    assert len(chat.session.summaries) == num_summaries


def test_undo_takes_the_summary_back_once_what_came_after_it_is_undone(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words("Fine."))
    chat.choose("y\r")
    out = chat.type("/compact", "more", "/undo", CLEAR + "/undo", "/undo", CLEAR)
    assert "undone: 1 exchange, 6 tok freed\n" in out
    assert "undone: the summary; what it stood for is back, 222 tok now\n" in out
    assert "undone: 1 exchange, 6 tok freed\n" in out.split("222 tok now")[1]
    assert contents(chat.session.conversation) == list(TALK[:4])


def test_undo_of_a_retried_answer_is_not_undo_of_the_summary(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words("Fine."))
    chat.choose("y\r")
    out = chat.type("/compact", "/retry", "/undo", CLEAR)
    assert "undone: 1 exchange" in out
    assert chat.session.summaries == [Summary(SUMMARY, 4, 4)]


def test_the_session_keeps_the_originals_and_comes_back_with_the_summary(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words("Fine."), saving=True)
    chat.choose("y\r")
    chat.type("/compact", "more")
    saved = find_session()
    assert contents(saved.messages) == [*TALK, "more", "Fine."]
    assert saved.summaries == [Summary(SUMMARY, 4, 6)]
    chat.session.close()
    again = Choosing(keys, [words("Yes.")])
    again.session.saving = True
    out = again.type("/resume", "on", "/undo 3", CLEAR)
    assert "its beginning is read as a summary, which /system shows\n" in out
    assert contents(again.backend.asked[0].messages) == [READ, "e1", "f1", "more", "Fine.", "on"]
    assert contents(again.session.conversation) == list(TALK)


def test_undo_of_a_continued_answer_is_not_undo_of_the_summary(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words(" and on"), saving=True)
    chat.choose("y\r")
    assert "undone: 1 exchange" in chat.type("/compact", "/continue", "/undo", CLEAR)
    assert chat.session.summaries == [Summary(SUMMARY, 4, 4)]


@pytest.mark.parametrize(
    "lines",
    [
        ("/undo", CLEAR),
        ("/continue",),
        ("more", "/undo", CLEAR + "/undo", "/undo", CLEAR),
        ("/retry", "on"),
        ("/undo", "/undo 2", CLEAR + "more"),
        ("/compact 1", "/undo"),
    ],
)
def test_what_comes_back_is_what_was_left(keys: PipeInput, lines: tuple[str, ...]) -> None:
    chat = talking(keys, words(SUMMARY), words(LONG), saving=True)
    chat.choose("y\r", "y\r")
    chat.type("/compact", *lines)
    saved = find_session()
    assert saved.messages == chat.session.messages
    assert saved.summaries == chat.session.summaries


def test_a_second_summary_stands_for_the_first_one_too(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words(LONG), words("All of it."))
    chat.choose("y\r", "y\r")
    out = chat.type("/compact", LONG, "/compact 2", "/undo")
    assert "summarise the summary and the next 2 exchanges: " in out
    assert contents(chat.backend.asked[2].messages)[:-1] == [READ, "e1", "f1", LONG, LONG]
    assert chat.session.summaries == [Summary(SUMMARY, 4, 6)]


def test_a_fork_has_the_summary_and_an_export_the_originals(
    keys: PipeInput, tmp_path: Path
) -> None:
    chat = talking(keys, words(SUMMARY), saving=True)
    chat.choose("y\r")
    chat.type("/compact", "/fork", "/export json all.json", "/system")
    assert contents(chat.session.conversation) == [READ, "e1", "f1"]
    assert READ in chat.out.getvalue()
    told = json.loads((tmp_path / "all.json").read_text())["messages"]
    assert [message["content"] for message in told] == list(TALK)


def test_an_answer_that_the_model_no_longer_reads_is_not_gone_on_with(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY))
    chat.choose("y\r")
    assert "error: there is no answer to go on with" in chat.type("/compact 3", "/continue")


def test_a_model_that_always_thinks_gets_tokens_for_it(keys: PipeInput) -> None:
    chat = talking(keys, [*thinking("Hm."), *words(SUMMARY)], thinking="always")
    chat.choose("y\r")
    chat.type("/compact")
    sampling = chat.backend.asked[0].sampling
    assert (sampling.max_tokens, sampling.think_budget) == (102 + 512, 512)
    assert chat.session.summaries == [Summary(SUMMARY, 4, 6)]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/compact x", 'error: /compact takes a number of exchanges, got "x"'),
        ("/compact 0", 'error: /compact takes a number of exchanges, got "0"'),
        ("/compact 4", "error: there are 3 exchanges to summarise, got 4; /compact 3 takes all"),
        ("/compact 2", "longer than the context of 320; /compact 1 does"),
    ],
)
def test_wrong_requests_are_one_line(keys: PipeInput, line: str, error: str) -> None:
    chat = talking(keys, context_length=int((re.findall(r"of (\d+);", error) or [4096])[0]))
    assert error in chat.type(line).replace("\n", " ")
    assert chat.backend.asked == []


def test_more_than_is_left_says_what_is_left(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY))
    chat.choose("y\r")
    out = chat.type("/compact", "/compact 2")
    assert "error: there is 1 exchange left to summarise, got 2; /compact 1 takes all\n" in out


def test_a_summary_of_what_another_session_has_brings_nothing_back(keys: PipeInput) -> None:
    chat = talking(keys)
    chat.session.replace_conversation([], summaries=[Summary(SUMMARY, 0, 0)])
    assert "undone: the summary, 16 tok freed\n" in chat.type("/undo")


def test_a_summary_is_in_the_log(keys: PipeInput, tmp_path: Path) -> None:
    chat = talking(keys, words(SUMMARY))
    path = tmp_path / "log"
    chat.session.screen.log = Log(str(path))
    chat.choose("y\r")
    chat.type("/compact")
    assert "reply stop: read " in path.read_text()


def test_too_little_to_gain_is_told(keys: PipeInput) -> None:
    chat = Choosing(keys, [words("Yes.")])
    out = chat.type("/compact", "Q", "/compact", "/compact 1").replace("\n", " ")
    assert "error: there is nothing to summarise yet" in out
    assert "error: there is only one exchange to summarise yet; /compact 1 summarises it too" in out
    assert "error: the first exchange: so short that a summary would gain nothing" in out


# Of 420 tokens 105 are kept for the answer; the request for a summary has 73.
SMALL = {"context_length": 420, "max_context_length": 420}


def test_a_message_that_does_not_fit_can_be_made_room_for(keys: PipeInput) -> None:
    chat = talking(keys, words(SUMMARY), words("Fine."), **SMALL)
    chat.choose("2")
    out = chat.type(" ".join(["more"] * 150))
    assert "  2  summarise the first 2 exchanges (−205 tok, then +52 at most)\n" in out
    assert contents(chat.backend.asked[1].messages)[:3] == [READ, "e1", "f1"]


def test_a_stop_there_leads_back_to_the_choices(keys: PipeInput) -> None:
    chat = talking(keys, [*words("They"), TurnEnd("cancelled")], words("Fine."), **SMALL)
    chat.choose("2", "1")
    out = chat.type(" ".join(["more"] * 150))
    assert out.count("  1  leave out the first exchange (") == 2
    assert contents(chat.backend.asked[1].messages)[:4] == list(TALK[2:])


def test_esc_in_a_terminal_leaves_all_as_it_was() -> None:
    with erniechat("roads", "-m", "some-model", width=90) as run:
        run.wait("ctx 0/")
        run.send("\x1b[200~" + "word " * 300 + "\x1b[201~\r")
        run.wait("ctx 387/")
        run.send("/compact 1\r")
        run.wait(r"Go on\? \[y/N\]")
        run.send("y\r")
        run.wait(r"Go on\? \[y/N\] y\n\nSome roads: ")
        run.send("\x1b")
        run.wait(r"no summary was made; the conversation is as it was\n\n›")
        run.wait("ctx 387/")
        run.send("\x04")
        assert run.end() == 0


def test_the_built_in_model_sums_up_and_its_prompt_has_the_summary(tmp_path: Path) -> None:
    mini = [sys.executable, "-m", "erniechat", "-m", "mini", "--seed", "1"]
    home = {"XDG_DATA_HOME": str(tmp_path), "ERNIECHAT_SAVE": "yes"}
    with TerminalRun(mini, width=90, height=50, **home) as run:
        run.wait("ctx 0/")
        for number, question in enumerate(("What is 12 * 13?", "Sort 5, 3, 9.", "Thanks!"), 1):
            run.send(" ".join([question] * 9) + "\r")
            run.wait(lambda n=number: run.text.count("tok/s") == n and "\nctx " in run.text)  # type: ignore[misc]  # no default is given by wait
        run.send("/compact\r")
        run.wait(r"Go on\? \[y/N\]")
        run.send("y\r")
        run.wait(r"summarised the first 2 exchanges: [\d,]+ → \d+ tok|Use it\?")
        if "Use it?" in run.text:
            run.send("y\r")
        run.wait(r"summarised the first 2 exchanges: [\d,]+ → \d+ tok")
        run.send("\x04")
        assert run.end() == 0
    asked = [*mini, "-c", "--dry-run", "-p", "Well?"]
    done = subprocess.run(asked, env=os.environ | home, capture_output=True, text=True, check=True)
    system, _, rest = done.stdout.partition("</system_setting>")
    assert f"\n{SUMMARY_HEAD}\n" in system
    assert "12 * 13" not in rest
    assert "Thanks!" in rest
