"""Files named in a message as @path: found, priced, and put before it."""

import re
from collections.abc import Callable

from erniechat.errors import UsageError
from erniechat.paths import user_path
from erniechat.ui.files import as_message, read_texts

_NAME = re.compile(r"(?<!\S)@(?:\"([^\"\n]+)\"|(\S+))")


def named_paths(text: str) -> list[str]:
    """The paths in a text that are files; ``@someone`` is left alone."""
    found = []
    for match in _NAME.finditer(text):
        name = match.group(1) or match.group(2)
        for candidate in (name, name.rstrip(".,;:!?)")):
            path = user_path(candidate)
            try:
                is_file = path.is_file()
            except OSError:  # a name too long, for one
                is_file = False
            if is_file and candidate not in found:
                found.append(candidate)
                break
    return found


def expand(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A message, and for each file that it names the path and the text to put before it.

    Raises:
        UsageError: If such a file cannot be read as text.
    """
    files = []
    for name in named_paths(text):
        for path, body in read_texts(name):
            files.append((str(path), as_message(path, body)))
    return text, files


def files_price(
    text: str, count_tokens: Callable[[str], int], known: dict[tuple[object, ...], int]
) -> int:
    """Tokens of the files named in a message; 0 where they cannot be read.

    Args:
        text: The message, at each key that is typed.
        count_tokens: Counts a text.
        known: The last price; a file is read again once it has changed.
    """
    try:
        stats = [(name, user_path(name).stat()) for name in named_paths(text)]
        key = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
        if key not in known:
            bodies = [body for _, body in expand(text)[1]]
            known.clear()
            known[key] = count_tokens("\n\n".join(bodies)) if bodies else 0
    except (OSError, UsageError):
        return 0
    return known[key]
