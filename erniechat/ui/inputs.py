"""What the user hands in: stdin, joined prompts, system prompts from files."""

import os
import threading
import time

from erniechat.errors import UsageError
from erniechat.paths import user_path

WAIT_NOTICE_SECONDS = 2.0
WAIT_NOTICE = "waiting for stdin (Ctrl-D ends it, --no-stdin ignores it)"


class StdinReader:
    """Reads a file descriptor to its end on a thread, so that the model can load meanwhile."""

    def __init__(self, file_descriptor: int) -> None:
        self._file_descriptor = file_descriptor
        self._chunks: list[bytes] = []
        self._error: OSError | None = None
        self._heard_at = time.monotonic()
        self._done = threading.Event()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        # os.read, not the buffered stream: a thread stuck in that would hold its lock for ever.
        try:
            while chunk := os.read(self._file_descriptor, 1 << 16):
                self._chunks.append(chunk)
                self._heard_at = time.monotonic()
        except OSError as exc:
            self._error = exc
        finally:
            self._done.set()

    @property
    def done(self) -> bool:
        """Whether the end of stdin was reached."""
        return self._done.is_set()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last byte, or since the start."""
        return 0.0 if self.done else time.monotonic() - self._heard_at

    def text(self, encoding: str = "utf-8", errors: str = "refuse") -> str:
        """All that was read. Only when done; see `decode`.

        Raises:
            UsageError: If it is not text, with the offset of the first bad byte.
        """
        if self._error is not None:
            raise UsageError(f"cannot read stdin: {self._error.strerror}")
        hint = "name its --encoding, or take --errors replace"
        return decode(b"".join(self._chunks), "stdin", encoding, errors, hint=hint)


def decode(
    data: bytes, name: str, encoding: str = "utf-8", errors: str = "refuse", *, hint: str = ""
) -> str:
    """Bytes as text.

    Args:
        data: The bytes.
        name: What the message calls them.
        encoding: Their encoding.
        errors: refuse, or replace for U+FFFD in the place of what is no text.
        hint: What to do about bytes that are no text.

    Raises:
        UsageError: If they are not, with the place of the first bad byte or zero.
    """
    shown = "UTF-8" if encoding == "utf-8" else encoding
    try:
        text = data.decode(encoding, "strict" if errors == "refuse" else errors)
    except UnicodeDecodeError as exc:
        bad = f"byte 0x{data[exc.start]:02x} at offset {exc.start}"
        raise UsageError(f"{name} is not {shown} text: {bad}", hint) from exc
    if errors == "refuse" and "\0" in text:  # UTF-16 without its mark, or a binary file
        raise UsageError(f"{name} is not {shown} text: character {text.index(chr(0))} is 0", hint)
    return text


def has_stray_bytes(text: str) -> bool:
    """Whether an argument has bytes that are no text; Python keeps them as half surrogate pairs."""
    return any("\udc80" <= char <= "\udcff" for char in text)


def check_argument(text: str, name: str) -> str:
    """The text of an argument.

    Args:
        text: The argument.
        name: What the message calls it.

    Raises:
        UsageError: If it has bytes that are no text.
    """
    if has_stray_bytes(text):
        decode(text.encode("utf-8", "surrogateescape"), name)
    return text


def join_prompt(stdin: str, prompt: str | None, text: str) -> str:
    """One prompt from stdin, -p and positional text, in this order, a blank line between.

    Raises:
        UsageError: If there is nothing but white space.
    """
    parts = [stdin.rstrip("\n"), "" if prompt in (None, "-") else prompt or "", text]
    joined = "\n\n".join(part for part in parts if part.strip())
    check_argument("".join(parts[1:]), "the prompt")
    if not joined:
        raise UsageError("the prompt is empty", 'give -p "TEXT" or pipe text into stdin')
    return joined


def _read_file(path: str, what: str) -> str:
    try:
        data = user_path(path).read_bytes()
    except OSError as exc:
        raise UsageError(f'cannot read {what} "{path}": {exc.strerror}') from exc
    return decode(data, f'{what} "{path}"')


def read_system(value: str | None) -> str | None:
    """The system prompt that ``TEXT`` or ``@FILE`` stands for.

    Raises:
        UsageError: If the file cannot be read as UTF-8.
    """
    if value is None or not value.startswith("@"):
        return value and check_argument(value, "the system prompt")
    return _read_file(value[1:], "the system prompt").rstrip("\n")
