"""/stats and the toolbar: tokens, times, context and memory of a session."""

from rich.table import Table
from rich.text import Text

from erniechat.backend import ExpertUse, ModelInfo
from erniechat.events import TurnEnd
from erniechat.ui.attachments import files_price
from erniechat.ui.reply import Totals
from erniechat.ui.screen import columns_that_fit, plain_table
from erniechat.ui.session import Session
from erniechat.ui.text import count, gib, join_fitting, rate, seconds, short_count

NOTE_WIDTH = 12  # columns below which the notes beside the numbers are left out


def stats_tables(session: Session) -> list[Table]:
    """The page of /stats."""
    headers = ("", "", "tokens", "time", "tok/s", "")
    end = session.last.end if session.last else None
    rows: list[tuple[str, ...]] = []
    if end is not None:
        rows += _rows("last", Totals(1, 0, end.usage, end.seconds), _stop_text(end))
        rows.append(("",) * len(headers))
    totals = session.totals
    replies = "1 answer" if totals.num_replies == 1 else f"{totals.num_replies} answers"
    stopped = f", {totals.num_stopped} stopped" if totals.num_stopped else ""
    rows += _rows("all", totals, replies + stopped)
    whole = [headers, *((*row[:-1], row[-1][:NOTE_WIDTH]) for row in rows)]
    shown = columns_that_fit(whole, session.screen.width, least=3)
    table = plain_table(*headers[:shown], right=(2, 3, 4), whole=(0, 1))
    for row in rows:
        table.add_row(*row[: min(shown, 5)], *(Text(note, "dim") for note in row[5:shown]))
    return [table, _facts(session, end)]


def _rows(name: str, totals: Totals, last_note: str) -> list[tuple[str, ...]]:
    """Reading, thinking and writing; thinking only where there was some."""
    usage, spent = totals.usage, totals.seconds
    cached = f"{count(usage.cached)} more from cache" if usage.cached else ""
    rows = [("read", usage.prompt - usage.cached, spent.read, cached)]
    if usage.thinking:
        rows.append(("think", usage.thinking, spent.think, ""))
    rows.append(("write", usage.answer, spent.write, last_note))
    return [
        (
            "" if number else name,
            *(phase, count(tokens), seconds(elapsed), rate(tokens, elapsed), note),
        )
        for number, (phase, tokens, elapsed, note) in enumerate(rows)
    ]


def _stop_text(end: TurnEnd) -> str:
    reasons = {
        "stop": "end of turn",
        "length": "length limit",
        "tool_calls": "called a tool",
        "cancelled": "stopped by you",
    }
    return reasons[end.finish_reason]


def _facts(session: Session, end: TurnEnd | None) -> Table:
    info, memory = session.backend.info, session.backend.memory()
    used, whole = session.num_context_tokens, info.context_length
    table = plain_table()
    table.add_row()
    context = f"{count(used)} of {count(whole)} tok ({percent(used, whole)})"
    if 0 < info.planned_context < whole:
        context += f" · beyond {count(info.planned_context)} experts leave the GPU"
    table.add_row("context", context)
    held = [f"weights {gib(memory.weights_nbytes)}", f"cache {gib(memory.kv_cache_nbytes)}"]
    if memory.gpu_peak_nbytes:
        held.append(f"gpu {gib(memory.gpu_nbytes)} (peak {gib(memory.gpu_peak_nbytes)})")
    held.append(f"ram {gib(memory.host_nbytes)} (peak {gib(memory.host_peak_nbytes)})")
    table.add_row("memory", " · ".join(held))
    use = session.backend.expert_use()
    if experts := experts_text(use):
        table.add_row("experts", experts)
    if reads := reads_text(use):
        table.add_row("a token", reads)
    table.add_row("model", f"{info.model} · {info.quant} · {info.device}")
    if end is not None:
        table.add_row("seed", f"{end.seed} · /set seed {end.seed} repeats the last answer")
    return table


def context_text(info: ModelInfo) -> str:
    """How long a conversation may be: ``context 4,096``, and what is planned where it may grow."""
    if 0 < info.planned_context < info.context_length:
        return f"context {count(info.planned_context)}, grows to {count(info.context_length)}"
    return f"context {count(info.context_length)}"


def experts_text(use: ExpertUse) -> str:
    """Where routed experts were found; empty without any."""
    total = sum(use.runs.values())
    if not total:
        return ""
    found = [f"{place} {percent(runs, total)}" for place, runs in use.runs.items() if runs]
    return f"found in {' · '.join(found)}"


def reads_text(use: ExpertUse) -> str:
    """What a decoded token reads from each place, and how fast; empty before the first."""
    parts = []
    for place, read in use.reads.items():
        speed, most = read.nbytes_per_second, read.measured
        told = f"{percent(speed, most)} of {_gigabytes(most)}" if most else _gigabytes(speed)
        parts.append(f"{gib(round(read.nbytes_per_token))} from {place}, {told}/s")
    known = all(read.measured is not None for read in use.reads.values())
    hint = "" if known else " (erniechat doctor measures what there is)"
    return f"reads {' · '.join(parts)}{hint}" if parts else ""


def _gigabytes(nbytes: float) -> str:
    value = nbytes / 1e9
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.3g} GB"


def percent(used: float, whole: float) -> str:
    """A share in words: ``14 %``, ``< 1 %``."""
    share = 100 * used / max(whole, 1)
    return "< 1 %" if 0 < share < 1 else f"{share:.0f} %"


def toolbar_text(session: Session, width: int, typed: str = "") -> str:
    """The line under the prompt; fields are dropped from the right as it gets narrow.

    Args:
        session: The chat.
        width: Columns.
        typed: What is in the prompt; the files that it names are priced.
    """
    info, memory = session.backend.info, session.backend.memory()
    context = f"ctx {short_count(session.num_context_tokens)}/{short_count(info.context_length)}"
    if thoughts := session.num_dropped_thoughts:
        dropped = f" ({short_count(thoughts)} thoughts not kept)"
        context += dropped if len(context + dropped) < width else ""
    parts = [context]
    if "@" in typed and (
        tokens := files_price(typed, session.backend.count_tokens, session.file_prices)
    ):
        share = percent(tokens, info.context_length)
        parts.insert(0, f"+{count(tokens)} tok of files (ctx {share})")
    used = memory.gpu_nbytes or memory.host_nbytes
    rest = info.context_length * info.kv_nbytes_per_token - memory.kv_cache_nbytes
    rest = 0 if info.planned_context else rest  # experts make room for it
    full = f" → {gib(used + rest)} at full ctx" if rest > 0.05 * used else ""
    if memory.gpu_nbytes:
        parts.append(f"gpu {gib(memory.gpu_nbytes)}{full}")
    parts.append(f"ram {gib(memory.host_nbytes)}{'' if memory.gpu_nbytes else full}")
    parts += [info.model, info.quant]
    if session.id:
        parts.append(f"session {session.id}")
    return join_fitting(parts, width - 1)
