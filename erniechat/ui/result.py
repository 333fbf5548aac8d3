"""What is told of a reply once it has ended: the object of --json, the lines of --stats, notes."""

from typing import Any

from erniechat.backend import ChatBackend
from erniechat.events import TurnEnd
from erniechat.options import SamplingOptions
from erniechat.ui.reply import ReplyRecord, call_arguments, trimmed
from erniechat.ui.text import gib, rate, seconds

NO_TEMPLATE_NOTICE = "this checkpoint has no chat template; it goes on from the text as it stands"


def numbers(record: ReplyRecord, backend: ChatBackend) -> dict[str, Any]:
    """How a reply ended and what it took; tokens, seconds and bytes."""
    end = record.end or TurnEnd("cancelled")
    info, memory = backend.info, backend.memory()
    usage, spent = end.usage, end.seconds
    return {
        "finish_reason": end.finish_reason,
        "usage": {
            "prompt": usage.prompt,
            "cached": usage.cached,
            "thinking": usage.thinking,
            "answer": usage.answer,
        },
        "time": {
            "load": round(info.load_seconds, 4),
            "read": round(spent.read, 4),
            "think": round(spent.think, 4),
            "write": round(spent.write, 4),
        },
        "memory": {
            "weights": memory.weights_nbytes,
            "kv_cache": memory.kv_cache_nbytes,
            "host": memory.host_nbytes,
            "host_peak": memory.host_peak_nbytes,
            "gpu": memory.gpu_nbytes,
            "gpu_peak": memory.gpu_peak_nbytes,
        },
        "seed": end.seed,
        "model": info.model,
        "quant": info.quant,
    }


def result_object(record: ReplyRecord, backend: ChatBackend, raw: bool = False) -> dict[str, Any]:
    """The one object that --json prints."""
    return {
        "text": trimmed(record.text, keep_start=raw),
        "thinking": record.thoughts.strip(),
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call_arguments(call)}
            for call in record.calls
        ],
        **numbers(record, backend),
    }


def stats_lines(end: TurnEnd, backend: ChatBackend, sampling: SamplingOptions) -> list[str]:
    """What --stats prints after one answer."""
    usage, spent = end.usage, end.seconds
    rows = [("read", usage.prompt - usage.cached, spent.read)]
    if usage.thinking:
        rows.append(("think", usage.thinking, spent.think))
    rows.append(("write", usage.answer, spent.write))
    lines = [
        f"{name:<6} {tokens:>8,} tok  {seconds(took):>8}  {rate(tokens, took):>8} tok/s"
        for name, tokens, took in rows
    ]
    info, memory = backend.info, backend.memory()
    used = usage.prompt + usage.thinking + usage.answer
    lines.append(f"context {used:,} of {info.context_length:,} tok, {usage.cached:,} from cache")
    gpu = f" · gpu peak {gib(memory.gpu_peak_nbytes)}" if memory.gpu_peak_nbytes else ""
    lines.append(
        f"memory weights {gib(memory.weights_nbytes)} · ram {gib(memory.host_nbytes)}{gpu}"
    )
    known = sampling.over(info.defaults)
    lines.append(f"sampling temperature {known.temperature} top_p {known.top_p} seed {end.seed}")
    return lines


def end_line(end: TurnEnd) -> str:
    """A reply in one line of the log."""
    usage, spent = end.usage, end.seconds
    return (
        f"reply {end.finish_reason}: read {usage.prompt} ({usage.cached} cached) in "
        f"{spent.read:.3f} s, thought {usage.thinking} in {spent.think:.3f} s, wrote "
        f"{usage.answer} in {spent.write:.3f} s, seed {end.seed}"
    )


EMPTY_NOTE = "the model ended its reply without an answer"


def is_empty(record: ReplyRecord) -> bool:
    """Whether a reply ended by itself and said nothing."""
    return record.end is not None and record.end.finish_reason == "stop" and not record.has_answer


def reached_limit(end: TurnEnd, sampling: SamplingOptions) -> bool:
    """Whether --max-tokens ended a reply, and not the context."""
    used = end.usage.thinking + end.usage.answer
    return sampling.max_tokens is not None and used >= sampling.max_tokens


def length_note(record: ReplyRecord, sampling: SamplingOptions, context_length: int) -> str:
    """Why a reply ended before the model was done, and the way out."""
    is_limit = record.end is not None and reached_limit(record.end, sampling)
    limit = f"--max-tokens {sampling.max_tokens}"
    full = f"the context of {context_length:,} tokens is full"
    if record.thoughts and not record.has_answer:
        why = f"at {limit}" if is_limit else f"since {full}"
        rule = "raise it" if is_limit else "raise --ctx"
        return f"stopped {why}, still thinking: no answer began; {rule} or set --think-budget"
    return f"stopped at {limit}; raise it for the rest" if is_limit else f"stopped: {full}"
