"""What drawing an answer costs: finished blocks once, against redrawing the whole with rich.Live.

    python -m tests.bench.render_cost [--every 1]

Draws one document of about 1,100 tokens and one block of code of 300 lines, a frame after every so
many tokens, both ways, into a stream that throws everything away, and prints CPU seconds and bytes.
"""

import argparse
import time
from dataclasses import dataclass
from io import StringIO

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from erniechat.ui.answer_view import MarkdownAnswer
from erniechat.ui.live import LiveArea
from erniechat.ui.markdown.render import Look

WIDTH, HEIGHT = 100, 30
COST_LIMIT = 0.1
TOKEN = 4  # characters

SECTION = """## Part {number}

Some **bold** words, a `name`, and a sentence that goes on for long enough to be wrapped once.

- first item of *this* list
- second item, with a [link](https://example.com/{number})
  - and a nested one

```python
def part_{number}(x: int) -> int:
    return x + {number}  # as said above
```

| name | value |
|:-----|------:|
| a    | {number} |
| b    | 22 |

"""


class Sink(StringIO):
    """Counts the characters that a terminal would get."""

    num_sent = 0

    def write(self, text: str) -> int:
        self.num_sent += len(text)
        return len(text)


class EagerArea(LiveArea):
    """Draws every frame that it is asked for."""

    @property
    def is_due(self) -> bool:
        return True


@dataclass(frozen=True)
class Cost:
    """CPU seconds and characters of both ways."""

    ours: float
    rich_live: float
    ours_sent: int
    rich_live_sent: int


def answer(num_sections: int) -> str:
    """A document of all that answers are made of."""
    return "# Title\n\n" + "".join(SECTION.format(number=number) for number in range(num_sections))


def code(num_lines: int) -> str:
    """One long block of code."""
    lines = "".join(f"    x_{number} = f({number}, 'text')  # why\n" for number in range(num_lines))
    return f"```python\ndef f():\n{lines}```\n"


def _pieces(text: str, every: int) -> list[str]:
    size = TOKEN * every
    return [text[start : start + size] for start in range(0, len(text), size)]


def draw_ours(text: str, every: int) -> tuple[float, int]:
    """CPU seconds and characters of this program's way."""
    sink = Sink()
    began = time.process_time()
    area = EagerArea(sink, True, True, lambda: (WIDTH, HEIGHT))
    view = MarkdownAnswer(area, Look(), lambda: 0.0)  # never rests: a frame for each piece
    for piece in _pieces(text, every):
        view.feed(piece)
        view.draw()
    view.close()
    return time.process_time() - began, sink.num_sent


def draw_rich_live(text: str, every: int) -> tuple[float, int]:
    """CPU seconds and characters of redrawing the whole answer."""
    sink = Sink()
    console = Console(file=sink, force_terminal=True, width=WIDTH, height=HEIGHT)
    began = time.process_time()
    whole = ""
    with Live(console=console, auto_refresh=False) as live:
        for piece in _pieces(text, every):
            whole += piece
            live.update(Markdown(whole), refresh=True)
    return time.process_time() - began, sink.num_sent


def measure(num_paragraphs: int, every: int, num_code_lines: int = 0) -> Cost:
    """Both ways over the same text with the same frames, after a warm-up of both."""
    text = code(num_code_lines) if num_code_lines else answer(num_paragraphs)
    for warm_up in (draw_ours, draw_rich_live):
        warm_up(answer(1), 64)
    ours, ours_sent = draw_ours(text, every)
    live, live_sent = draw_rich_live(text, every)
    return Cost(ours, live, ours_sent, live_sent)


def main() -> None:
    """Print a line for each document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]  # there is one
    parser.add_argument("--every", type=int, default=1, help="tokens between frames")
    every = parser.parse_args().every
    for name, cost in (
        ("document", measure(12, every)),
        ("code", measure(0, max(every, 4), num_code_lines=300)),
    ):
        print(  # noqa: T201  # its output
            f"{name:9} ours {cost.ours:6.2f} s {cost.ours_sent:>10,} chars"
            f" · rich.Live {cost.rich_live:6.2f} s {cost.rich_live_sent:>10,} chars"
            f" · {cost.rich_live / cost.ours:.1f} times"
        )


if __name__ == "__main__":
    main()
