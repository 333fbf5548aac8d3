"""Code in colours, line by line: a line is final once it is complete, whatever follows."""

from collections.abc import Iterable

from pygments.lexer import ExtendedRegexLexer, Lexer, LexerContext, RegexLexer
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.lexers.data import YamlLexer, YamlLexerContext
from pygments.token import Token, _TokenType
from pygments.util import ClassNotFound

from erniechat.ui.markdown.layout import Line

LONGEST = 1000  # a longer line is data; a regular expression may take for ever over it
DIM, RED, GREEN, MAGENTA, CYAN, BOLD = "2", "31", "32", "35", "36", "1"

# The nearest ancestor of a token's type decides; what is not here keeps the terminal's own colour.
_STYLES: dict[object, str] = {
    Token.Comment: DIM,
    Token.Comment.Preproc: MAGENTA,
    Token.Keyword: MAGENTA,
    Token.Keyword.Constant: CYAN,
    Token.Keyword.Type: CYAN,
    Token.Operator.Word: MAGENTA,
    Token.Literal.String: GREEN,
    Token.Literal.String.Affix: MAGENTA,
    Token.Literal.Number: CYAN,
    Token.Name.Builtin: CYAN,
    Token.Name.Builtin.Pseudo: "",
    Token.Name.Class: BOLD,
    Token.Name.Decorator: MAGENTA,
    Token.Name.Function: BOLD,
    Token.Name.Tag: MAGENTA,
    Token.Generic.Deleted: RED,
    Token.Generic.Inserted: GREEN,
    Token.Generic.Heading: BOLD,
    Token.Generic.Subheading: MAGENTA,
    Token.Generic.Prompt: DIM,
}


def _style(kind: _TokenType | None) -> str:
    while kind is not None:
        if kind in _STYLES:
            return _STYLES[kind]
        kind = kind.parent
    return ""


def _lexer(language: str) -> Lexer:
    try:
        return get_lexer_by_name(language) if language else TextLexer()
    except ClassNotFound:
        return TextLexer()


class LineHighlighter:
    """Colours the lines of one piece of code, in order.

    The state between lines is the lexer's stack of states. Rules that look over the end of a line
    see only the line: a docstring is a string, which looks the same.
    """

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language)
        self._stack = ["root"]
        self._context: LexerContext | None = None
        self._broken = isinstance(self._lexer, TextLexer)

    def line(self, text: str) -> Line:
        """The runs of the next line, without its newline."""
        if self._broken or len(text) > LONGEST:
            return [(text, "")]
        try:
            pieces = list(self._pieces(text + "\n"))
        except Exception:  # a lexer's bug must not end an answer
            self._broken = True
            return [(text, "")]
        runs = [(piece.rstrip("\n"), _style(kind)) for kind, piece in pieces]
        runs = [run for run in runs if run[0]]
        return runs if "".join(piece for piece, _ in runs) == text else [(text, "")]

    def _pieces(self, text: str) -> Iterable[tuple[_TokenType, str]]:
        lexer = self._lexer
        if isinstance(lexer, ExtendedRegexLexer):
            return self._with_context(lexer, text)
        if isinstance(lexer, RegexLexer):
            return self._with_stack(lexer, text)
        return [(kind, piece) for _, kind, piece in lexer.get_tokens_unprocessed(text)]

    def _with_context(
        self, lexer: ExtendedRegexLexer, text: str
    ) -> Iterable[tuple[_TokenType, str]]:
        """Lexers that take the state from outside."""
        if self._context is None:
            context_type = YamlLexerContext if isinstance(lexer, YamlLexer) else LexerContext
            self._context = context_type(text, 0)
        context = self._context
        context.text, context.pos, context.end = text, 0, len(text)
        return [(kind, piece) for _, kind, piece in lexer.get_tokens_unprocessed(context=context)]

    def _with_stack(self, lexer: RegexLexer, text: str) -> Iterable[tuple[_TokenType, str]]:
        """RegexLexer.get_tokens_unprocessed with a stack that outlives the call."""
        pieces: list[tuple[_TokenType, str]] = []
        pos = steps = 0
        while pos < len(text):
            steps += 1
            if steps > 4 * LONGEST:
                raise RuntimeError("the lexer does not move on")
            for match_at, action, new_state in lexer._tokens[self._stack[-1]]:
                match = match_at(text, pos)
                if match is None:
                    continue
                if isinstance(action, _TokenType):
                    pieces.append((action, match.group()))
                elif action is not None:
                    pieces += [(kind, piece) for _, kind, piece in action(lexer, match)]
                self._move(new_state)
                if match.end() == pos and new_state is None:
                    continue
                pos = match.end()
                break
            else:
                if text[pos] == "\n":
                    self._stack = ["root"]
                pieces.append((Token.Text, text[pos]))
                pos += 1
        return pieces

    def _move(self, new_state: object) -> None:
        """Apply a rule's change of state."""
        stack = self._stack
        if isinstance(new_state, int):
            del stack[max(1, len(stack) + new_state) :]
            return
        for state in (new_state,) if isinstance(new_state, str) else new_state or ():  # type: ignore[attr-defined]  # str, tuple or None
            if state == "#pop":
                if len(stack) > 1:
                    stack.pop()
            elif state == "#push":
                stack.append(stack[-1])
            else:
                stack.append(state)
