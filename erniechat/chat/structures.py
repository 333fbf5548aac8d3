"""What an answer must be: JSON schema, grammar or regular expression, read by llguidance."""

import json
from collections.abc import Collection, Iterator
from typing import Any

from erniechat.errors import UsageError
from erniechat.options import Structure

_MERGING = {"allOf", "if"}
_ALTERNATIVES = {"anyOf", "oneOf", "not", "$ref"}
_OPENING = {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"}
_MAPS = {"properties", "$defs", "definitions", "dependentSchemas"}
_VALUES = {"enum", "const", "default", "examples"}


def make_matcher(structure: Structure, tokenizer_json: str, stop_ids: Collection[int]) -> Any:
    """The matcher of a structure, by llguidance.

    Args:
        structure: What the answer must be.
        tokenizer_json: The text of a tokenizer.json.
        stop_ids: Tokens that end a reply.

    Raises:
        UsageError: If llguidance is not installed, or does not understand the structure.
    """
    llguidance = _library(structure)
    grammar = _grammar(structure, llguidance.LLMatcher)
    tokenizer = llguidance.LLTokenizer(tokenizer_json, eos_token=sorted(stop_ids))
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise _refusal(structure, matcher.get_error())
    return matcher


def check_structure(structure: Structure) -> None:
    """Refuse a structure that makes no sense, before any model is loaded.

    Raises:
        UsageError: If llguidance is not installed, or does not understand the structure.
    """
    matcher = _library(structure).LLMatcher
    problem = matcher.validate_grammar(_grammar(structure, matcher))
    if problem:
        raise _refusal(structure, problem)


def _library(structure: Structure) -> Any:
    try:
        import llguidance  # an extra: not everybody has it
    except ImportError as exc:
        raise UsageError(
            f"{structure.flag} needs llguidance, which is not installed",
            "pip install 'erniechat[structured]'",
        ) from exc
    return llguidance


def _grammar(structure: Structure, matcher: Any) -> Any:
    try:
        if structure.kind == "json_schema":
            compact = {"whitespace_flexible": False}  # a small model writes blanks without end
            schema = closed_schema(json.loads(structure.text))
            return matcher.grammar_from_json_schema(schema, overrides=compact)
        if structure.kind == "regex":
            return matcher.grammar_from_regex(structure.text)
        return matcher.grammar_from_lark(structure.text)
    except (ValueError, RecursionError) as exc:
        raise _refusal(structure, str(exc)) from exc


def closed_schema(schema: Any) -> Any:
    """A schema whose objects have only the properties that it names, unless it says otherwise.

    JSON Schema allows any others, and small models make some up without end. An object is left as
    it is where it says what else it may have; so is all where schemas add to each other's objects.
    """
    return schema if _adds_up(schema) else _closed(schema)


def _adds_up(schema: Any) -> bool:
    """Whether several parts of a schema may speak of the properties of one object."""
    if isinstance(schema, list):
        return any(map(_adds_up, schema))
    if not isinstance(schema, dict):
        return False
    beside = "properties" in schema and _ALTERNATIVES & schema.keys()
    return bool(_MERGING & schema.keys() or beside) or any(map(_adds_up, _parts(schema)))


def _parts(schema: dict[Any, Any]) -> Iterator[Any]:
    """The schemas in a schema: names of properties are no keywords, and values are no schemas."""
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            yield from value.values()
        elif key not in _VALUES:
            yield value


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed: dict[Any, Any] = {}
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            closed[key] = {name: _closed(item) for name, item in value.items()}
        else:
            closed[key] = value if key in _VALUES else _closed(value)
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or _OPENING & schema.keys():
        return closed
    if isinstance(required, list) and all(name in properties for name in required):
        closed["additionalProperties"] = False
    return closed


def _refusal(structure: Structure, reason: str) -> UsageError:
    return UsageError(f"{structure.flag} cannot be used: {' '.join(reason.split())[:200]}")
