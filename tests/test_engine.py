"""The engine on the built-in model: events, counts, the KV cache between turns, stopping."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from erniechat.chat.conversation import Message
from erniechat.engine import Engine
from erniechat.errors import CheckpointError, ContextLengthError, MemoryLimitError, UsageError
from erniechat.events import (
    Progress,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    TurnEnd,
)
from erniechat.model.run_ahead import Drawing
from erniechat.options import SamplingOptions
from quant.errors import QuantError
from tests.engines import joined, last, load_mini, mini_in_float32

GREEDY = SamplingOptions(temperature=0)
SUM = [Message("user", "What is 17 + 25?")]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    yield from mini_in_float32(tmp_path_factory.mktemp("home"))


def test_a_reply_is_thinking_then_the_answer_then_the_end(engine: Engine) -> None:
    events = list(engine.stream_reply(SUM, GREEDY))
    assert joined(events, TextDelta) == "17 + 25 = 42"
    assert "carry 1" in joined(events, ThinkingDelta)
    assert last(events).finish_reason == "stop"
    order = [type(event) for event in events if not isinstance(event, Progress)]
    assert order == sorted(order, key=[ThinkingDelta, ThinkingEnd, TextDelta, TurnEnd].index)
    (thought,) = [event for event in events if isinstance(event, ThinkingEnd)]
    usage, spent = last(events).usage, last(events).seconds
    assert (thought.num_tokens, thought.seconds) == (usage.thinking, spent.think)


def test_warming_up_prepares_for_the_asked_for_draws_until_it_is_told_to_stop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(engine, "_page_calls", ())
    engine.warm_up(GREEDY, lambda: False)  # on a CPU there is nothing to prepare

    def preparations(drawing: Drawing) -> list[Callable[[], object]]:
        return [lambda: done.append(drawing), *(partial(done.append, i) for i in range(3))]

    monkeypatch.setattr(engine.decoder, "preparations", preparations)
    engine.warm_up(SamplingOptions(temperature=0.25), lambda: len(done) == 3)
    assert done[1:] == [0, 1]
    assert isinstance(done[0], Drawing)
    assert done[0].temperature == 0.25
    assert done[0].num_tokens == engine.prompts.tokenizer.num_tokens


def test_warming_up_brings_the_copy_into_memory_until_it_is_told_to_stop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(engine._page_calls) == 2  # 30 MB of bf16, mapped
    done: list[int] = []
    monkeypatch.setattr(engine, "_page_calls", [partial(done.append, i) for i in range(3)])
    engine.warm_up(GREEDY, lambda: len(done) == 2)
    assert done == [0, 1]


def test_no_tag_reaches_the_reader(engine: Engine) -> None:
    events = list(engine.stream_reply(SUM, GREEDY))
    text = joined(events, TextDelta) + joined(events, ThinkingDelta)
    assert "<" not in text


def test_usage_counts_every_token(engine: Engine) -> None:
    usage = last(list(engine.stream_reply(SUM, GREEDY))).usage
    prompt = engine.render_prompt(SUM)
    assert usage.prompt == engine.count_tokens(prompt, raw=True)
    # answer: <response>, newline, its text, newline, </response>, newline, <|im_end|>
    assert usage.answer >= engine.count_tokens("17 + 25 = 42") + 6
    assert usage.thinking > 10


def test_a_reply_that_is_cut_within_bytes_shows_what_came(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [engine.prompts.tokenizer.token_id(f"<0x{byte:02X}>") for byte in "鼊".encode()]
    for num_bytes, text in ((3, "鼊"), (2, "\ufffd\ufffd")):
        monkeypatch.setattr("erniechat.engine.decode", lambda *a, n=num_bytes: iter(ids[:n]))
        events = list(engine.stream_reply(SUM, GREEDY, think="off"))
        assert joined(events, TextDelta) == text
        assert last(events).finish_reason == "length"


def test_a_call_that_is_cut_comes_as_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = engine.prompts.tokenizer.encode('<tool_call>{"name": "get')
    monkeypatch.setattr("erniechat.engine.decode", lambda *a: iter(ids))
    events = list(engine.stream_reply(SUM, GREEDY, think="off", tools=[WEATHER]))
    assert joined(events, TextDelta) == '{"name": "get'
    assert last(events).finish_reason == "length"


def test_a_mark_of_ours_in_raw_text_is_a_replacement_character(engine: Engine) -> None:
    events = list(engine.stream_completion("a\ufdd0b", SamplingOptions(max_tokens=1)))
    assert last(events).usage.prompt == engine.count_tokens("a\ufffdb", raw=True)
    assert last(events).usage.prompt > engine.count_tokens("ab", raw=True)


def test_a_prompt_as_long_as_the_context_leaves_no_room_and_one_less_leaves_a_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "one two three four five six"
    length = engine.count_tokens(text, raw=True)
    info = engine.info
    monkeypatch.setattr(engine, "_info", dataclasses.replace(info, context_length=length))
    with pytest.raises(ContextLengthError, match=f"the prompt has {length} tokens"):
        list(engine.stream_completion(text, GREEDY))
    monkeypatch.setattr(engine, "_info", dataclasses.replace(info, context_length=length + 1))
    end = last(list(engine.stream_completion(text, SamplingOptions(max_tokens=9))))
    assert (end.usage.answer, end.finish_reason) == (1, "length")


def test_what_is_not_asked_is_as_the_checkpoint_says(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = SamplingOptions(temperature=0, max_tokens=3)
    monkeypatch.setattr(engine, "_info", dataclasses.replace(engine.info, defaults=defaults))
    assert last(list(engine.stream_reply(SUM, SamplingOptions()))).usage.thinking == 3
    asked = SamplingOptions(max_tokens=2)
    assert last(list(engine.stream_reply(SUM, asked))).usage.thinking == 2


def test_rows_that_are_no_token_are_never_sampled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if only the first tokens of the vocabulary were defined: the embedding has more rows.
    monkeypatch.setattr(engine.prompts.tokenizer, "num_tokens", 300)
    usage = last(list(engine.stream_reply(SUM, SamplingOptions(seed=1, max_tokens=20)))).usage
    written = engine._kv_cache.token_ids[usage.prompt :]
    assert len(written) >= 10
    assert max(written) < 300


def test_with_thinking_off_there_is_only_an_answer(engine: Engine) -> None:
    events = list(engine.stream_reply(SUM, GREEDY, think="off"))
    assert joined(events, ThinkingDelta) == ""
    assert joined(events, TextDelta)
    assert last(events).usage.thinking == 0


def test_the_second_turn_reuses_the_prefix_and_answers_as_if_it_had_not(engine: Engine) -> None:
    first = list(engine.stream_reply(SUM, GREEDY))
    turns = [
        *SUM,
        Message("assistant", joined(first, TextDelta), thoughts=joined(first, ThinkingDelta)),
        Message("user", "And what is 8 + 9?"),
    ]
    reused = list(engine.stream_reply(turns, GREEDY))
    assert last(reused).usage.cached > engine.count_tokens(SUM[0].content)
    list(engine.stream_completion("something else entirely", SamplingOptions(max_tokens=2)))
    fresh = list(engine.stream_reply(turns, GREEDY))
    assert last(fresh).usage.cached < 5
    assert joined(reused, TextDelta) == joined(fresh, TextDelta)
    assert joined(reused, ThinkingDelta) == joined(fresh, ThinkingDelta)


def test_past_thoughts_leave_the_prompt(engine: Engine) -> None:
    turns = [*SUM, Message("assistant", "42", thoughts="SECRET"), Message("user", "Thanks")]
    assert "SECRET" not in engine.render_prompt(turns)


def test_a_seed_repeats_a_sampled_reply(engine: Engine) -> None:
    sampling = SamplingOptions(temperature=1.5, seed=11, max_tokens=30)
    replies = [list(engine.stream_reply(SUM, sampling)) for _ in range(2)]
    assert joined(replies[0], ThinkingDelta) == joined(replies[1], ThinkingDelta)
    assert last(replies[0]).seed == 11


def test_without_a_seed_the_one_used_is_told(engine: Engine) -> None:
    sampling = SamplingOptions(temperature=1.5, max_tokens=20)
    reply = list(engine.stream_reply(SUM, sampling))
    again = SamplingOptions(temperature=1.5, max_tokens=20, seed=last(reply).seed)
    assert joined(list(engine.stream_reply(SUM, again)), ThinkingDelta) == joined(
        reply, ThinkingDelta
    )


def test_max_tokens_ends_with_length(engine: Engine) -> None:
    end = last(list(engine.stream_reply(SUM, SamplingOptions(temperature=0, max_tokens=5))))
    assert end.finish_reason == "length"
    assert end.usage.thinking + end.usage.answer == 5


def test_cancel_ends_the_reply_after_the_current_token(engine: Engine) -> None:
    events: list[StreamEvent] = []
    for event in engine.stream_reply(SUM, GREEDY):
        events.append(event)
        if isinstance(event, ThinkingDelta):
            engine.cancel()
    assert last(events).finish_reason == "cancelled"
    assert last(events).usage.thinking < 10
    assert last(list(engine.stream_reply(SUM, GREEDY))).finish_reason == "stop"


def test_a_tool_call_is_an_event_and_the_reason_to_stop(engine: Engine) -> None:
    question = [Message("user", "What is the weather in Paris?")]
    events = list(engine.stream_reply(question, GREEDY, tools=[WEATHER]))
    (call,) = [event for event in events if isinstance(event, ToolCall)]
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert last(events).finish_reason == "tool_calls"


def test_a_prompt_longer_than_the_context_is_refused(engine: Engine) -> None:
    long = [Message("user", "word " * 5000)]
    with pytest.raises(ContextLengthError, match=r"tokens, the context holds 4,096"):
        list(engine.stream_reply(long, GREEDY))


def test_raw_text_is_continued_without_a_template(engine: Engine) -> None:
    events = list(engine.stream_completion("17 + 25", SamplingOptions(temperature=0, max_tokens=8)))
    assert joined(events, TextDelta)
    assert last(events).usage.prompt == engine.count_tokens("17 + 25")


def test_an_empty_raw_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine.stream_completion("", GREEDY)


def test_memory_is_counted(engine: Engine) -> None:
    memory = engine.memory()
    # 15,167,744 parameters: bf16, and the router's 7 × (32 · 256 + 32) in float32
    assert memory.weights_nbytes == pytest.approx(2 * 15_167_744 + 2 * 7 * 8224, abs=20_000)
    assert memory.host_peak_nbytes >= memory.host_nbytes > memory.weights_nbytes


def test_closing_adds_the_routing_counts_to_the_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for expected_files in (1, 1):
        other = load_mini("int8")
        end = last(list(other.stream_reply(SUM, SamplingOptions(temperature=0, max_tokens=6))))
        computed = end.usage.prompt + end.usage.thinking + end.usage.answer - 1
        counts = other.decoder.experts.counts
        assert counts[0].sum() == 0  # layer 0 is dense
        assert counts[1:].sum(-1).tolist() == [4 * computed] * 7
        other.close()
        other.close()
        assert len(list((tmp_path / "state").rglob("*.json"))) == expected_files


def test_the_checkpoints_own_options_are_known(engine: Engine) -> None:
    assert engine.info.defaults.temperature == 0  # do_sample is false in its generation_config


def test_the_context_can_be_raised_up_to_what_the_model_was_made_for() -> None:
    engine = load_mini("int8", ctx=64, copy=False)
    long = [Message("user", "17 + 25 " * 40)]
    with pytest.raises(ContextLengthError):
        engine.stream_reply(long, GREEDY)
    longest = engine.info.max_context_length
    assert engine.info.kv_nbytes_per_token == engine._kv_cache.nbytes_per_token
    with pytest.raises(UsageError, match=f"at most {longest:,} tokens"):
        engine.raise_context(longest + 1)
    engine.raise_context(1024)
    assert engine.info.context_length == 1024
    assert last(list(engine.stream_reply(long, GREEDY, think="off"))).finish_reason == "stop"


@pytest.mark.parametrize(
    ("below", "above"),
    [
        (torch.OutOfMemoryError("x"), MemoryLimitError),
        (MemoryError(), MemoryLimitError),
        (QuantError("NaN"), CheckpointError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_what_fails_below_is_told_in_words_and_the_engine_goes_on(
    engine, monkeypatch, below, above
):
    sampling = SamplingOptions(temperature=0, max_tokens=4)

    def fail(*_: object, **__: object) -> None:
        raise below

    with monkeypatch.context() as broken:
        broken.setattr(engine.decoder, "_read", fail)
        broken.setattr(engine.decoder, "step", None)
        with pytest.raises(above):
            list(engine.stream_completion("17 + 25 =", sampling))
    assert list(engine.stream_completion("17 + 25 =", sampling))


def test_a_cache_that_the_machine_has_no_memory_for_is_told_in_words(engine, monkeypatch):
    def reserve(*_: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)  # torch's own error

    with monkeypatch.context() as full:
        full.setattr(engine._kv_cache, "reserve", reserve)
        with pytest.raises(MemoryLimitError, match="the machine has no memory left"):
            list(engine.stream_completion("17 + 25 =", GREEDY))
    assert list(engine.stream_completion("17 + 25 =", SamplingOptions(max_tokens=1)))


class Looks:
    """In an adapter's place: when it was asked, and whether the reply had been told by then."""

    def __init__(self) -> None:
        self.is_told = False
        self.between_tokens: list[int] = []
        self.at: list[tuple[int, bool]] = []

    def follow(self, num_tokens: int) -> None:
        assert not self.is_told
        self.between_tokens.append(num_tokens)

    def adapt(self, num_tokens: int) -> int:
        self.at.append((num_tokens, self.is_told))
        return 0


def test_experts_may_move_between_turns_and_beside_every_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks()
    monkeypatch.setattr(engine, "_adapter", looks)
    monkeypatch.setattr(engine, "num_tokens_seen", 0)
    for event in engine.stream_reply(SUM, SamplingOptions(temperature=0, max_tokens=80)):
        if isinstance(event, TurnEnd):
            assert looks.at == []
            looks.is_told = True
    # Without waiting between two tokens of the reply; what waits comes after its end was told.
    last = engine.num_tokens_seen
    first = looks.between_tokens[0]
    assert looks.between_tokens == list(range(first, last + 1))
    assert looks.at == [(last, True)]
