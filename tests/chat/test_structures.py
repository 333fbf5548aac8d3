"""What an answer must be: schemas are closed where nothing says that they are open."""

import pytest

from erniechat.chat.structures import closed_schema

NUMBER = {"type": "integer"}
CLOSED = {"properties": {"n": NUMBER}, "additionalProperties": False}


def test_an_object_has_only_the_properties_that_are_named_at_every_depth() -> None:
    schema = {
        "type": "array",
        "items": {"properties": {"properties": {"properties": {"n": NUMBER}}}},
        "$defs": {"additionalProperties": {"properties": {"n": NUMBER}}},
    }
    assert closed_schema(schema) == {
        "type": "array",
        "items": {"properties": {"properties": CLOSED}, "additionalProperties": False},
        "$defs": {"additionalProperties": CLOSED},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"n": NUMBER}, "additionalProperties": True},
        {"properties": {"n": NUMBER}, "patternProperties": {"^x": NUMBER}},
        {"properties": {"n": NUMBER}, "required": ["m"]},
        {"allOf": [{"properties": {"n": NUMBER}}, {"properties": {"m": NUMBER}}]},
        {
            "$defs": {"x": {"properties": {"n": NUMBER}}},
            "items": {"allOf": [{"$ref": "#/$defs/x"}]},
        },
        {"type": "object"},
        {"enum": [{"properties": {"n": 1}}]},
        True,
    ],
)
def test_what_says_otherwise_is_left_as_it_is(schema: object) -> None:
    assert closed_schema(schema) == schema


def test_names_of_properties_and_values_are_no_keywords() -> None:
    named = {"properties": {"if": NUMBER, "allOf": {"const": {"allOf": 1}}}}
    assert closed_schema(named) == named | {"additionalProperties": False}


def test_alternatives_that_add_to_an_object_stay_open() -> None:
    either = [{"properties": {"a": NUMBER}}, {"properties": {"b": NUMBER}}]
    assert closed_schema({"properties": {"n": NUMBER}, "anyOf": either})["anyOf"] == either
    alone = closed_schema({"anyOf": either})["anyOf"]
    assert [item["additionalProperties"] for item in alone] == [False, False]
