"""Replies of the built-in model over a cache that grows into the experts' memory, played on a CPU.

The places of experts are those of a GPU: one block, addresses, and RAM for those that leave.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from erniechat.chat.conversation import Message
from erniechat.chat.sessions import kept_folder
from erniechat.engine import Engine
from erniechat.errors import ContextLengthError, MemoryLimitError
from erniechat.events import ContextGrown, StreamEvent, TextDelta
from erniechat.fit import Machine
from erniechat.loader import load_engine
from erniechat.mini import checkpoint_folder
from erniechat.model import assembly
from erniechat.model.expert_assembly import ExpertPlaces
from erniechat.model.kept_cache import KeptCaches
from erniechat.options import LoadOptions, SamplingOptions
from erniechat.placing import memory_plan
from erniechat.planning import make_plan
from erniechat.resolve import ModelFiles
from erniechat.start_notice import _memory_lines
from erniechat.weights import finished_weights
from quant.experts import host_pool
from quant.experts.placement import ExpertKey
from quant.kernels.reference import ReferenceBackend
from quant.kernels.triton.backend import TritonBackend
from quant.memory import DeviceMemory
from tests.engines import joined, last
from tests.quant.addressed import AddressBackend, needs_native

pytestmark = needs_native
PLANNED, LONGEST = 44, 700  # the question is shorter than the first, its answer ends beyond it
PLENTY = 1 << 30
REFERENCE = ReferenceBackend()
GREEDY = SamplingOptions(temperature=0, max_tokens=16)
QUESTION = [Message("user", "What is 17 + 25?")]
LONG = [*QUESTION, Message("assistant", "17 + 25 = 42"), Message("user", "one two " * 50)]


class Sharing:
    """The built-in model with its experts in a pool behind which the cache grows."""

    def __init__(self, whole: Engine, options: LoadOptions) -> None:
        self._whole, self._options = whole, options
        self.plan = make_plan(ModelFiles(checkpoint_folder()), options)
        self.warned: list[str] = []

    def engine(self, planned: int = PLANNED, ram: int = PLENTY, **changed: object) -> Engine:
        plan, options = self.plan, self._options
        backend = AddressBackend()
        formats = dataclasses.replace(
            plan.formats, linear_backend=backend, embedding_backend=backend
        )
        layers = plan.config.moe_layers
        places = ExpertPlaces(
            ram=[ExpertKey(i, j) for i in layers for j in (0, 3)],
            cpu_share=0.5,
            prompt_cpu_share=0.5,
            cache_tokens=planned,
            ram_nbytes=ram,
            ram_free=lambda: PLENTY,
        )
        weights = finished_weights(plan, options, None, self.warned.append)
        decoder = assembly._assemble_pooled(
            plan.config, weights, formats, torch.device("cpu"), torch.float32, places, None
        )
        info = dataclasses.replace(
            self._whole.info, context_length=LONGEST, planned_context=planned
        )
        return Engine(
            info,
            decoder,
            self._whole.prompts,
            stop_ids=self._whole._stop_ids,
            weights_nbytes=weights.nbytes,
            **changed,
        )


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(variable, str(home / variable))
        options = LoadOptions(quant="nf4", dtype="float32", kernels="reference", ctx=LONGEST)
        yield Sharing(load_engine(options), options)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erniechat.model.lent_memory.LEAST_STEP", 16)


def answer(engine: Engine, messages=QUESTION, sampling=GREEDY, **asked: str) -> list[StreamEvent]:
    return list(engine.stream_reply(messages, sampling, think="off", **asked))


def grown(events) -> list[ContextGrown]:
    return [event for event in events if isinstance(event, ContextGrown)]


def test_a_reply_that_grows_is_the_reply_of_a_cache_that_had_the_room(sharing: Sharing) -> None:
    small, large = sharing.engine(), sharing.engine(planned=LONGEST)
    replies = []
    for engine in (small, large):
        store, before = engine.decoder.experts, len(engine.decoder.experts.resident)
        events = answer(engine)
        replies.append((joined(events, TextDelta), last(events).finish_reason))
        left = sum(event.num_experts for event in grown(events))
        assert before - len(store.resident) == left
        assert (left > 0) == (engine is small)
        store.close()
    assert replies[0] == replies[1] == ("17 + 25 = 42", "stop")


def test_growing_is_said_when_it_happens_and_once(sharing: Sharing) -> None:
    engine = sharing.engine()
    events = answer(engine)
    (event,) = grown(events)
    assert event.num_tokens == engine._kv_cache.storage[1]
    assert event.num_experts > 0
    # The prompt fits into what was planned; some thinking too.
    assert last(events).usage.prompt < PLANNED
    assert isinstance(events[events.index(event) - 1], type(events[events.index(event) + 1]))
    assert grown(answer(engine)) == []
    assert engine.info.context_length == LONGEST
    memory = engine.memory()
    assert memory.kv_cache_nbytes == event.num_tokens * engine._kv_cache.nbytes_per_token


def test_a_prompt_makes_its_room_before_it_is_read(sharing: Sharing) -> None:
    engine = sharing.engine()
    events = answer(engine, LONG)
    assert isinstance(events[0], ContextGrown)
    assert len(grown(events)) == 1
    again = sharing.engine(planned=LONGEST)
    assert joined(events, TextDelta) == joined(answer(again, LONG), TextDelta)


def test_a_shorter_conversation_gives_the_experts_their_place_back(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sharing.engine()
    store = engine.decoder.experts
    before = len(store.resident)
    answer(engine, LONG)
    many = before - len(store.resident)
    events = answer(engine)
    assert joined(events, TextDelta) == "17 + 25 = 42"
    assert before - len(store.resident) < many
    assert grown(answer(engine, LONG)) != []
    assert len(store.resident) == before - many


def test_where_ram_ends_the_reply_ends_as_a_full_context_does(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erniechat.model.lent_memory.LEAST_STEP", 1)
    engine = sharing.engine(ram=2 * sharing.engine().decoder.experts.pool.slot_nbytes)
    events = list(engine.stream_completion("one two three " * 8, SamplingOptions(temperature=0)))
    end = last(events)
    assert end.finish_reason == "length"
    most = engine._kv_cache.storage[1]
    assert engine.info.context_length == most == engine._kv_cache.max_tokens
    assert end.usage.prompt + end.usage.answer + end.usage.thinking == most + 1
    with pytest.raises(ContextLengthError, match=f"the context holds {most}"):
        answer(engine, LONG)
    with pytest.raises(MemoryLimitError, match="start again with more --cpu-memory"):
        engine.raise_context(LONGEST)


def test_a_prompt_that_memory_cannot_hold_is_refused_and_the_conversation_stays(
    sharing: Sharing,
) -> None:
    engine = sharing.engine(ram=0)
    answer(engine, [Message("user", "Hi")], dataclasses.replace(GREEDY, max_tokens=2))
    held = list(engine._kv_cache.token_ids)
    with pytest.raises(ContextLengthError, match=r"the prompt has \d+ tokens, the memory holds 44"):
        answer(engine, LONG)
    assert engine._kv_cache.token_ids == held
    assert engine.info.context_length == PLANNED


def test_memory_that_cannot_be_pinned_ends_the_reply_and_nothing_else(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sharing.engine()

    def refuse(memory: torch.Tensor, device: torch.device) -> None:
        raise host_pool.QuantError("cannot be pinned")

    with monkeypatch.context() as patch:
        patch.setattr(host_pool, "_pin", refuse)
        end = last(answer(engine))
    assert end.finish_reason == "length"
    assert engine.info.context_length == PLANNED
    engine.raise_context(LONGEST)  # it may be tried again
    events = answer(engine)
    assert joined(events, TextDelta) == "17 + 25 = 42"
    assert len(grown(events)) == 1


def test_a_saved_conversation_comes_back_into_a_cache_that_grows(sharing: Sharing) -> None:
    def kept() -> KeptCaches:
        return KeptCaches(kept_folder(), "growing", PLENTY, sharing.warned.append)

    first = sharing.engine(kept_caches=kept())
    expected = joined(answer(first, LONG, session="s"), TextDelta)
    first._session.seconds_per_token = 1.0  # worth keeping
    first.close()
    second = sharing.engine(kept_caches=kept())
    events = answer(second, LONG, session="s")
    assert joined(events, TextDelta) == expected
    assert len(grown(events)) == 1
    assert last(events).usage.cached == last(events).usage.prompt - 1


def test_only_a_context_that_nobody_asked_for_is_planned_to_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("erniechat.fit.PLANNED_CONTEXT", 512)
    options = LoadOptions(quant="nf4", kernels="reference")
    plan = make_plan(ModelFiles(checkpoint_folder()), options)
    formats = dataclasses.replace(plan.formats, linear_backend=TritonBackend())
    plan = dataclasses.replace(plan, device=torch.device("cuda"), formats=formats)
    gib = 1 << 30
    machine = Machine(DeviceMemory(4 * gib, 8 * gib), gib, DeviceMemory(8 * gib, 8 * gib))
    whole = memory_plan(plan, options, machine=machine)
    assert not whole.grows  # all fits
    # Not even the cache of the whole context fits with 15 MB less: it takes 16.8 of them.
    asked = dataclasses.replace(options, gpu_memory=f"{whole.nbytes('GPU') - 15_000_000}B")
    found = memory_plan(plan, asked, machine=machine)
    assert found.context_length == 512 < found.longest_context < 4096
    assert _memory_lines(found)[-1].startswith("context: 512 tokens planned, grows to ")
    for other in (
        dataclasses.replace(plan, formats=dataclasses.replace(formats, linear_backend=REFERENCE)),
        plan,
    ):
        ctx = 4096 if other is plan else None
        with pytest.raises(MemoryLimitError, match="KV cache of 4,096 tokens"):
            memory_plan(other, dataclasses.replace(asked, ctx=ctx), machine=machine)
