"""A message that does not fit into the context: nothing is sent before the user has chosen."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from erniechat.chat.conversation import Message
from erniechat.chat.summary import Compaction, as_read
from erniechat.errors import ErnieChatError
from erniechat.ui.compacting import WORTHWHILE_TOKENS, exchange_ends, plan_compaction, readable
from erniechat.ui.prompt import Prompt
from erniechat.ui.session import Session, Turn
from erniechat.ui.text import count, gib

RESERVED_TOKENS = 512  # for the answer
CONTEXT_STEP = 4096  # contexts are raised to multiples of this


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to make a message fit: what it says, and what it does to the session."""

    text: str
    act: Callable[[], None]


Summarise = Callable[[Compaction], None]  # carries one out; a stop changes nothing


def make_fit(session: Session, turn: Turn, prompt: Prompt, summarise: Summarise) -> bool:
    """Whether a turn can be sent; where it does not fit, after the user has chosen a way.

    Where none is chosen, the message goes back into the prompt.
    """
    if session.raw:
        return True
    try:
        total, before = _count(session, session.conversation, turn), session.num_context_tokens
    except ErnieChatError:  # the engine will say what is wrong
        return True
    context = session.backend.info.context_length
    reserved = reserved_tokens(session)
    if total + reserved <= context:
        return True
    session.screen.error(
        f"this does not fit. The message has {count(total - before)} tok, the conversation "
        f"{count(before)}, and {count(reserved)} are kept for the answer: "
        f"{count(total + reserved)} of {count(context)}. Nothing was sent."
    )
    choices = find_choices(session, turn, total + reserved, summarise)
    rows = [f"  {number}  {choice.text}" for number, choice in enumerate(choices, 1)]
    session.screen.block("\n".join(rows))
    chosen = prompt.choose(len(choices), "Esc edits the message")
    if chosen is None:
        session.give_back(turn)
        if session.attached:
            session.screen.note("its files come along again; /file - takes them away")
        return False
    try:
        choices[chosen - 1].act()
    except ErnieChatError:
        session.give_back(turn)
        raise
    return make_fit(session, turn, prompt, summarise)


def reserved_tokens(session: Session) -> int:
    """Tokens of the context that are kept for an answer."""
    most = session.settings.sampling.max_tokens or RESERVED_TOKENS
    return min(most, RESERVED_TOKENS, session.backend.info.context_length // 4)


def find_choices(session: Session, turn: Turn, needed: int, summarise: Summarise) -> list[Choice]:
    """The ways to make a turn fit that there are.

    Args:
        session: The chat.
        turn: What does not fit.
        needed: Tokens of prompt and answer.
        summarise: Lets the model sum exchanges up.
    """
    found = [*_raised(session, needed), *_shortened(session, turn)]
    found += _summarised(session, turn, needed, summarise)
    alone = 0
    if turn.text is not None:
        alone = _count(session, as_read(session.system, []), turn) + reserved_tokens(session)
    if session.messages and 0 < alone <= session.backend.info.context_length:
        found.append(Choice("a new conversation with this message only", session.reset))
    return found


def _count(session: Session, conversation: Sequence[Message], turn: Turn) -> int:
    """Tokens of the prompt of a turn after a conversation."""
    asked = [Message("user", turn.text)] if turn.text is not None else []
    backend, think = session.backend, session.settings.think
    num_tokens = backend.count_prompt([*conversation, *asked], tools=session.tools, think=think)
    if turn.part is not None:
        num_tokens += backend.count_tokens((turn.part.thoughts or "") + turn.part.content)
    return num_tokens


def _raised(session: Session, needed: int) -> list[Choice]:
    info = session.backend.info
    wanted = min(-(-needed // CONTEXT_STEP) * CONTEXT_STEP, info.max_context_length)
    if wanted < needed:
        return []
    more = gib((wanted - info.context_length) * info.kv_nbytes_per_token)
    cost = "experts leave the GPU for it" if info.planned_context else f"+{more} when it is full"
    text = f"raise the context to {count(wanted)} ({cost})"
    return [Choice(text, lambda: session.backend.raise_context(wanted))]


def _shortened(session: Session, turn: Turn) -> list[Choice]:
    """Leaving out the first exchanges, as few as do."""
    starts = exchange_ends(session)[:-1]
    room = session.backend.info.context_length - reserved_tokens(session)
    before = _count(session, session.conversation, turn)
    summary = replace(session.summary, num_messages=0, made_at=0) if session.summary else None

    def shortened(start: int) -> int:
        rest = as_read(session.system, session.messages[start:], summary)
        return _count(session, rest, turn)

    index = bisect.bisect_left(starts, True, key=lambda start: shortened(start) <= room)
    if index == len(starts):
        return []
    what = "the first exchange" if index == 0 else f"the first {index + 1} exchanges"
    freed = before - shortened(starts[index])

    def act() -> None:
        name = session.id
        rest = session.messages[starts[index] :]
        session.replace_conversation(rest, name, [summary] if summary else [])
        kept = f" · session {name} still has all" if name else ""
        session.screen.note(f"left out {what}, {count(freed)} tok{kept}")

    return [Choice(f"leave out {what} (−{count(freed)} tok)", act)]


def _summarised(session: Session, turn: Turn, needed: int, summarise: Summarise) -> list[Choice]:
    """A summary of all exchanges but the last, or of all where only that does."""
    ends = exchange_ends(session)
    groups = [ends[:-1], ends] if turn.text is not None else [ends[:-1]]  # the last is answered
    plans = [
        plan_compaction(session, able[-1]) for group in groups if (able := readable(session, group))
    ]
    context = session.backend.info.context_length
    for plan in plans:
        fits = needed - plan.freed + plan.most <= context
        if fits and plan.freed >= WORTHWHILE_TOKENS:
            gain = f"−{count(plan.freed)} tok, then +{count(plan.most)} at most"
            return [Choice(f"summarise {plan.what} ({gain})", partial(summarise, plan))]
    return []
