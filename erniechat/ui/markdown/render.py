"""Blocks of Markdown as lines of styled text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markdown_it.rules_block.table import escapedSplit
from markdown_it.token import Token

from erniechat.ui.markdown.highlight import LineHighlighter
from erniechat.ui.markdown.layout import Line, Run, prefixed, split_lines, wrap
from erniechat.ui.markdown.math import to_unicode
from erniechat.ui.markdown.table import table_lines
from erniechat.ui.text import visible

BOLD, DIM, ITALIC, UNDERLINE, STRIKE, CODE = "1", "2", "3", "4", "9", "36"
TAB = 4
NARROWEST = 8  # columns that an indent must leave
RULE_COLUMNS = 40
_BREAK_TAG = re.compile(r"<br\s*/?>", re.IGNORECASE)
_CLOSED_FENCE = re.compile(r"[ >]*(`{3,}|~{3,})[ \t]*$")


@dataclass(frozen=True, slots=True)
class Look:
    """What the terminal can show. Without styles the marks of the source stay."""

    styled: bool = True
    utf8: bool = True
    math: bool = True


Group = Sequence[Token]


def groups(tokens: Group) -> list[Group]:
    """The tokens of each block of the outermost level."""
    found: list[Group] = []
    start = depth = 0
    for index, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            found.append(tokens[start : index + 1])
            start = index + 1
    return found


def first_line(group: Group) -> int:
    """The number of the source line on which a block begins."""
    where = group[0].map
    return where[0] if where is not None else 0


def blank_before(lines: Sequence[str], number: int) -> bool:
    """Whether the line before that line is blank, quote marks apart."""
    return number > 0 and not lines[number - 1].strip(" \t>")


def spread(style: str, more: str) -> str:
    """Two styles together."""
    return f"{style};{more}" if style and more else style or more


class Renderer:
    """Draws blocks.

    Args:
        look: What the terminal can show.
        source: The lines of the text that was parsed.
    """

    def __init__(self, look: Look, source: Sequence[str]) -> None:
        self._look = look
        self._source = source

    def block(self, group: Group, width: int, depth: int = 0) -> list[Line]:
        """The lines of one block; none is wider than width, but for code of the outermost level.

        Args:
            group: Its tokens.
            width: Columns.
            depth: How many lists it is in.
        """
        token = group[0]
        match token.type:
            case "heading_open":
                return self._heading(group, width)
            case "bullet_list_open" | "ordered_list_open":
                return self._list(group, width, depth)
            case "blockquote_open":
                return self._quote(group, width, depth)
            case "fence":
                return self._fence(token)
            case "code_block":
                return [[(" " * TAB + text, "")] for text in code_lines(token.content)]
            case "hr":
                sign = "─" if self._look.utf8 else "-"
                return [[(sign * min(width, RULE_COLUMNS), self._sgr(DIM))]]
            case "table_open":
                return self._table(group, width)
            case "math_block":
                return self._formula(token, width)
        return self._flow(self.inline(group[1]), width)

    def blocks(self, inner: Group, width: int, depth: int, *, spaced: bool) -> list[Line]:
        """Several blocks: a blank line between all, or only where the source has one."""
        lines: list[Line] = []
        for group in groups(inner):
            if lines and (spaced or blank_before(self._source, first_line(group))):
                lines.append([])
            lines += self.block(group, width, depth)
        return lines

    def _sgr(self, style: str) -> str:
        return style if self._look.styled else ""

    def _flow(self, runs: Sequence[Run], width: int) -> list[Line]:
        return [part for line in split_lines(runs) for part in wrap(line, width)]

    def _heading(self, group: Group, width: int) -> list[Line]:
        level = int(group[0].tag[1])
        style = spread(BOLD, {1: UNDERLINE, 2: ""}.get(level, ITALIC))
        runs = self.inline(group[1], self._sgr(style))
        if not self._look.styled:
            runs = [("#" * level + " ", ""), *runs]
        return self._flow(runs, width)

    # --- lists and quotes

    def _list(self, group: Group, width: int, depth: int) -> list[Line]:
        lines: list[Line] = []
        start = int(group[0].attrGet("start") or 1) if group[0].tag == "ol" else None
        for index, item in enumerate(groups(group[1:-1])):
            if lines and blank_before(self._source, first_line(item)):
                lines.append([])
            lines += self.item(item, start + index if start is not None else None, width, depth)
        return lines

    def item(self, group: Group, number: int | None, width: int, depth: int = 0) -> list[Line]:
        """The lines of one item of a list, with its bullet or number."""
        marker = self._bullet(depth) if number is None else f"{number}{group[0].markup}"
        lead = "  " if depth == 0 else ""
        indent = len(lead) + len(marker) + 1
        if width - indent < NARROWEST:
            lead, indent = "", 0
        inner = group[1:-1]
        lines = self.blocks(inner, width - max(indent, len(marker) + 1), depth + 1, spaced=False)
        blanks = " " * indent
        return prefixed(lines or [[]], (f"{lead}{marker} ", ""), (blanks, ""))

    def _bullet(self, depth: int) -> str:
        return ("•◦▪"[min(depth, 2)]) if self._look.utf8 else "-"

    def _quote(self, group: Group, width: int, depth: int) -> list[Line]:
        bar = "│ " if self._look.utf8 and self._look.styled else "> "
        bar = bar if width - len(bar) >= NARROWEST else ""
        lines = self.blocks(group[1:-1], width - len(bar), depth, spaced=True)
        return prefixed(lines, (bar, self._sgr(DIM)), (bar, self._sgr(DIM)))

    # --- code and formulas

    def _fence(self, token: Token) -> list[Line]:
        """A block of code between its fences; one without an end ends with its last line."""
        source = code_lines(token.content)
        start, end = token.map or (0, 0)
        closed = _CLOSED_FENCE.match(self._source[end - 1]) if end - start > 1 else None
        while source and closed is None and not source[-1].strip():
            source.pop()
        code = CodeLines(self._look, token.info)
        lines = [fence_line(self._look, token.markup + token.info)]
        lines += [code.line(text) for text in source]
        return [*lines, fence_line(self._look, closed.group(1))] if closed else lines

    def _formula(self, token: Token, width: int) -> list[Line]:
        text = to_unicode(token.content) if self._look.math and self._look.utf8 else None
        if text is None:
            return self._flow([(visible(token.markup), "")], width)
        indent = "  " if width > 2 * NARROWEST else ""
        lines = self._flow([(visible(text + token.info), "")], width - len(indent))
        return prefixed(lines, (indent, ""), (indent, ""))

    # --- tables

    def _table(self, group: Group, width: int) -> list[Line]:
        if self._has_lost_cells(group):
            start, end = group[0].map or (0, 0)
            return self._flow([("\n".join(map(str.strip, self._source[start:end])), "")], width)
        rows: list[list[list[Run]]] = []
        aligns: list[str] = []
        for index, token in enumerate(group):
            if token.type == "tr_open":
                rows.append([])
            elif token.type in ("th_open", "td_open"):
                style = self._sgr(BOLD) if token.type == "th_open" else ""
                rows[-1].append(_broken_at_tags(self.inline(group[index + 1], style)))
                if token.type == "th_open":
                    aligns.append(str(token.attrGet("style") or "").removeprefix("text-align:"))
        rule = ("─" if self._look.utf8 else "-", self._sgr(DIM))
        return table_lines(rows, aligns, width, rule)

    def _has_lost_cells(self, group: Group) -> bool:
        """Whether a row has more cells than the header: the parser drops them."""
        rows = [token.map[0] for token in group if token.type == "tr_open" and token.map]
        counts = [
            len(escapedSplit(self._source[row].strip(" \t>").removeprefix("|").removesuffix("|")))
            for row in rows
        ]
        return max(counts) > counts[0]

    # --- text within a block

    def inline(self, token: Token, style: str = "") -> list[Run]:
        """The runs of a block's text; a line break is a newline."""
        runs: list[Run] = []
        styles = [style]
        addresses: list[tuple[str, int]] = []
        for child in token.children or []:
            match child.type:
                case "strong_open" | "em_open" | "s_open":
                    self._open(child, styles, runs)
                case "strong_close" | "em_close" | "s_close":
                    styles.pop()
                    self._mark(child, styles, runs)
                case "link_open":
                    styles.append(spread(styles[-1], self._sgr(UNDERLINE)))
                    addresses.append((str(child.attrGet("href") or ""), len(runs)))
                case "link_close":
                    styles.pop()
                    address, start = addresses.pop()
                    runs += self._address(address, "".join(text for text, _ in runs[start:]))
                case "image":
                    runs.append((visible(f"[image: {child.content}]"), styles[-1]))
                    runs += self._address(str(child.attrGet("src") or ""), "")
                case _:
                    runs.append(self._text(child, styles[-1]))
        return [(text, sgr) for text, sgr in runs if text]

    def _open(self, token: Token, styles: list[str], runs: list[Run]) -> None:
        self._mark(token, styles, runs)
        more = {"strong_open": BOLD, "em_open": ITALIC, "s_open": STRIKE}[token.type]
        styles.append(spread(styles[-1], self._sgr(more)))

    def _mark(self, token: Token, styles: list[str], runs: list[Run]) -> None:
        if not self._look.styled:
            runs.append((token.markup, styles[-1]))

    def _text(self, token: Token, style: str) -> Run:
        match token.type:
            case "softbreak" | "hardbreak":
                return "\n", ""
            case "code_inline":
                text = visible(token.content)
                if not self._look.styled:
                    return f"{token.markup}{text}{token.markup}", style
                return text, spread(style, CODE)
            case "math_inline":
                shows = self._look.math and self._look.utf8
                found = to_unicode(token.content) if shows else None
                return visible(found or token.markup), style
        return visible(token.content).replace("\t", " "), style

    def _address(self, address: str, text: str) -> list[Run]:
        """Where a link leads, unless its text says so: what is hidden cannot be judged."""
        address = visible(address)
        if not address or address.removeprefix("mailto:") == text.strip():
            return []
        return [(f" ({address})", self._sgr(DIM))]


def _broken_at_tags(runs: list[Run]) -> list[Run]:
    """A cell's ``<br>`` is the only way to break its lines."""
    return [(_BREAK_TAG.sub("\n", text), sgr) for text, sgr in runs]


def code_lines(content: str) -> list[str]:
    """The lines of a piece of code."""
    return content.removesuffix("\n").split("\n") if content else []


def fence_line(look: Look, text: str) -> Line:
    """The line above or below a block of code."""
    return [(visible(text.rstrip()), DIM if look.styled else "")]


class CodeLines:
    """Draws the lines of one block of code, in order."""

    def __init__(self, look: Look, info: str) -> None:
        language = info.strip().split(" ")[0].strip("{}.").lower()
        self._line: Callable[[str], Line] = lambda text: [(text, "")]
        if look.styled:
            self._line = LineHighlighter(language).line

    def line(self, text: str) -> Line:
        """The next line."""
        return self._line(visible(text.expandtabs(TAB)))
