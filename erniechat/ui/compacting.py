"""/compact: the model sums the oldest exchanges up, once the user has seen what would go."""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import replace

from erniechat.chat.conversation import Message, ThinkMode
from erniechat.chat.summary import Compaction, Summary, as_read, summary_request
from erniechat.errors import UsageError
from erniechat.events import StreamEvent
from erniechat.ui.reply import ReplyRecord
from erniechat.ui.session import Session
from erniechat.ui.text import count, exchanges

SUMMARY_TOKENS = 1024  # most of a summary, and never more than an eighth of the context
THINKING_TOKENS = 512  # most of the thinking before it, in models that always think
WORTHWHILE_TOKENS = 64  # what is shorter would gain nothing

# Draws a reply that is no part of the conversation; None if it was stopped or failed.
Aside = Callable[[Callable[[], Iterator[StreamEvent]]], ReplyRecord | None]


def exchange_ends(session: Session) -> list[int]:
    """Where each exchange ends that the model still reads, in messages from the first."""
    starts = [i for i, message in enumerate(session.messages) if message.role == "user"]
    ends = [*starts[1:], len(session.messages)] if starts else []
    return [end for end in ends if end > session.num_summarised]


def plan_compaction(session: Session, num_messages: int) -> Compaction:
    """What a summary in place of the first messages would change."""
    rest = as_read(session.system, session.messages, Summary("", num_messages, 0))
    before = session.num_context_tokens
    freed = before - session.count(rest)
    most = min(SUMMARY_TOKENS, session.backend.info.context_length // 8, freed // 2)
    told = session.messages[session.num_summarised : num_messages]
    number = sum(message.role == "user" for message in told)
    first = "the summary and the next" if session.summary else "the first"
    what = f"{first} {'exchange' if number == 1 else exchanges(number)}"
    return Compaction(what, num_messages, freed, max(most, 0), before)


def readable(session: Session, ends: list[int]) -> list[int]:
    """Those of some ends up to which the model can read within its context and sum up."""
    room = session.backend.info.context_length

    def is_too_long(end: int) -> bool:
        plan = plan_compaction(session, end)
        return session.count(_request(session, plan)) + plan.most + _thinking(session) > room

    return ends[: bisect.bisect_left(ends, True, key=is_too_long)]


def asked_compaction(session: Session, number: int | None) -> Compaction:
    """What /compact is to do.

    Args:
        session: The chat.
        number: Of exchanges; None for all but the last, as many as can be read.

    Raises:
        UsageError: If there are not so many, they cannot be read, or nothing would be gained.
    """
    ends = exchange_ends(session)
    if number is None and len(ends) < 2:
        have = "only one exchange" if ends else "nothing"
        hint = ("/compact 1 summarises it too",) if ends else ()
        raise UsageError(f"there is {have} to summarise yet", *hint)
    if number is not None and number > len(ends):
        left = " left" if session.summary else ""
        have = f"{'is' if len(ends) == 1 else 'are'} {exchanges(len(ends))}{left}"
        hint = (f"/compact {len(ends)} takes all",) if ends else ()
        raise UsageError(f"there {have} to summarise, got {number}", *hint)
    able = readable(session, ends[: number or -1])
    if not able or (number is not None and len(able) < number):
        raise UsageError(
            f"with its summary that is longer than the context of "
            f"{count(session.backend.info.context_length)}",
            f"/compact {len(able)} does" if able else "/undo or /reset makes room",
        )
    plan = plan_compaction(session, able[-1])
    if plan.freed < WORTHWHILE_TOKENS:
        raise UsageError(f"{plan.what}: so short that a summary would gain nothing")
    return plan


def show(session: Session, plan: Compaction) -> None:
    """Say what a summary would change."""
    kept = f"session {session.id} keeps" if session.id else "this chat keeps"
    session.screen.line(
        f"summarise {plan.what}: {count(plan.freed)} tok become at most {count(plan.most)}, the "
        f"conversation {count(plan.before)} → at most {count(plan.most_after)} tok"
    )
    session.screen.note(f"{kept} the originals, and /undo brings them back")


def compact(
    session: Session, plan: Compaction, aside: Aside, confirm: Callable[[str], bool]
) -> None:
    """Let the model summarise; what is stopped, fails or is cut and unwanted changes nothing."""
    sampling = replace(
        session.settings.sampling,
        max_tokens=plan.most + _thinking(session),
        think_budget=_thinking(session),
    )
    record = aside(
        lambda: session.backend.stream_reply(
            _request(session, plan),
            sampling,
            tools=session.tools,
            think=_think(session),
            session=session.id,
        )
    )
    text = record.text.strip() if record else ""
    if record is None or not text:
        session.screen.note("no summary was made; the conversation is as it was")
        return
    if record.end and record.end.finish_reason == "length":
        limit = f"the summary was cut at {count(plan.most)} tok. Use it?"
        if not confirm(limit):
            session.screen.note("not used; the conversation is as it was")
            return
    session.summarise(text, plan.num_messages)
    after = session.num_context_tokens
    session.screen.note(
        f"summarised {plan.what}: {count(plan.before)} → {count(after)} tok, which the next message"
        " re-reads · /undo brings them back"
    )


def _request(session: Session, plan: Compaction) -> list[Message]:
    told = session.messages[: plan.num_messages]
    return summary_request(as_read(session.system, told, session.summary), plan.most)


def _think(session: Session) -> ThinkMode:
    """A summary is thought about by those models only that always think."""
    return session.settings.think if session.backend.info.thinking == "always" else "off"


def _thinking(session: Session) -> int:
    """Tokens for the thinking before a summary."""
    return 0 if _think(session) == "off" else THINKING_TOKENS
