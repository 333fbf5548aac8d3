"""The engine on the built-in model: going on with a part, the thinking budget, structures."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from erniechat.chat.conversation import Message
from erniechat.chat.reply_parser import ReplyParser
from erniechat.chat.template import ChatTemplate
from erniechat.engine import Engine
from erniechat.errors import UsageError
from erniechat.events import BudgetReached, TextDelta, ThinkingDelta
from erniechat.options import SamplingOptions, Structure
from erniechat.prompts import PromptTools
from tests.engines import joined, last, mini_in_float32

GREEDY = SamplingOptions(temperature=0)
SUM = [Message("user", "What is 17 + 25?")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    yield from mini_in_float32(tmp_path_factory.mktemp("home"))


# --- going on


@pytest.mark.parametrize("max_tokens", [6, 20, 66])
def test_a_cut_reply_goes_on_as_if_it_had_not_been_cut(engine: Engine, max_tokens: int) -> None:
    whole = list(engine.stream_reply(SUM, GREEDY))
    cut = SamplingOptions(temperature=0, max_tokens=max_tokens)
    first = list(engine.stream_reply(SUM, cut))
    assert last(first).finish_reason == "length"
    thoughts, text = joined(first, ThinkingDelta), joined(first, TextDelta)
    rest = list(engine.stream_reply(SUM, GREEDY, part=Message("assistant", text, thoughts)))
    assert thoughts + joined(rest, ThinkingDelta) == joined(whole, ThinkingDelta)
    assert text + joined(rest, TextDelta) == joined(whole, TextDelta)
    assert last(rest).usage.cached > engine.count_tokens(SUM[0].content)


def test_the_part_stands_in_the_prompt_as_the_template_writes_answers(engine: Engine) -> None:
    tools = engine.prompts
    prompt = tools.prompt(SUM)
    part = Message("assistant", "17 + 25", "carry 1")
    assert tools.with_part(prompt, part).text.endswith(
        "<think>\ncarry 1\n</think>\n<response>\n17 + 25"
    )
    off = tools.prompt(SUM, think="off")
    assert tools.with_part(off, part).text.endswith("<think>\n</think>\n<response>\n17 + 25")
    thoughts_only = tools.with_part(prompt, Message("assistant", "", "carry"))
    assert thoughts_only.text.endswith("<think>\ncarry")
    assert thoughts_only.starts_in == "thinking"


def test_a_continued_answer_keeps_the_blank_that_it_goes_on_with() -> None:
    assert ReplyParser("answer", is_continued=True).feed(" more") == [TextDelta(" more")]
    assert ReplyParser("answer").feed(" more") == [TextDelta("more")]


# --- the budget


@pytest.mark.parametrize("budget", [0, 5])
def test_the_budget_closes_the_thinking_and_an_answer_follows(engine: Engine, budget: int) -> None:
    sampling = SamplingOptions(temperature=0, think_budget=budget)
    events = list(engine.stream_reply(SUM, sampling))
    (reached,) = [event for event in events if isinstance(event, BudgetReached)]
    assert reached.num_tokens == budget
    # the section's own tokens, then a newline and </think>
    assert last(events).usage.thinking == budget + 2
    assert joined(events, TextDelta).startswith("17 + 25")
    assert last(events).finish_reason == "stop"


def test_thinking_within_its_budget_is_left_alone(engine: Engine) -> None:
    events = list(engine.stream_reply(SUM, SamplingOptions(temperature=0, think_budget=500)))
    assert not any(isinstance(event, BudgetReached) for event in events)
    assert joined(events, TextDelta) == "17 + 25 = 42"


def test_the_closing_tokens_are_those_of_the_middle_of_a_text() -> None:
    class Tokenizer:  # adds a blank at the start, as that of 21B-A3B-Thinking does
        tag_ids: ClassVar[dict[int, str]] = {}

        def encode(self, text: str) -> list[int]:
            return [0, *map(ord, text)]

    source = (Path(__file__).parent / "chat/fixtures/thinking.jinja").read_text()
    tools = PromptTools(Tokenizer(), ChatTemplate(source), "m")  # type: ignore[arg-type]  # as one
    (budget,) = tools.budget(3, tools.parser("thinking"))
    assert budget._closing_ids == [*map(ord, "\n</think>")]


# --- structures

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "sum": {"enum": [7, 42]}},
    "required": ["city", "sum"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("think", ["auto", "off"])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_json_of_a_schema_comes_whatever_is_asked(
    engine: Engine, think: str, temperature: float
) -> None:
    structure = Structure("json_schema", json.dumps(CITY))
    sampling = SamplingOptions(temperature=temperature, seed=3, think_budget=60)
    events = list(engine.stream_reply(SUM, sampling, think=think, structure=structure))  # type: ignore[arg-type]  # one of the modes
    found = json.loads(joined(events, TextDelta))
    assert set(found) == {"city", "sum"}
    assert isinstance(found["sum"], int)
    assert bool(joined(events, ThinkingDelta)) == (think == "auto")
    assert (last(events).finish_reason, last(events).is_complete) == ("stop", True)


def test_a_regular_expression_holds_and_the_model_still_chooses(engine: Engine) -> None:
    events = list(engine.stream_reply(SUM, GREEDY, structure=Structure("regex", "[0-9]{2,40}")))
    text = joined(events, TextDelta).strip()
    assert re.fullmatch("[0-9]{2,40}", text)
    assert last(events).is_complete
    grammar = Structure("grammar", 'start: "yes" | "no" | "17 + 25 = " /[0-9]+/')
    events = list(engine.stream_reply(SUM, GREEDY, structure=grammar))
    assert joined(events, TextDelta).strip() == "17 + 25 = 42"


def test_a_structure_that_is_cut_is_not_complete(engine: Engine) -> None:
    structure = Structure("json_schema", json.dumps(CITY))
    cut = SamplingOptions(temperature=0, max_tokens=6)
    end = last(list(engine.stream_reply(SUM, cut, think="off", structure=structure)))
    assert (end.finish_reason, end.is_complete) == ("length", False)


def test_raw_text_obeys_too(engine: Engine) -> None:
    structure = Structure("regex", "a{3}")
    events = list(engine.stream_completion("x", GREEDY, structure=structure))
    assert joined(events, TextDelta) == "aaa"


@pytest.mark.parametrize(
    "structure",
    [
        Structure("json_schema", '{"type": "foo"}'),
        Structure("regex", "("),
        Structure("grammar", "start: nothing"),
    ],
)
def test_a_structure_that_makes_no_sense_is_refused(engine: Engine, structure: Structure) -> None:
    with pytest.raises(UsageError, match=f"^{structure.flag} cannot be used: "):
        list(engine.stream_reply(SUM, GREEDY, structure=structure))


def test_without_the_library_the_error_says_how_to_get_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"pip install 'erniechat\[structured\]'"):
        list(engine.stream_reply(SUM, GREEDY, structure=Structure("regex", "a")))
