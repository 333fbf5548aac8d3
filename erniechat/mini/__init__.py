"""The built-in model, found by the name `mini`: its checkpoint, and the scripts that made it.

Only the loader imports this package, and it needs nothing but `checkpoint_folder`.
"""

from pathlib import Path

__all__ = ["checkpoint_folder"]


def checkpoint_folder() -> Path:
    """Return the folder of the built-in checkpoint, in the layout of a hub repository."""
    return Path(__file__).resolve().parent / "checkpoint"
