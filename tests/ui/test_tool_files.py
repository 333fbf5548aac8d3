"""Tool schemas from the files that --tools names."""

import json

import pytest

from erniechat.errors import UsageError
from erniechat.ui.tool_commands import read_tool_file

FUNCTION = {"name": "get_weather", "description": "天气", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


def load_tools(path):
    return list(read_tool_file(str(path)).tools)


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "tools.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


@pytest.mark.parametrize("data", [[TOOL], [FUNCTION], {"tools": [TOOL]}, {"tools": [FUNCTION]}])
def test_every_form_gives_the_same_tools(write, data):
    assert load_tools(write(data)) == [TOOL]


def test_order_and_unknown_keys_are_kept(write):
    other = {"name": "a.b-c_1", "strict": True}
    tools = load_tools(write([FUNCTION, other]))
    assert tools == [TOOL, {"type": "function", "function": other}]


def test_an_empty_list_is_no_tools(write):
    assert load_tools(write([])) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("{", "not JSON"),
        ("\ufeff[]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ({}, "tool 1: name must be text without"),
        ({"tools": 3}, "must be a list of tools, got a number"),
        ("null", "must be a list of tools, got null"),
        ("true", "got true or false"),
        ([3], "tool 1 must be an object, got a number"),
        ([FUNCTION, {}], "tool 2: name must be text without"),
        ([{"type": "function", "function": "f"}], "tool 1: function must be an object, got text"),
        ([{"type": "web", "function": FUNCTION}], 'must be of type "function", got "web"'),
        ([{"name": 'a"b'}], 'got "a\\"b"'),
        ([{"name": "a b"}], 'got "a b"'),
        ([{"name": ""}], 'got ""'),
        ([{"name": "f", "description": 3}], 'tool 1 ("f"): description must be text, got a number'),
        ([{"name": "f", "parameters": []}], 'tool 1 ("f"): parameters must be an object, got a'),
        ([FUNCTION, TOOL], 'the name "get_weather" comes 2 times; give each'),
    ],
)
def test_anything_else_is_a_usage_error_that_names_the_file(write, data, text):
    path = write(data)
    with pytest.raises(UsageError) as info:
        load_tools(path)
    message = str(info.value)
    assert message.startswith(f'--tools "{path}"')
    assert text in message
    assert "\n" not in message


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(
        UsageError, match=r'cannot read --tools ".*none.json": No such file or directory'
    ):
        load_tools(tmp_path / "none.json")
    with pytest.raises(UsageError, match="Is a directory"):
        load_tools(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(UsageError, match="not UTF-8 text: byte 0xe9 at offset 2"):
        load_tools(tmp_path / "latin.json")
