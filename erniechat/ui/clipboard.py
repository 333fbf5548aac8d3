"""Text into the clipboard: by the terminal, which works over SSH, else by a local program."""

import base64
import shutil
import subprocess
from collections.abc import Mapping

from erniechat.errors import ErnieChatError
from erniechat.ui.screen import Screen

MAX_OSC_BYTES = 74_000  # what terminals take of one OSC 52
PROGRAMS = (
    ("wl-copy", ()),
    ("xclip", ("-selection", "clipboard")),
    ("xsel", ("--clipboard", "--input")),
    ("pbcopy", ()),
)


def osc52(text: str, *, in_tmux: bool) -> str:
    """The sequence that asks a terminal to copy a text; tmux passes it on when it is wrapped."""
    data = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    sequence = f"\x1b]52;c;{data}\x07"
    if in_tmux:
        return f"\x1bPtmux;{sequence.replace(chr(27), chr(27) * 2)}\x1b\\"
    return sequence


def copy_text(text: str, screen: Screen, environ: Mapping[str, str]) -> str:
    """Copy a text; how it was done, in words.

    Raises:
        ErnieChatError: If there is no way.
    """
    if screen.moves_cursor and len(text.encode("utf-8", "replace")) * 4 // 3 <= MAX_OSC_BYTES:
        screen.console.file.write(osc52(text, in_tmux=bool(environ.get("TMUX"))))
        screen.console.file.flush()
        return "by the terminal (OSC 52)"
    for program, arguments in PROGRAMS:
        found = shutil.which(program)
        if found is None:
            continue
        try:
            data = text.encode("utf-8", "replace")
            subprocess.run([found, *arguments], input=data, check=True, timeout=5)
        except (OSError, subprocess.SubprocessError):
            continue
        return f"by {program}"
    raise ErnieChatError("there is no way to the clipboard here", "/export txt FILE writes a file")
