"""Text for people: control characters made visible, and numbers with their units."""

import unicodedata

_SYMBOLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_SYMBOLS[0x7F] = "␡"
_SYMBOLS |= {code: f"‹{code:02x}›" for code in range(0x80, 0xA0)}

_ASCII = str.maketrans(
    {"·": "-", "›": ">", "…": "...", "→": "->", "←": "<-", "–": "-", "│": "|", "⏹": "*", "−": "-"}
)


def visible(text: str) -> str:
    """The text with C0 and C1 control characters other than newline and tab as symbols.

    What a model writes must not command the terminal: ESC becomes ␛, BEL ␇, CSI ‹9b›.
    """
    return text.translate(_SYMBOLS)


def one_line(text: str) -> str:
    """The text on one line, control characters made visible."""
    return visible(" ".join(text.split()))


def ascii_only(text: str) -> str:
    """The text with this program's own signs in ASCII, for terminals that are not UTF-8."""
    return text.translate(_ASCII)


def display_width(text: str) -> int:
    """Columns that a line takes: 2 for wide characters, 0 for combining ones."""
    return sum(map(char_width, text))


def char_width(char: str) -> int:
    """Columns that one character takes."""
    if char < "\u0300":
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, width: int) -> str:
    """The longest beginning of a line that fits into width columns."""
    used = 0
    for index, char in enumerate(text):
        used += char_width(char)
        if used > width:
            return text[:index]
    return text


def join_fitting(parts: list[str], width: int, separator: str = " · ") -> str:
    """The parts in one line, as many from the left as fit into width columns."""
    while len(parts) > 1 and display_width(separator.join(parts)) > width:
        parts = parts[:-1]
    return clip(separator.join(parts), width)


def count(number: int) -> str:
    """A count with thousands set apart: 12,345."""
    return f"{number:,}"


def exchanges(number: int) -> str:
    """A number of exchanges: 1 exchange, 6 exchanges."""
    return "1 exchange" if number == 1 else f"{count(number)} exchanges"


def short_count(number: int) -> str:
    """A count in at most five characters: 182, 4.2k, 32.8k, 131k."""
    if number < 1000:
        return str(number)
    thousands = number / 1000
    return f"{thousands:.1f}k" if thousands < 99.95 else f"{thousands:.0f}k"


def seconds(value: float) -> str:
    """A duration: 0.4 s, 84.0 s, 7 min 02 s."""
    if value < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def whole_seconds(value: float) -> str:
    """A duration in words: 1 second, 6 seconds."""
    number = max(round(value), 1)
    return "1 second" if number == 1 else f"{number} seconds"


def rate(tokens: int, value: float) -> str:
    """Tokens per second: 67.2, or – where nothing was timed."""
    if value <= 0 or tokens <= 0:
        return "–"
    speed = tokens / value
    return f"{speed:.1f}" if speed < 1000 else f"{speed:,.0f}"


def gib(nbytes: int) -> str:
    """Bytes in GiB, or what reads better: 11.6 GiB, 84 MiB, 20 KiB."""
    if 0 < nbytes < 1 << 20:
        return f"{-(-nbytes >> 10)} KiB"
    if nbytes < 1 << 30:
        return f"{nbytes / (1 << 20):.0f} MiB"
    return f"{nbytes / (1 << 30):.1f} GiB"
