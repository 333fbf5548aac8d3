"""Run the real command line on the FakeBackend, for tests in another process or a terminal.

python -m tests.ui.drive_fake SCENARIO [arguments of erniechat]
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from erniechat import __main__, cli
from erniechat.backend import ChatBackend
from erniechat.errors import (
    CheckpointError,
    ContextLengthError,
    MemoryLimitError,
    ModelNotFoundError,
    StructureError,
    TimeLimitError,
)
from erniechat.events import ContextGrown, Progress, TextDelta, ToolCall, TurnEnd, Usage
from erniechat.options import BenchOptions, LoadOptions, SamplingOptions
from tests.fakes import INFO, FakeBackend, Pause, Script, thinking, words
from tests.ui.markdown_documents import PROGRAM

POEM = "Two roads diverged in a yellow wood, and sorry I could not travel both."
CALL = ToolCall("call-1", "get_weather", '{"city": "Paris"}')

ROADS = [f"road {number}" for number in range(40)]
STEPS = [f"step {number} of the thoughts" for number in range(50)]
MARKDOWN = """# Two roads

In the **wood**, a traveller sees `two` roads and *can not* take both; List<int> stays, and so does
the line break.

1. The first was
   - worn, and
   - wanted $x^2 \\leq 1$
2. The second

```python
def choose(roads: list[str]) -> str:
    return roads[-1]  # less travelled
```

| road | steps |
|:-----|------:|
| first | 1,204 |
| second | 7 |

That has made **all** the difference."""

SCENARIOS: dict[str, list[Script]] = {
    "plain": [words("The answer is 42.")],
    "slow": [words(POEM, 0.15), words("Then a short one.")],
    "endless": [[step for _ in range(2000) for step in words("line of text\n", 0.01)]],
    "thinks": [[*thinking("Let me think about it now", 0.1), *words(POEM)]],
    "grows": [[*words("The answer"), ContextGrown(16384, 212), *words(" is 42.")]],
    "thinks-long": [[*thinking("hmm " * 300, 0.05), *words(POEM)]],
    "evil": [words("\x1b[2Jwiped \x9bm \x07bell")],
    "stuck": [[*words("So it begins"), Pause(60, stuck=True)]],
    "calls": [[*words("Let me look."), CALL]],
    "too-long": [[ContextLengthError("the message is 5,000 tokens, the context 4,096")]],
    "breaks": [[*words("Half an"), MemoryLimitError("the GPU ran out of memory")], words("Fine.")],
    "json-cut": [[StructureError("JSON incomplete")]],
    "json-short": [
        [*words('{"a":'), TurnEnd("length", Usage(prompt=3, answer=2), is_complete=False)]
    ],
    "too-slow": [[TimeLimitError("the time limit has passed")]],
    "cut": [[*words("Half an"), TurnEnd("length", Usage(prompt=3, answer=2))]],
    "empty": [thinking("Hm.")],
    "chinese": [words("你好")],
    "bug": [[ValueError("shapes differ")]],
    "reads": [
        [
            Progress("read", 0, 1957),
            Pause(0.7),
            Progress("read", 978, 1957),
            Pause(0.7),
            *words("Read it."),
        ]
    ],
    "arrives": [
        [
            Progress("load", 3 << 30, 11 << 30),
            Pause(1.5),
            Progress("read", 0, 1957),
            Pause(0.7),
            Progress("read", 978, 1957),
            Pause(0.7),
            *words("Read it."),
        ]
    ],
    "arrives-late": [[Progress("load", 3 << 30, 11 << 30), Pause(30)], words("Here now.")],
    "arrives-never": [[Progress("load", 3 << 30, 11 << 30), CheckpointError("it is gone")]],
    "reads-and-thinks": [
        [
            Progress("read", 0, 1957),
            Pause(0.7),
            Progress("read", 1957, 1957),
            *thinking("Hm.", 0.1),
            Pause(0.1),
            *words(POEM),
        ]
    ],
    "markdown": [[*thinking("Hm."), *words(MARKDOWN, 0.002)], words("Fine.")],
    "markdown-now": [words(MARKDOWN)],
    "markdown-slow": [[*thinking("Let me think about it. " * 30, 0.03), *words(MARKDOWN, 0.05)]],
    "thinks-aloud": [[*thinking("\n".join(STEPS), 0.007), *words("Done.")]],
    "roads": [words("Some roads: " + ", ".join(ROADS), 0.03)],
    "roads-with-rests": [
        [
            step
            for index, step in enumerate(words("Some roads: " + ", ".join(ROADS), 0.03))
            for step in ([Pause(1.5), step] if index in (40, 60, 80) else [step])
        ]
    ],
    "code": [words(f"```python\n{PROGRAM}\n```\nDone.", 0.02)],
    "silent": [[Pause(30), TextDelta("late")]],
    "warms-up": [],
}


class Warming(FakeBackend):
    """Warms up for a minute unless it is told to stop, and answers with how often it did."""

    def warm_up(self, sampling: SamplingOptions, stop: Callable[[], bool]) -> None:
        super().warm_up(sampling, stop)
        end = time.monotonic() + 60
        while time.monotonic() < end and not stop():
            time.sleep(0.01)
        self.scripts = [words(f"Warmed up {len(self.warm_ups)} times.")]


def load(scenario: str) -> Callable[..., ChatBackend]:
    """A load_engine that plays a scenario."""

    def load_engine(
        options: LoadOptions,
        progress: Callable[[Progress], None],
        warn: Callable[[str], None],
    ) -> ChatBackend:
        if options.model == "missing":
            raise ModelNotFoundError('no model "missing" on the hub', "check the name")
        for percent in range(0, 101, 10):
            progress(Progress("load", percent << 20, 100 << 20))
            time.sleep(float(os.environ.get("FAKE_LOAD_SECONDS", "0")) / 10)
        quant = "nf4" if options.quant == "auto" else options.quant
        template = os.environ.get("FAKE_TEMPLATE", "1") == "1"
        info = dataclasses.replace(
            INFO, model=options.model, quant=quant, has_chat_template=template
        )
        kind = Warming if scenario == "warms-up" else FakeBackend
        return kind(SCENARIOS[scenario], info)

    return load_engine


def run_bench(
    options: LoadOptions, bench: BenchOptions, report: Callable[[str], None]
) -> dict[str, Any]:
    """A bench that measures nothing."""
    report(f"run 1 of {bench.runs}")
    names = ("prompt_tokens", "new_tokens", "runs")
    return {name: getattr(bench, name) for name in names} | {"quant": options.quant}


def format_bench(result: dict[str, Any]) -> str:
    """Its table."""
    return "{prompt_tokens} read, {new_tokens} written, {runs} runs, {quant}".format(**result)


if __name__ == "__main__":
    scenario = sys.argv.pop(1)
    main = cli.main
    backend = FakeBackend()
    services = cli.Services(
        load_engine=load(scenario),
        load_prompt_tools=lambda options: backend,
        run_bench=run_bench,
        format_bench=format_bench,
    )
    cli.main = lambda: main(services=services)
    __main__.main()
