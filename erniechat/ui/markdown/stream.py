"""A Markdown text that is still coming: its finished lines for good, its end as it stands.

Only the last block of the outermost level can still change, of a list only the last item, of a
block of code only the last line. What is before that is finished, and is drawn once. Whether a
block is finished is decided on whole lines: the rest of a line may change what it continues.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from erniechat.ui.markdown.layout import Line, ansi, cut
from erniechat.ui.markdown.parser import make_parser
from erniechat.ui.markdown.render import (
    TAB,
    CodeLines,
    Group,
    Look,
    Renderer,
    blank_before,
    fence_line,
    first_line,
    groups,
)

_MARKER = re.compile(r"( *)([-+*]|\d{1,9}(?=[.)]))([.)]?)(\s{1,4}(?=\S)|)")
_FENCE = re.compile(r"( {0,3})(`{3,}|~{3,})")
_OPEN_CODE = re.compile(r"^[ >]*[`~]{1,2}$")
_TRAILING_MARKS = re.compile(r"(?:\*{1,3}|_{1,3}|~{1,2}|`+)$")
_CODE_SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_OPEN_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*$")
_OPENS_EMPHASIS = re.compile(r"(?<![\w*\\])\*(?=[^\s*])")
_CLOSES_EMPHASIS = re.compile(r"(?<=[^\s*\\])\*(?![\w*])")


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is finished as a whole: a block, or one item of a list."""

    group: Group
    blank_before: bool
    number: int | None = None
    is_item: bool = False
    continues: bool = False

    @property
    def start(self) -> int:
        return first_line(self.group)


class _Fence:
    """An open block of code of the outermost level."""

    def __init__(self, look: Look, opener: re.Match[str]) -> None:
        self.indent, self.markup = len(opener.group(1)), opener.group(2)
        self.code = CodeLines(look, opener.string[opener.end() :])
        self.num_blank = 0  # blank lines that wait for another line

    def closes(self, line: str) -> bool:
        text = line.rstrip(" \t")
        mark = self.markup[0]
        return (
            len(line) - len(line.lstrip(" ")) < 4
            and text.strip(" ").startswith(self.markup)
            and not text.strip(" " + mark)
        )

    def content(self, line: str) -> str:
        """The line without the fence's own indent."""
        column = index = 0
        while column < self.indent and line[index : index + 1] in (" ", "\t"):
            column += TAB - column % TAB if line[index] == "\t" else 1
            index += 1
        return " " * (column - self.indent) + line[index:]


