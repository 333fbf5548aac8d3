"""Where the measured figures of this machine are kept, and whose they are."""

from collections.abc import Callable
from pathlib import Path

import platformdirs
import torch

from erniechat import __version__
from quant.figures import KeptFigures, machine_name

PLACES = ("ram", "gpu", "bus", "disk")


def figures_path() -> Path:
    """The file of measured figures."""
    return platformdirs.user_cache_path("erniechat") / "machine.json"


def kept_figures(device: torch.device, *, keep: bool = True) -> KeptFigures:
    """What is known of this machine with a model on a device.

    Args:
        device: Where the model runs.
        keep: Else nothing is known, and nothing will be kept.
    """
    path = figures_path() if keep else None
    return KeptFigures(path, machine_name(device, f"erniechat {__version__}"))


def place_speeds(figures: KeptFigures) -> dict[str, float]:
    """Bytes a second by place, as far as they are known."""
    return {name: speed for name in PLACES if (speed := figures.get(name)) is not None}


def keep_figures(figures: KeptFigures, warn: Callable[[str], None]) -> bool:
    """Write what was measured, if anything was; what fails costs the next start a measurement.

    Returns:
        Whether it is kept.
    """
    try:
        figures.save()
    except OSError as exc:
        warn(f"cannot keep the measured speeds in {figures_path()}: {exc.strerror}")
        return False
    return True
