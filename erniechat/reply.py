"""A reply's tokens made events: text, thoughts and calls as they come, counted and timed."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from erniechat.chat.reply_parser import ReplyParser
from erniechat.chat.tags import Section
from erniechat.chat.tokenizer import StreamDecoder
from erniechat.context import growth_events
from erniechat.errors import CheckpointError, MemoryLimitError
from erniechat.events import StreamEvent, TextDelta, ThinkingDelta, ToolCall
from erniechat.generation.guide import Guide
from erniechat.model.kv_cache import KVCache
from erniechat.turn import Turn
from quant.errors import QuantError
from quant.memory import lacks_memory


def reply_events(
    token_ids: Iterator[int],
    decoder: StreamDecoder,
    parser: ReplyParser | None,
    turn: Turn,
    guides: Sequence[Guide],
    stop_ids: frozenset[int],
    kv_cache: KVCache,
    is_cancelled: Callable[[], bool],
) -> Iterator[StreamEvent]:
    """Decode and parse tokens as they come, and count and time them by section.

    Args:
        token_ids: As they are chosen.
        decoder: Makes text of them.
        parser: Takes it apart; None passes all on.
        turn: Gets the counts, the times and why the reply ended.
        guides: That the tokens were chosen under.
        stop_ids: Tokens that end a reply.
        kv_cache: Grows as they come.
        is_cancelled: Whether the reply was broken off.
    """
    clock = time.perf_counter()
    for token_id in token_ids:
        yield from turn.tell_budget(guides)
        yield from growth_events(kv_cache)
        section: Section = parser.section if parser else "answer"
        turn.tokens[section] += 1
        if token_id in stop_ids:
            turn.finish_reason = "stop"
            pieces = decoder.flush()
        else:
            pieces = decoder.feed(token_id)
        events = _parse(parser, pieces)
        now = time.perf_counter()
        turn.seconds[section] += now - clock
        clock = now
        turn.has_called |= any(isinstance(event, ToolCall) for event in events)
        if parser and section == "thinking" != parser.section:
            yield from (event for event in events if isinstance(event, ThinkingDelta))
            yield turn.thinking_end()
            events = [event for event in events if not isinstance(event, ThinkingDelta)]
        yield from events
    if is_cancelled() and turn.finish_reason != "stop":
        turn.finish_reason = "cancelled"
    yield from _parse(parser, decoder.flush())
    if parser:
        yield from parser.finish()


def _parse(parser: ReplyParser | None, pieces: Sequence[str]) -> list[StreamEvent]:
    if parser is None:
        return [TextDelta(str(piece)) for piece in pieces if piece]
    return list(parser.feed_all(pieces))


def in_words(events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
    """The same events; what fails below, where nothing knows of users, in words for them."""
    try:
        yield from events
    except QuantError as exc:
        raise CheckpointError(str(exc)) from exc
    except (MemoryError, RuntimeError) as exc:
        if not lacks_memory(exc):
            raise
        is_gpu = isinstance(exc, torch.OutOfMemoryError)
        place, flag = ("GPU", "--gpu-memory") if is_gpu else ("machine", "--cpu-memory")
        raise MemoryLimitError(
            f"the {place} has no memory left for this reply",
            f"close what else uses it, or start again with less {flag} or --ctx",
        ) from exc