class MarkdownStream:
    """Takes a text in pieces; gives finished lines once, and the unfinished end again and again."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._parser = make_parser()
        self._tail = ""  # what is not finished
        self._stub = ""  # a line that stands for the finished items of the list that goes on
        self._fence: _Fence | None = None
        self._source: Sequence[str] = []  # the lines of what was parsed last
        self._has_gap = False  # a blank line comes before the next unit
        self._num_seen = 0  # characters of the tail whose whole lines were looked at

    def feed(self, text: str) -> None:
        """Take a piece; control characters are visible already."""
        self._tail += text

    def finished(self, width: int) -> list[str]:
        """The lines that are finished since the last call."""
        lines: list[Line] = []
        while self._advance(lines, width):
            pass
        return [ansi(line) for line in lines]

    def tail(self, width: int) -> list[str]:
        """The lines of the unfinished end, none wider than width."""
        if self._fence is not None:
            lines = self._fence_tail()
        else:
            lines = self._draw(self._units(as_if_closed(self._tail)), width)
        return [ansi(part) for line in lines for part in cut(line, width)]

    def close(self, width: int) -> list[str]:
        """The text is complete: the lines that are left."""
        self._tail = self._tail.rstrip("\n") + "\n" if self._tail.strip() else ""
        lines: list[Line] = []
        while self._advance(lines, width):
            pass
        if self._fence is None:
            lines += self._draw(self._units(self._tail), width)
        self._tail, self._stub, self._fence = "", "", None
        return [ansi(line) for line in lines]

    # --- blocks

    def _advance(self, lines: list[Line], width: int) -> bool:
        """Add what is finished now; whether there may be more."""
        complete = self._tail[: self._tail.rfind("\n") + 1]
        if len(complete) <= self._num_seen:
            return False
        self._num_seen = len(complete)
        if self._fence is not None:
            return self._advance_fence(self._fence, complete, lines)
        units = self._units(complete)
        if not units:
            return False
        *done, last = units
        lines += self._draw(done, width)
        before = done[-1] if done else None
        num_stub_lines = self._stub.count("\n")
        source = self._source
        if done:
            self._has_gap = last.blank_before
            self._stub = _stub(source, before) if before is not None and last.continues else ""
        self._drop_lines(last.start - num_stub_lines)
        opens_fence = last.group[0].type == "fence" and not last.is_item
        if opens_fence and self._open_fence(source[last.start], lines):
            self._drop_lines(1)
            return True
        return False

    def _drop_lines(self, number: int) -> None:
        """Take whole lines from the start of the tail."""
        self._tail = self._tail.split("\n", number)[number]
        self._num_seen = 0 if self._fence is not None else self._tail.rfind("\n") + 1

    def _units(self, text: str) -> list[_Unit]:
        """The units of the tail, without the stub."""
        text = self._stub + text
        source = text.split("\n")
        units: list[_Unit] = []
        for group in groups(self._parser.parse(text)):
            if group[0].type.endswith("_list_open"):
                units += _items(group, source)
            else:
                units.append(_Unit(group, True))
        self._source = source
        return units[1:] if self._stub else units

    def _draw(self, units: Sequence[_Unit], width: int) -> list[Line]:
        """The lines of units of the text that was parsed last."""
        renderer = Renderer(self._look, self._source)
        lines: list[Line] = []
        for index, unit in enumerate(units):
            if unit.blank_before if index else self._has_gap:
                lines.append([])
            if unit.is_item:
                lines += renderer.item(unit.group, unit.number, width)
            else:
                lines += renderer.block(unit.group, width)
        return lines

    # --- code

    def _open_fence(self, opener: str, lines: list[Line]) -> bool:
        """Go into a block of code; whether it is one of the outermost level."""
        match = _FENCE.match(opener)
        if match is None:
            return False
        if self._has_gap:
            lines.append([])
        self._fence, self._stub, self._has_gap = _Fence(self._look, match), "", False
        lines.append(fence_line(self._look, opener.strip(" ")))
        return True

    def _advance_fence(self, fence: _Fence, complete: str, lines: list[Line]) -> bool:
        """Finish whole lines of code; blank ones wait for what follows."""
        source = complete.split("\n")[:-1]
        for number, line in enumerate(source, 1):
            if fence.closes(line):
                lines += [fence.code.line("") for _ in range(fence.num_blank)]
                lines.append(fence_line(self._look, line.strip(" ")))
                self._fence, self._has_gap = None, True
                self._drop_lines(number)
                self._num_seen = 0
                return True
            if not line.strip():
                fence.num_blank += 1
                continue
            lines += [fence.code.line("") for _ in range(fence.num_blank)]
            fence.num_blank = 0
            lines.append(fence.code.line(fence.content(line)))
        self._drop_lines(len(source))
        return False

    def _fence_tail(self) -> list[Line]:
        """The line of code that is being written."""
        fence = self._fence
        text = self._tail.rsplit("\n", 1)[-1]
        if fence is None or not text.strip() or not text.strip(" " + fence.markup[0]):
            return []
        blanks: list[Line] = [[] for _ in range(fence.num_blank)]
        return [*blanks, [(fence.content(text).expandtabs(TAB), "")]]


def _items(group: Group, source: Sequence[str]) -> list[_Unit]:
    """The items of a list as units."""
    start = int(group[0].attrGet("start") or 1) if group[0].tag == "ol" else None
    units: list[_Unit] = []
    for index, item in enumerate(groups(group[1:-1])):
        number = start + index if start is not None else None
        gap = blank_before(source, first_line(item)) if index else True
        units.append(_Unit(item, gap, number, True, index > 0))
    return units


def _stub(source: Sequence[str], item: _Unit) -> str:
    """A line that keeps a list open after its items were taken away."""
    match = _MARKER.match(source[item.start])
    if match is None:
        return ""
    indent, marker, delimiter, blanks = match.groups()
    if item.number is not None:
        marker = str(item.number)
    if not source[item.start][match.end() :].strip() and not source[item.start + 1].strip():
        return (
            f"{indent}{marker}{delimiter}\n\n"  # an empty item takes nothing in after a blank line
        )
    return f"{indent}{marker}{delimiter}{blanks or ' '}x\n"


def as_if_closed(text: str) -> str:
    """An unfinished text with the marks that it will probably get, so that they never show."""
    head, newline, last = text.rpartition("\n")
    if _OPEN_CODE.match(last):
        return head + newline
    start = text.rfind("\n\n") + 2 if "\n\n" in text else 0
    body = _TRAILING_MARKS.sub("", text[start:]) if last.strip("*_-~` ") else text[start:]
    plain = _CODE_SPAN.sub("", body)
    if "`" in plain:
        return text[:start] + body + "`"
    body = _OPEN_LINK.sub(r"\1", body)
    if len(_OPENS_EMPHASIS.findall(plain)) > len(_CLOSES_EMPHASIS.findall(plain)):
        body += "*"
    for mark in ("**", "~~"):
        if plain.count(mark) % 2:
            body = body.rstrip(" ") + mark
    return text[:start] + body
