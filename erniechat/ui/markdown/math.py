r"""Simple LaTeX as Unicode: ``\frac{a}{b} \leq x^2`` is ``a/b ≤ x²``.

A reader on a terminal gets the formula where one line of Unicode says the same. Anything that is
not understood leaves the whole formula as it is: half a translation would be a wrong formula.
"""

import re

from erniechat.ui.markdown.math_symbols import (
    ACCENTS,
    DOUBLE_STRUCK,
    FUNCTIONS,
    IGNORED,
    LETTERS,
    OPERATORS,
    ROOTS,
    SPACES,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    TRANSPARENT,
)

LONGEST = 2000
_DEEPEST = 20
_TOKEN = re.compile(r"\\(?:[a-zA-Z]+\*?|.)|\s+|.", re.DOTALL)
_LINES = frozenset(
    [
        "aligned",
        "align",
        "align*",
        "gathered",
        "gather",
        "gather*",
        "equation",
        "equation*",
        "split",
        "eqnarray",
    ]
)
_MATRICES = {
    "matrix": ("", ""), "pmatrix": ("(", ")"), "bmatrix": ("[", "]"), "vmatrix": ("|", "|"),
    "Bmatrix": ("{", "}"), "array": ("", ""),
}  # fmt: skip  # a table
_RELATIONS = frozenset("=<>≠≤≥")
# What needs no brackets under a root or beside a fraction stroke.
_SINGLE = re.compile(
    r"(?:√|∂|d(?=[a-z]))?(?:[0-9.,]+|[^\W0-9_][′°⁰-ₜ¹²³ʰ-ʸᵃ-ᵿⱼⱽ]*|[A-Za-z]{4,}|∞)|\([^()]*\)"
)


class _NotUnderstood(Exception):
    pass


def to_unicode(source: str) -> str | None:
    """The formula in lines of Unicode, or None where it is not understood.

    Args:
        source: LaTeX without the signs around it.
    """
    if len(source) > LONGEST:
        return None
    try:
        parser = _Parser(_TOKEN.findall(source.strip()))
        text = parser.until(frozenset())
    except _NotUnderstood:
        return None
    lines = [_tidy(line) for line in text.split("\n")]
    return "\n".join(line for line in lines if line) or None


def _tidy(line: str) -> str:
    """Single blanks between what stands on a line."""
    line = re.sub(r" {2,}", lambda found: "  " if len(found.group()) > 3 else " ", line.strip())
    return re.sub(r"(?<=[(\[⟨{]) | (?=[)\]⟩},;])", "", line)


