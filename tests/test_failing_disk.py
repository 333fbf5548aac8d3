"""A model larger than its memory whose disk fails in the middle of a reply: told, and gone on."""

import dataclasses
import os
from pathlib import Path

import pytest

from erniechat.chat.conversation import Message
from erniechat.engine import Engine
from erniechat.errors import CheckpointError
from erniechat.events import StreamEvent, TextDelta, ThinkingDelta
from erniechat.loader import load_engine
from erniechat.options import LoadOptions, SamplingOptions
from erniechat.placing import memory_plan
from erniechat.planning import make_plan
from erniechat.resolve import locate
from quant.memory import ProcessMemory
from tests.engines import joined

GREEDY = SamplingOptions(temperature=0)
FIRST = [Message("user", "What is 17 + 25?")]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """The built-in model with 124 of its 224 experts in RAM."""
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr("erniechat.fit.process_memory", lambda: ProcessMemory(64 << 20, 64 << 20))
    options = LoadOptions(quant="nf4", ctx=512)
    plan = memory_plan(make_plan(locate(options), options), options)
    asked = plan.nbytes("RAM") - 100 * plan.sizes.expert_nbytes
    return load_engine(dataclasses.replace(options, cpu_memory=f"{asked}B"))


@pytest.mark.parametrize(("num_reads", "speaks"), [(0, False), (40, False), (600, True)])
def test_the_conversation_goes_on_after_a_failing_disk(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, num_reads: int, speaks: bool
) -> None:
    preadv, left, said = os.preadv, [num_reads], list[StreamEvent]()

    def failing(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        return preadv(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        with pytest.raises(CheckpointError, match=r"weights.bin: Input/output error; check the"):
            said.extend(engine.stream_reply(FIRST, GREEDY))
    assert bool(joined(said, ThinkingDelta)) == speaks
    assert bool(engine._kv_cache.token_ids) == speaks
    events = list(engine.stream_reply(FIRST, GREEDY))
    assert joined(events, TextDelta) == "17 + 25 = 42"
    more = [*FIRST, Message("assistant", "17 + 25 = 42"), Message("user", "And 8 + 9?")]
    assert "17" in joined(list(engine.stream_reply(more, GREEDY)), TextDelta)
