"""What stands for the first messages of a conversation, and what is read in place of them."""

from erniechat.chat.conversation import Message
from erniechat.chat.summary import (
    SUMMARY_HEAD,
    Summary,
    as_read,
    summaries_of,
    summary_request,
)

TALK = [
    Message("user", "q1"),
    Message("assistant", "a1", "hm"),
    Message("user", "q2"),
    Message("assistant", "a2"),
]


def test_a_summary_is_read_behind_the_system_prompt_in_one_message() -> None:
    assert as_read("Be brief.", TALK, Summary("We spoke.", 2, 4)) == [
        Message("system", f"Be brief.\n\n{SUMMARY_HEAD}\nWe spoke."),
        *TALK[2:],
    ]
    assert as_read(None, TALK, Summary("We spoke.", 4, 4)) == [
        Message("system", f"{SUMMARY_HEAD}\nWe spoke.")
    ]
    assert as_read(None, TALK) == TALK


def test_the_request_comes_last_and_leaves_thoughts_out() -> None:
    *told, request = summary_request(TALK, 100)
    assert told == [Message("user", "q1"), Message("assistant", "a1"), *TALK[2:]]
    assert request.role == "user"
    assert "at most 60 words" in request.content


def test_a_summary_ends_with_the_messages_that_it_stands_for() -> None:
    both = [Summary("one", 2, 4), Summary("two", 6, 8)]
    assert summaries_of(both, 8) == both
    assert summaries_of(both, 7) == [Summary("one", 2, 4), Summary("two", 6, 7)]
    assert summaries_of(both, 5) == [Summary("one", 2, 4)]
    assert summaries_of(both, 1) == []