class _Parser:
    """Reads tokens from left to right; what a method returns is Unicode."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._pos = 0
        self._depth = 0

    def _peek(self) -> str:
        return self._tokens[self._pos] if self._pos < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._pos += 1
        return token

    def _skip_blanks(self) -> None:
        while self._peek().isspace():
            self._pos += 1

    def until(self, ends: frozenset[str]) -> str:
        """Everything up to one of the ends, which is taken too; without ends, up to the last."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _NotUnderstood
        out = ""
        while True:
            token = self._next()
            if token in ends:
                break
            if not token:
                if ends:
                    raise _NotUnderstood
                break
            out = self._attach(out, token)
        self._depth -= 1
        return out

    def _attach(self, out: str, token: str) -> str:
        """What has been read so far, with the next token."""
        if token in "^_":
            return self._script(out.rstrip(" "), token)
        if token == "}" or token in ("\\end", "\\right)") or token == "$":
            raise _NotUnderstood
        return out + self._piece(token)

    def _piece(self, token: str) -> str:
        if token.isspace():
            return " "
        if token == "{":
            return self.until(frozenset("}"))
        if token == "&":
            return " "
        if token == "~":
            return " "
        if token == "'":
            return "′"
        if token == "-":
            return "−"
        if token in _RELATIONS:
            return f" {token} "
        return self._command(token[1:]) if token[0] == "\\" and len(token) > 1 else token

    def _command(self, name: str) -> str:
        if name in ("\\", "newline"):
            return "\n"
        if name in SPACES:
            return SPACES[name]
        if name in IGNORED:
            return self._delimiter()
        if name in OPERATORS:
            return f" {OPERATORS[name]} "
        if name in LETTERS:
            return LETTERS[name] + self._blank_after_letter()
        if name.isalpha():
            self._skip_blanks()
        if name in FUNCTIONS:
            return self._function(name)
        return self._with_arguments(name)

    def _blank_after_letter(self) -> str:
        """A blank that only ends the name of a command is none, nor one before a letter."""
        if not self._peek().isspace():
            return ""
        self._skip_blanks()
        return "" if self._peek()[:1].isalnum() or self._peek()[:1] in "^_" else " "

    def _delimiter(self) -> str:
        r"""After ``\left`` a dot stands for nothing."""
        if self._peek() == ".":
            self._pos += 1
        return ""

    def _function(self, name: str) -> str:
        """A name is set apart from letters beside it."""
        before = self._tokens[self._pos - 2] if self._pos > 1 else ""
        lead = " " if before[-1:].isalnum() else ""
        return lead + name + ("" if self._peek()[:1] in ("", "(", "^", "_", "{", "[") else " ")

    def _with_arguments(self, name: str) -> str:
        if name in TRANSPARENT:
            return self._text() if name.startswith(("text", "mbox", "hbox")) else self._argument()
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return _fraction(self._argument(), self._argument())
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom", "tbinom"):
            return f"C({self._argument()}, {self._argument()})"
        if name == "mathbb":
            letters = self._argument()
            if not all(char in DOUBLE_STRUCK for char in letters):
                raise _NotUnderstood
            return "".join(DOUBLE_STRUCK[char] for char in letters)
        if name in ACCENTS:
            return _accented(self._argument(), ACCENTS[name])
        if name == "pmod":
            return f" (mod {self._argument()})"
        if name == "tag":
            return f"  ({self._argument()})"
        if name == "not":
            return {"=": " ≠ ", "\\in": " ∉ ", "\\equiv": " ≢ "}.get(self._next()) or self._fail()
        if name == "begin":
            return self._environment(self._name())
        return self._fail()

    def _fail(self) -> str:
        raise _NotUnderstood

    def _argument(self) -> str:
        """One token, or a group in braces."""
        self._skip_blanks()
        token = self._next()
        if not token or token in "}^_&$":
            raise _NotUnderstood
        return self._piece(token).strip()

    def _name(self) -> str:
        """A group in braces as it is written."""
        if self._next() != "{":
            raise _NotUnderstood
        name = ""
        while (token := self._next()) != "}":
            if not token or token == "{":
                raise _NotUnderstood
            name += token
        return name

    def _text(self) -> str:
        """Words: their blanks and hyphens stay."""
        self._skip_blanks()
        text = self._name()
        if "\\" in text:
            raise _NotUnderstood
        return text

    def _root(self) -> str:
        degree = ""
        if self._peek() == "[":
            self._pos += 1
            degree = self.until(frozenset("]"))
        inside = self._argument()
        sign = ROOTS.get(degree) or _script_text(degree, SUPERSCRIPTS)
        if sign is None:
            raise _NotUnderstood
        sign = sign if degree in ROOTS else sign + "√"
        return sign + (inside if _SINGLE.fullmatch(inside) else f"({inside})")

    def _script(self, out: str, mark: str) -> str:
        """What has been read, with an exponent or an index."""
        inside = self._argument()
        blank = " " if self._tokens[self._pos - 1].isspace() else ""
        return out + self._script_of(inside, mark) + blank

    def _script_of(self, inside: str, mark: str) -> str:
        inside = inside.replace(" ", "") if len(inside) < 12 else inside
        if mark == "^" and inside == "∘":
            return "°"
        if mark == "^" and set(inside) == {"′"}:
            return inside
        table = SUPERSCRIPTS if mark == "^" else SUBSCRIPTS
        script = _script_text(inside, table)
        if script is not None:
            return script
        return mark + (inside if len(inside) == 1 else f"({inside})")

    def _environment(self, name: str) -> str:
        if name in _LINES:
            return "\n" + self._body(name).replace("\t", " ") + "\n"
        if name == "cases":
            rows = _rows(self._body(name))
            return " ".join(["{", "; ".join("  ".join(row) for row in rows), "}"])
        if name in _MATRICES:
            if name == "array":
                self._name()
            left, right = _MATRICES[name]
            rows = _rows(self._body(name))
            return left + "; ".join(" ".join(row) for row in rows) + right
        return self._fail()

    def _body(self, name: str) -> str:
        """The inside of an environment; cells end with a tab, rows with a newline."""
        out = ""
        while True:
            token = self._next()
            if not token:
                raise _NotUnderstood
            if token == "\\end":
                if self._name() != name:
                    raise _NotUnderstood
                return out
            out = out + "\t" if token == "&" else self._attach(out, token)


def _rows(body: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("\t")] for line in body.split("\n")]
    return [row for row in rows if any(row)]


def _script_text(text: str, table: dict[str, str]) -> str | None:
    """A text of small letters, or None where one does not exist."""
    if text and all(char in table for char in text):
        return "".join(table[char] for char in text)
    return None


def _fraction(top: str, bottom: str) -> str:
    sides = [side if _SINGLE.fullmatch(side) else f"({side})" for side in (top, bottom)]
    return "/".join(sides)


def _accented(text: str, accent: str) -> str:
    if len(text) > 2:
        raise _NotUnderstood
    return "".join(char + accent for char in text)
