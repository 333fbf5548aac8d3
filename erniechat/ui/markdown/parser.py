"""The Markdown that models write: CommonMark with tables, where nothing is swallowed.

Differences from CommonMark, each because a terminal has no second look at the source:

- HTML, entities and reference definitions are text; line breaks stay.
- A backslash is dropped only before the marks that Markdown itself gives a meaning.
- Emphasis works next to Chinese, Japanese and Korean characters without blanks around it.
- ``$…$``, ``$$…$$``, ``\\(…\\)`` and ``\\[…\\]`` are formulas.
"""

import re

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import EnvType

_ESCAPABLE = frozenset("*_`~|<$")
_ESCAPABLE_AT_START = frozenset("#>+-")
_CLOSERS = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_AFTER_DISPLAY = re.compile(r"[ \t]*[.,;:]?[ \t]*$")
_DOLLARS = re.compile(r"\$(?![\s$])((?:[^$\n`\\]|\\.)*?)(?<![\s\\])\$(?![\w$])")
# Between dollars: a command, a script, a relation; else letters that form no word, or a number.
_MATHEMATICAL = re.compile(
    r"\\[a-zA-Z]|[\^_=<>]"
    r"|^(?!.*[A-Za-z]{2})(?=.*[A-Za-z])[A-Za-z0-9()\[\]+\-*/ ,.!'|:]+$|^-?[0-9.,]*[0-9]$"
)


def _is_cjk(char: str) -> bool:
    return (
        "\u2e80" <= char <= "\ua4cf" or "\uac00" <= char <= "\ud7a3" or "\uf900" <= char <= "\uffdc"
    )


def _is_narrow_word(char: str) -> bool:
    return char.isalnum() and not _is_cjk(char)


class _State(StateInline):
    """Delimiters beside CJK text open and close as beside punctuation; one in a word does not.

    ``**“好”**吗`` is bold in the eyes of everyone but CommonMark, which asks for a blank, and
    ``2*3*4`` is a product.
    """

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        scanned = super().scanDelims(start, canSplitWord)
        before = self.src[start - 1] if start > 0 else " "
        end = start + scanned.length
        after = self.src[end] if end < self.posMax else " "
        if self.src[start:end] == "*" and _is_narrow_word(before) and _is_narrow_word(after):
            return Scanned(False, False, 1)
        if not (_is_cjk(before) or _is_cjk(after)):
            return scanned
        left = not isWhiteSpace(ord(after)) and (not _is_punct(after) or _is_cjk(before))
        right = not isWhiteSpace(ord(before)) and (not _is_punct(before) or _is_cjk(after))
        left, right = left or scanned.can_open, right or scanned.can_close
        return Scanned(left, right, scanned.length)


def _is_punct(char: str) -> bool:
    return isMdAsciiPunct(ord(char)) or isPunctChar(char)


class _Inline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _State(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


def _escape(state: StateInline, silent: bool) -> bool:
    """A backslash goes where it keeps a mark of Markdown from acting; any other is text."""
    pos = state.pos
    if state.src[pos] != "\\":
        return False
    escaped = state.src[pos + 1 : pos + 2]
    before = state.src[pos - 1 : pos]
    drop = escaped in _ESCAPABLE if escaped else False
    drop |= before in ("", "\n") and escaped in _ESCAPABLE_AT_START
    drop |= before.isdigit() and escaped in (".", ")")
    if not silent:
        state.append_pending(escaped if drop else "\\\\" if escaped == "\\" else "\\")
    state.pos += 2 if drop or escaped == "\\" else 1
    return True


def _inline_math(state: StateInline, silent: bool) -> bool:
    """A formula within a line, which no other rule may then take apart."""
    found = _formula_at(state.src, state.pos, state.posMax)
    if found is None:
        return False
    source, content = found
    if not silent:
        token = state.push("math_inline", "", 0)
        token.markup, token.content = source, content
    state.pos += len(source)
    return True


def _formula_at(text: str, start: int, end: int) -> tuple[str, str] | None:
    """The source and the content of the formula that starts here, if one does."""
    opener = text[start : start + 2]
    if opener in _CLOSERS:
        close = text.find(_CLOSERS[opener], start + 2, end)
        content = text[start + 2 : close]
        if close < 0 or not content.strip() or (opener == "\\[" and content.isalnum()):
            return None
        return text[start : close + 2], content
    if opener[:1] != "$" or (start > 0 and (text[start - 1].isalnum() or text[start - 1] in "$\\")):
        return None
    match = _DOLLARS.match(text, start, end)
    if match is None or not _MATHEMATICAL.search(match.group(1)):
        return None
    return match.group(), match.group(1)


def _display_math(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""A formula on lines of its own, from ``$$`` or ``\[`` to its end or the next blank line.

    Without an end it is a paragraph: a text that is still being written must not change the
    blocks before it.
    """
    if state.is_code_block(start):
        return False
    first = _line(state, start)
    closer = _CLOSERS.get(first[:2])
    if closer is None or first[:2] == "\\(" or first[:3] == "$$$":
        return False
    close = first.find(closer, 2)
    if close >= 0 and not _AFTER_DISPLAY.match(first, close + 2):
        return False
    if silent:
        return True
    lines = [first]
    last = start
    while close < 0 and last + 1 < end:
        text = _line(state, last + 1)
        if not text.strip() or state.sCount[last + 1] < state.blkIndent:
            break
        last += 1
        lines.append(text)
        close = text.find(closer)
    _push_display(state, lines, closer, (start, last + 1))
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _push_display(state: StateBlock, lines: list[str], closer: str, where: tuple[int, int]) -> None:
    state.line = where[1]
    source = "\n".join(lines)
    body, closed, after = source[2:].partition(closer)
    if closed and _AFTER_DISPLAY.match(after):
        token = state.push("math_block", "", 0)
        token.markup, token.content, token.info = source, body, after.strip()
        token.map = list(where)
        return
    token = state.push("paragraph_open", "p", 1)
    token.map = list(where)
    token = state.push("inline", "", 0)
    token.content, token.map, token.children = source, list(where), []
    state.push("paragraph_close", "p", -1)


def make_parser() -> MarkdownIt:
    """A parser; it keeps no state between texts."""
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 20})
    parser.enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline", "entity", "reference"])
    inline = _Inline()
    inline.ruler, inline.ruler2 = parser.inline.ruler, parser.inline.ruler2
    parser.inline = inline
    parser.inline.ruler.at("escape", _escape)
    parser.inline.ruler.before("escape", "math_inline", _inline_math)
    parser.block.ruler.before(
        "fence", "math_block", _display_math, {"alt": ["paragraph", "blockquote", "list"]}
    )
    parser.normalizeLink = _as_it_is  # type: ignore[method-assign]  # shown, not followed
    parser.validateLink = _anything  # type: ignore[method-assign]  # shown, not followed
    return parser


def _as_it_is(url: str) -> str:
    return url


def _anything(url: str) -> bool:
    return True
