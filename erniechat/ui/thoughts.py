"""The model's thinking on the screen: the line while it lasts, and the text afterwards."""

from collections.abc import Sequence

from erniechat.ui.markdown.layout import wrap
from erniechat.ui.reply import ReplyRecord
from erniechat.ui.screen import Screen
from erniechat.ui.terminal import is_utf8
from erniechat.ui.text import count, display_width, seconds, visible

NUM_UNFOLDED = 6
HINT_COLUMN = 40  # the hints do not move while the numbers before them grow
RECENT = 4000  # characters that are sure to fill the unfolded lines


def wrapped(text: str, width: int) -> list[str]:
    """Plain text in lines of at most width columns."""
    lines = [wrap([(line, "")] if line else [], width) for line in visible(text).split("\n")]
    return ["".join(run for run, _ in line) for group in lines for line in group]


def with_hints(text: str, hints: Sequence[str], width: int) -> str:
    """A status and, to its right, the keys that act; of these the first are dropped first."""
    for start in range(len(hints)):
        right = " · ".join(hints[start:])
        room = width - display_width(right)
        if display_width(text) + 2 <= room:
            return text.ljust(min(HINT_COLUMN, room)) + ("    " if room >= 44 else "") + right
    return text


def unfolded(thoughts: str, width: int) -> list[str]:
    """The last lines of the thoughts so far."""
    lines = wrapped(thoughts[-RECENT:].strip(), max(width - 4, 8))
    return [f"  │ {line}" for line in lines[-NUM_UNFOLDED:]]


def show_thoughts(screen: Screen, record: ReplyRecord, num_tokens: int) -> None:
    """Print the thoughts of a reply, in a frame where there can be one."""
    spent = f" · {seconds(record.end.seconds.think)}" if record.end else ""
    title = f"thoughts of the last answer · {count(num_tokens)} tok{spent}"
    text = record.thoughts.strip()
    if not screen.moves_cursor or not is_utf8(screen.console.file):
        screen.note(title)
        screen.block(text, style="dim")
        return
    inside = [f"│ {line}".rstrip() for line in wrapped(text, max(screen.width - 3, 8))]
    end = "└ not sent back to the model in later turns"
    screen.block("\n".join([f"┌ {title}", *inside, end]), style="dim")
