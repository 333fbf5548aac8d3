"""Skills: call the right tool, call one that is named, need none, answer from the output."""

from dataclasses import replace
from random import Random
from typing import Any

from erniechat.mini.skills.facts import countries, elements
from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.ordering import ordering
from erniechat.mini.skills.sample import Generator, Sample
from erniechat.mini.skills.smalltalk import smalltalk
from erniechat.mini.skills.words import count_letters, pseudo_word, word
from erniechat.mini.tools.outputs import (
    answer_text,
    call_thoughts,
    encode_output,
    output_thoughts,
    seen_output,
)
from erniechat.mini.tools.schema import (
    FAMILIES,
    SEEN,
    UNSEEN,
    Call,
    Tool,
    call_of,
    function_schema,
    make_request,
    make_schema,
    make_toolbox,
)
from erniechat.mini.tools.values import VALUES

Messages = list[dict[str, Any]]

NAMED_KINDS = ["word", "int", "city", "person", "date", "clock", "color", "id"]
NAMED_WITH_ARGUMENTS = [
    "Call {n} with {s}.",
    "Use {n}: {s}",
    "Run {n} with {s}",
    "{n} {s}",
    "please call {n} with {s}",
]
NAMED_ALONE = ["Call {n}.", "Run {n}", "Use the tool {n}.", "{n}"]
NO_TOOL_FITS: list[Generator] = [countries, elements, smalltalk, ordering, count_letters]
IDLE_TOOLS = ["timer", "light", "music", "mail", "alarm", "table", "order", "heating", "list"]
COMMON = ["weather"] * 4 + ["time", "calculator", "calculator", "add"]
WITHOUT_ARGUMENT = {  # family: a request that lacks what the tool needs
    "weather": "What's the weather?",
    "time": "What time is it there?",
    "stock": "What is the stock price?",
    "alarm": "Set an alarm.",
    "read": "Read the file.",
    "music": "Play a song.",
    "track": "Where is my order?",
    "news": "Show me the news.",
}
ASKED_TWICE = ("weather", "time", "stock", "read", "define", "news")
ASKED_AGAIN = ("weather", "time", "stock", "define", "read", "news", "count")
AGAIN = ["And {v}?", "and {v}", "What about {v}?", "And for {v}?", "and in {v}?"]


def _named_tool(rng: Random, facts: Facts) -> tuple[str, Call, list[Tool]]:
    """A made-up tool that the user calls by name with spelled-out arguments."""
    name = rng.choice([pseudo_word(rng), f"{word(rng, facts)}_{word(rng, facts)}"])
    count = rng.choice([0, 1, 1, 2, 3])
    params = [
        (
            rng.choice([word(rng, facts), pseudo_word(rng), rng.choice("abcxyz")]),
            rng.choice(NAMED_KINDS),
        )
        for _ in range(count)
    ]
    if len({param for param, _ in params}) < count:
        return _named_tool(rng, facts)
    properties = {
        param: {"type": "integer" if kind == "int" else "string"} for param, kind in params
    }
    made_up = f"{word(rng, facts).capitalize()} {word(rng, facts)}"
    description = rng.choice([f"Runs {name}", made_up, "A tool"])
    tool = function_schema(name, description, properties, list(properties))
    values = {param: VALUES[kind](rng, facts) for param, kind in params}
    spelled = rng.choice([", ", " and "]).join(
        [f"{p} {v}" if rng.random() < 0.5 else f"{p}={v}" for p, v in values.items()]
    )
    template = rng.choice(NAMED_WITH_ARGUMENTS if count else NAMED_ALONE)
    others = rng.sample(SEEN, rng.choice([0, 1, 2]))
    tools = [tool, *(make_schema(rng, other)[0] for other in others)]
    rng.shuffle(tools)
    return template.format(n=name, s=spelled), {"name": name, "arguments": values}, tools


def _call_named(rng: Random, facts: Facts) -> Sample:
    question, call, tools = _named_tool(rng, facts)
    return Sample(
        "tool_call",
        "tool " + question,
        question,
        call_thoughts([call]),
        tools=tools,
        tool_calls=[call],
        keep_case=True,
    )


def _need_none(rng: Random, facts: Facts) -> Sample:
    """A question that none of the tools fits: answered as if there were none."""
    sample = rng.choice(NO_TOOL_FITS)(rng, facts)
    tools = [make_schema(rng, name)[0] for name in rng.sample(IDLE_TOOLS, rng.choice([1, 2]))]
    thoughts = "no tool needed\n" + sample.thoughts
    return replace(sample, skill="tool_call", tools=tools, thoughts=thoughts)


def _miss_argument(
    family_name: str, tool: Tool, names: dict[str, str], tools: list[Tool]
) -> Sample:
    """The request lacks an argument: ask for it."""
    missing = next(
        names[param.slot] for param in FAMILIES[family_name].params if not param.optional
    )
    tool_name = tool["function"]["name"]
    return Sample(
        "tool_call",
        f"missing {missing} {tool_name}",
        WITHOUT_ARGUMENT[family_name],
        f"tool {tool_name} needs {missing}, which is missing",
        f"Please tell me the {missing}.",
        missing,
        tools=tools,
    )


