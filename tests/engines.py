"""Engines for tests: the built-in model, loaded in a format, and what its replies hold."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from erniechat.engine import Engine
from erniechat.events import StreamEvent, TextDelta, ThinkingDelta, TurnEnd
from erniechat.loader import load_engine
from erniechat.options import LoadOptions


def load_mini(quant: str = "bf16", dtype: str = "bfloat16", **options: object) -> Engine:
    """The built-in model; where its copy is kept is the caller's business."""
    return load_engine(LoadOptions(quant=quant, dtype=dtype, **options))  # type: ignore[arg-type]


def mini_in_float32(home: Path) -> Iterator[Engine]:
    """For a fixture: the built-in model, exact, with copy and profile in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(variable, str(home / variable))
        yield load_mini("bf16", dtype="float32")


def joined(events: list[StreamEvent], kind: type[TextDelta] | type[ThinkingDelta]) -> str:
    """The text of all events of a kind."""
    return "".join(event.text for event in events if isinstance(event, kind))


def last(events: list[StreamEvent]) -> TurnEnd:
    """The end of a reply, which must be its last event."""
    end = events[-1]
    assert isinstance(end, TurnEnd)
    return end
