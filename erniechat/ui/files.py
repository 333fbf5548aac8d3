"""Files that the user names: written whole or not at all, read as text or refused."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from erniechat.errors import ErnieChatError, UsageError
from erniechat.paths import user_path
from erniechat.ui.inputs import decode


def check_writable(path: Path, *, force: bool) -> None:
    """Refuse a file that is there already, unless force.

    Raises:
        UsageError: With the way out.
    """
    if path.exists() and not force:
        raise UsageError(f'"{path}" exists already', "add --force to replace it")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f'cannot write "{path}"', "name a file in a folder that exists")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either all there or as it was before.

    Raises:
        ErnieChatError: If it cannot be written.
    """
    path = path.absolute()
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o777)
        else:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as exc:
        with suppress(OSError):
            os.unlink(temporary)
        raise ErnieChatError(f'cannot write "{path}": {exc.strerror}') from exc


def read_texts(pattern: str) -> list[tuple[Path, str]]:
    """The text files that a path or glob pattern names.

    Raises:
        UsageError: If there is none, or one of them is not UTF-8 text.
    """
    path = user_path(pattern)
    paths = [path] if path.exists() else _glob(path)
    if not paths:
        raise UsageError(f'there is no file "{pattern}"')
    return [(found, _read_text(found)) for found in paths]


def _glob(path: Path) -> list[Path]:
    with suppress(ValueError, NotImplementedError, IndexError):
        root = Path(path.anchor) if path.is_absolute() else Path()
        relative = path.relative_to(path.anchor) if path.is_absolute() else path
        return sorted(found for found in root.glob(str(relative)) if found.is_file())
    return []


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(f'cannot read "{path}": {exc.strerror}') from exc
    if b"\0" in data:
        raise UsageError(f'"{path}" is binary: a zero byte at offset {data.index(0)}')
    return decode(data, f'"{path}"')


def as_message(path: Path, text: str) -> str:
    """A file as it stands in a message: its name, then its text between fences."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{path}\n{fence}\n{text.rstrip(chr(10))}\n{fence}"
