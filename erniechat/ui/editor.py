"""A text in the user's own editor."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress

from erniechat.errors import ErnieChatError

DEFAULT_EDITOR = "vi"


def edit_text(text: str, environ: Mapping[str, str]) -> str:
    """Let the user change a text; the file is theirs alone and is gone afterwards.

    Raises:
        ErnieChatError: If the editor cannot be run or fails.
    """
    editor = environ.get("VISUAL") or environ.get("EDITOR") or DEFAULT_EDITOR
    path = ""
    try:
        descriptor, path = tempfile.mkstemp(prefix="erniechat-", suffix=".md")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        status = subprocess.run([*shlex.split(editor), path], check=False).returncode
        if status != 0:
            raise ErnieChatError(f'the editor "{editor}" ended with status {status}')
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except (OSError, ValueError) as exc:
        raise ErnieChatError(
            f'cannot edit with "{editor}": {exc}', "set VISUAL or EDITOR to one that works"
        ) from exc
    finally:
        with suppress(OSError):
            os.unlink(path)