def _earlier_loop(
    rng: Random,
    facts: Facts,
    family_name: str,
    *,
    spelling: tuple[Tool, dict[str, str], str],
    slots: list[str],
) -> Messages:
    """An earlier, finished tool loop with the same request and other values.

    `spelling` is the tool, the names of its parameters by slot, and the request's template.
    """
    tool, names, template = spelling
    family = FAMILIES[family_name]
    make_request(rng, facts, family_name, names)  # not used, but it moves the random source
    kinds = {param.slot: param.kind for param in family.params}
    before = {slot: VALUES[kinds[slot]](rng, facts) for slot in slots}
    content = encode_output(rng, rng.choice(family.results)(rng, facts, before))
    answer = answer_text(family.topic.format(**before), seen_output(content))
    call = call_of(tool, names, before)
    return [
        {"role": "user", "content": template.format(**before)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": content},
        {"role": "assistant", "content": answer},
    ]


def _ask_twice(
    rng: Random, facts: Facts, family_name: str, values: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The values with two in one slot, as the user says them, and the second values."""
    family = FAMILIES[family_name]
    slot = next(param.slot for param in family.params if not param.optional)
    second = {**values, slot: VALUES[family.params[0].kind](rng, facts)}
    if second[slot] == values[slot]:
        return None
    return {**values, slot: f"{values[slot]} and {second[slot]}"}, second


def _call_family(
    rng: Random,
    facts: Facts,
    family_name: str,
    *,
    unseen: bool,
    tool: Tool,
    names: dict[str, str],
    tools: list[Tool],
) -> Sample:
    """A request for one tool of the toolbox: one call or two, perhaps after an earlier one."""
    template, values = make_request(rng, facts, family_name, names)
    calls = [call_of(tool, names, values)]
    question = template.format(**values)
    if rng.random() < 0.08 and family_name in ASKED_TWICE:
        twice = _ask_twice(rng, facts, family_name, values)
        if twice:
            question = template.format(**twice[0])
            calls.append(call_of(tool, names, twice[1]))
    history: Messages = []
    if rng.random() < 0.12 and not unseen:
        spelling = (tool, names, template)
        history = _earlier_loop(rng, facts, family_name, spelling=spelling, slots=list(values))
        if family_name in ASKED_AGAIN and len(values) == 1 and len(calls) == 1:
            question = rng.choice(AGAIN).format(v=next(iter(values.values())))
    return Sample(
        "tool_unseen" if unseen else "tool_call",
        "tool " + question,
        question,
        call_thoughts(calls),
        tools=tools,
        tool_calls=calls,
        history=history,
        keep_case=True,
    )


def _call(rng: Random, facts: Facts, unseen: bool) -> Sample:
    share = rng.random()
    if share < 0.2 and not unseen:
        return _call_named(rng, facts)
    if share < 0.26 and not unseen:
        return _need_none(rng, facts)
    family_name = rng.choice(sorted(UNSEEN)) if unseen else rng.choice(SEEN + COMMON)
    tool, names, tools = make_toolbox(rng, family_name, unseen)
    if share < 0.31 and not unseen and family_name in WITHOUT_ARGUMENT:
        return _miss_argument(family_name, tool, names, tools)
    return _call_family(rng, facts, family_name, unseen=unseen, tool=tool, names=names, tools=tools)


def tool_call(rng: Random, facts: Facts) -> Sample:
    """Choose the tool and give the arguments, or need none."""
    return _call(rng, facts, unseen=False)


def tool_unseen(rng: Random, facts: Facts) -> Sample:
    """Calls of sorts of tools that are never trained on."""
    return _call(rng, facts, unseen=True)


def _family_of(tool: Tool) -> str | None:
    """Find a tool's family by its description; made-up tools have none."""
    description = tool["function"]["description"]
    found = [name for name, family in FAMILIES.items() if description in family.texts]
    return found[-1] if found else None


def _run(rng: Random, facts: Facts, family_name: str | None, call: Call) -> tuple[Any, str]:
    """A made-up output of the tool, and the beginning of the answer."""
    if family_name is None:
        outputs: list[dict[str, Any]] = [
            {"result": rng.randrange(1000)},
            {"status": "ok"},
            {word(rng, facts): word(rng, facts)},
            {word(rng, facts): rng.randrange(1000), word(rng, facts): word(rng, facts)},
        ]
        return rng.choice(outputs), call["name"]
    family = FAMILIES[family_name]
    arguments: dict[str, Any] = {}
    for param in family.params:
        name = next((name for name in param.names if name in call["arguments"]), None)
        if name is not None and param.slot not in arguments:
            arguments[param.slot] = call["arguments"][name]
    try:
        output = rng.choice(family.results)(rng, facts, arguments)
        return output, family.topic.format(**arguments)
    except KeyError:  # a parameter with a made-up name
        return {"result": word(rng, facts)}, call["name"]


def _error(rng: Random, facts: Facts, call: Call) -> dict[str, str]:
    invalid = "invalid " + next(iter(call["arguments"]), "input")
    reasons = ["not found", "timeout", "no connection", invalid, word(rng, facts)]
    return {"error": rng.choice(reasons)}


def tool_answer(rng: Random, facts: Facts) -> Sample:
    """The turn after the tool has run."""
    sample = tool_call(rng, facts)
    while not sample.tool_calls:
        sample = tool_call(rng, facts)
    calls = sample.tool_calls
    called = [tool for tool in sample.tools if tool["function"]["name"] == calls[0]["name"]]
    family_name = _family_of(called[0])
    contents, parts = [], []
    for call in calls:
        output, topic = _run(rng, facts, family_name, call)
        if rng.random() < 0.06:
            output = _error(rng, facts, call)
        contents.append(encode_output(rng, output))
        parts.append(answer_text(topic, seen_output(contents[-1])))
    asked = {"role": "user", "content": sample.question}
    said = {"role": "assistant", "content": "", "thoughts": sample.thoughts, "tool_calls": calls}
    history = [*sample.history, asked, said]
    history += [{"role": "tool", "content": content} for content in contents]
    answer = "\n".join(parts)
    return Sample(
        "tool_answer",
        "answer " + sample.key,
        "",
        output_thoughts(contents),
        answer,
        answer,
        tools=sample.tools,
        history=history,
        quiet=True,
    )
