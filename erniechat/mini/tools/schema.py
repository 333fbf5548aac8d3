"""Tool schemas and requests: a family in one of its spellings, among other tools."""

from random import Random
from typing import Any

from erniechat.mini.skills.knowledge import Facts
from erniechat.mini.skills.words import pseudo_word
from erniechat.mini.tools.families_a import FAMILIES as FIRST_FAMILIES
from erniechat.mini.tools.families_b import FAMILIES as SECOND_FAMILIES
from erniechat.mini.tools.families_unseen import FAMILIES as UNSEEN_FAMILIES
from erniechat.mini.tools.values import VALUES

Tool = dict[str, Any]
Call = dict[str, Any]

FAMILIES = {**FIRST_FAMILIES, **SECOND_FAMILIES, **UNSEEN_FAMILIES}
SEEN = [*FIRST_FAMILIES, *SECOND_FAMILIES]
UNSEEN = [*UNSEEN_FAMILIES]
ENUMS = {"unit": ["celsius", "fahrenheit"], "state": ["on", "off"]}
ALIKE = [  # one request would fit both
    {"calculator", "add"},
    {"mail", "message"},
    {"define", "search"},
    {"timer", "todo"},
]


def _respell(rng: Random, name: str) -> str:
    """get_weather -> getWeather, my_get_weather, get_weather_v2, or a made-up name."""
    share = rng.random()
    parts = name.split("_")
    if share < 0.08 and len(parts) > 1:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    if share < 0.12:
        return rng.choice(["my_", "api_", "tool_", "do_"]) + name
    if share < 0.16:
        return name + rng.choice(["_v2", "_tool", "_api", "2"])
    if share < 0.24:
        return pseudo_word(rng)
    return name


def function_schema(
    name: str, description: str, properties: dict[str, Any], required: list[str]
) -> Tool:
    """A tool in the OpenAI format."""
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def make_schema(rng: Random, family_name: str) -> tuple[Tool, dict[str, str]]:
    """Spell a family out as a schema.

    Returns:
        The schema and ``{slot: parameter name}``.
    """
    family = FAMILIES[family_name]
    names: dict[str, str] = {}
    properties: dict[str, Any] = {}
    required = []
    for param in family.params:
        if param.optional and rng.random() < 0.4:
            continue
        name = rng.choice([name for name in param.names if name not in properties])
        if rng.random() < 0.05:
            name = pseudo_word(rng)
        names[param.slot] = name
        properties[name] = {"type": param.type}
        if rng.random() < 0.7:
            properties[name]["description"] = rng.choice(param.texts)
        if param.enum:
            properties[name]["enum"] = ENUMS[param.kind]
        if not param.optional:
            required.append(name)
    function_name = _respell(rng, rng.choice(family.names))
    tool = function_schema(function_name, rng.choice(family.texts), properties, required)
    if rng.random() < 0.05:
        del tool["function"]["parameters"]["required"]
    return tool, names


def make_request(
    rng: Random, facts: Facts, family_name: str, names: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    """Draw a request that the schema with these names can answer.

    Returns:
        The request's template and ``{slot: value}`` for the slots that it uses.
    """
    family = FAMILIES[family_name]
    missing = ["{" + param.slot + "}" for param in family.params if param.slot not in names]
    asks = [ask for ask in family.asks if not any(slot in ask for slot in missing)]
    template = rng.choice(asks)
    values = {
        param.slot: VALUES[param.kind](rng, facts)
        for param in family.params
        if param.slot in names and "{" + param.slot + "}" in template
    }
    return template, values


def call_of(tool: Tool, names: dict[str, str], values: dict[str, Any]) -> Call:
    """The call of a tool with these values, given by slot."""
    arguments = {names[slot]: value for slot, value in values.items()}
    return {"name": tool["function"]["name"], "arguments": arguments}


def make_toolbox(
    rng: Random, family_name: str, unseen: bool = False
) -> tuple[Tool, dict[str, str], list[Tool]]:
    """Put the wanted tool among up to three others.

    Returns:
        The wanted tool, ``{slot: parameter name}`` of it, and all tools in any order.
    """
    tool, names = make_schema(rng, family_name)
    others = [
        other
        for other in (FAMILIES if unseen else SEEN)
        if other != family_name and {other, family_name} not in ALIKE
    ]
    chosen = rng.sample(others, rng.choice([0, 0, 1, 1, 2, 3]))
    tools = [tool, *(make_schema(rng, other)[0] for other in chosen)]
    if len({tool["function"]["name"] for tool in tools}) < len(tools):
        return make_toolbox(rng, family_name, unseen)
    rng.shuffle(tools)
    return tool, names, tools
