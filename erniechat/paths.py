"""Paths as users type them."""

import os
from pathlib import Path


def user_path(text: str) -> Path:
    """A path whose ``~`` and ``~name`` are resolved; one of a user who is unknown stays as it is.

    Path.expanduser raises RuntimeError for such a one.
    """
    return Path(os.path.expanduser(text))
