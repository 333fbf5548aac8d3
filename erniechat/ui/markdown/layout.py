"""Styled text in lines of a given width.

A run is a piece of text with the parameters of an SGR sequence ("1;36", or "" for none); a line
is a list of runs. Words are kept whole; Chinese, Japanese and Korean break between characters,
but no line starts with a closing mark or ends with an opening one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from erniechat.ui.text import char_width, display_width

Run = tuple[str, str]
Line = list[Run]

_OPENING = "（「『《【〈〔〖［｛"
_CLOSING = "，。、；：！？）」』》】〉〕〗］｝…—"
_WIDE = (
    "\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60"
    "\uffe0-\uffe6\u231a\u231b\u23e9-\u23f3\u26a1\u2705\u2728\u274c\u2753-\u2757\u2795-\u2797"
    "\u2b50\U0001f000-\U0003fffd"
)
_JOINED = "\u0300-\u036f\u200d\ufe0e\ufe0f\u20d0-\u20ff\U0001f3fb-\U0001f3ff"
_ATOM = re.compile(
    rf" +|[{_OPENING}]*(?:[{_WIDE}](?:[{_JOINED}]|(?<=\u200d)[{_WIDE}])*|[^ {_WIDE}]+)[{_CLOSING}]*"
)
_STARTS_WIDE = re.compile(f"[{_WIDE}]")


class _Atom:
    """What is never broken, unless it is longer than a line."""

    __slots__ = ("is_space", "num_columns", "runs")

    def __init__(self, text: str, sgr: str) -> None:
        self.runs: Line = [(text, sgr)]
        self.num_columns = display_width(text)
        self.is_space = text[0] == " "

    def join(self, text: str, sgr: str) -> None:
        self.runs.append((text, sgr))
        self.num_columns += display_width(text)


def _atoms(runs: Iterable[Run]) -> list[_Atom]:
    """Words; one that changes its style in the middle is still one."""
    atoms: list[_Atom] = []
    for text, sgr in runs:
        for number, match in enumerate(_ATOM.finditer(text)):
            piece = match.group()
            before = atoms[-1] if atoms and not number else None
            if before is not None and _belongs_together(before, piece):
                before.join(piece, sgr)
            else:
                atoms.append(_Atom(piece, sgr))
    return atoms


def _belongs_together(before: _Atom, piece: str) -> bool:
    """Whether no line may end between two pieces of different styles."""
    if before.is_space or piece[0] == " ":
        return before.is_space and piece[0] == " "
    last = before.runs[-1][0][-1]
    if piece[0] in _CLOSING or last in _OPENING:
        return True
    return not (_STARTS_WIDE.match(piece) or _STARTS_WIDE.match(last))


def wrap(runs: Sequence[Run], width: int) -> list[Line]:
    """The runs in lines of at most width columns, at least one line.

    Blanks at a break are dropped; a word longer than a line is cut.
    """
    lines: list[Line] = []
    line: Line = []
    column = 0
    gap: _Atom | None = None
    for atom in _atoms(runs):
        if atom.is_space:
            gap = atom
            continue
        gap_columns = gap.num_columns if gap is not None else 0
        if line and column + gap_columns + atom.num_columns > width:
            lines.append(line)
            line, column, gap_columns = [], 0, 0
        elif gap is not None:
            line += gap.runs
        gap = None
        column += gap_columns + atom.num_columns
        line += atom.runs
        if column > width:
            *full, line = cut(line, width)
            lines += full
            column = line_width(line)
    return [*lines, line]


def cut(line: Sequence[Run], width: int) -> list[Line]:
    """A line broken wherever it is full, as code is."""
    lines: list[Line] = [[]]
    column = 0
    for text, sgr in line:
        if column + display_width(text) <= width:
            lines[-1].append((text, sgr))
            column += display_width(text)
            continue
        start = 0
        for index, char in enumerate(text):
            num_columns = char_width(char)
            if column + num_columns > width and column:
                if index > start:
                    lines[-1].append((text[start:index], sgr))
                lines.append([])
                column, start = 0, index
            column += num_columns
        lines[-1].append((text[start:], sgr))
    return lines


def line_width(line: Iterable[Run]) -> int:
    """Columns that a line takes."""
    return sum(display_width(text) for text, _ in line)


def split_lines(runs: Iterable[Run]) -> list[Line]:
    """The runs broken at their newlines."""
    lines: list[Line] = [[]]
    for text, sgr in runs:
        first, *rest = text.split("\n")
        if first:
            lines[-1].append((first, sgr))
        lines += [[(piece, sgr)] if piece else [] for piece in rest]
    return lines


def prefixed(lines: Sequence[Line], first: Run, rest: Run) -> list[Line]:
    """The lines with a run before each, the first with its own."""
    return [[rest if number else first, *line] for number, line in enumerate(lines)]


def ansi(line: Iterable[Run]) -> str:
    """A line for the terminal, without blanks at its end."""
    pieces = list(line)
    while pieces and not pieces[-1][0].rstrip(" "):
        pieces.pop()
    if pieces:
        pieces[-1] = (pieces[-1][0].rstrip(" "), pieces[-1][1])
    return "".join(f"\x1b[{sgr}m{text}\x1b[0m" if sgr else text for text, sgr in _merged(pieces))


def _merged(runs: Iterable[Run]) -> Iterator[Run]:
    """Neighbours of one style as one run."""
    held, held_sgr = "", ""
    for text, sgr in runs:
        if sgr == held_sgr:
            held += text
            continue
        if held:
            yield held, held_sgr
        held, held_sgr = text, sgr
    if held:
        yield held, held_sgr
