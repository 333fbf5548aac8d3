"""What was measured of a machine, kept in a small file until it is old or of another machine.

Whoever needs a figure asks `KeptFigures.get`, and measures what is not there. A figure may have
been measured while other programs were busy, so none is believed for ever: see `MAX_AGE_SECONDS`
and `is_doubted`.
"""

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from quant.kernels.native import num_threads
from quant.kernels.native.library import find_library

KIND, VERSION = "machine", 1
MAX_AGE_SECONDS = 14 * 86_400.0
MAX_MACHINES = 8  # in one file: a home may be shared, and --threads makes another one
DOUBT = 1.25  # a probe so many times as fast as what is kept shows that this was measured badly
CPU_INFO = Path("/proc/cpuinfo")


def machine_name(device: torch.device, program: str, cpu_info: Path = CPU_INFO) -> str:
    """What figures depend on: processor, threads, instruction set, GPU and its bus, program.

    Args:
        device: That the model runs on.
        program: Name and version of the program.
        cpu_info: As Linux has it.
    """
    found = find_library()
    kernels = "torch" if isinstance(found, str) else found.paths[0]
    threads = torch.get_num_threads() if isinstance(found, str) else num_threads()
    parts = [_cpu(cpu_info), f"{threads} threads", kernels]
    if device.type == "cuda" and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(device)
        parts.append(f"{gpu.name} {getattr(gpu, 'pci_bus_id', '')}".strip())
    return " · ".join([*parts, f"torch {torch.__version__}", program])


def _cpu(cpu_info: Path) -> str:
    with suppress(OSError):
        for line in cpu_info.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def is_doubted(kept: float, probed: float) -> bool:
    """Whether a quick probe shows a kept speed to be too low; a slower probe shows nothing."""
    return probed > DOUBT * kept


class KeptFigures:
    """Figures by name: speeds in bytes a second, times in seconds.

    Args:
        path: The file; None keeps them for this object's life only.
        machine: As `machine_name` has it; figures of others are left alone.
        now: Seconds since the epoch.
    """

    def __init__(
        self, path: Path | None, machine: str, now: Callable[[], float] = time.time
    ) -> None:
        self._path, self._machine, self._now = path, machine, now
        self._figures = dict(_read(path).get(machine, {}))
        self._is_changed = False

    def get(self, name: str) -> float | None:
        """A figure; None if it was never measured, or too long ago."""
        value, measured_at = self._figures.get(name, (0.0, -math.inf))
        is_new = abs(self._now() - measured_at) <= MAX_AGE_SECONDS  # a clock may have been wrong
        return value if is_new else None

    def measured(self, name: str, measure: Callable[[], float]) -> float:
        """A figure, measured now unless it is known; `save` keeps it."""
        value = self.get(name)
        if value is None:
            value = measure()
            self.put({name: value})
        return value

    def put(self, figures: Mapping[str, float]) -> None:
        """Take figures that were measured now; `save` keeps them."""
        self._figures |= {name: (value, self._now()) for name, value in figures.items()}
        self._is_changed = True

    def forget(self) -> None:
        """Believe nothing of this machine any more; `save` makes it so."""
        self._figures = {}
        self._is_changed = True

    def save(self) -> None:
        """Write the file if there is news; of two processes that do so the last wins.

        Raises:
            OSError: If it cannot be written.
        """
        if self._path is None or not self._is_changed:
            return
        machines = _read(self._path)
        machines.pop(self._machine, None)
        kept = list(machines.items())[-(MAX_MACHINES - 1) :]
        fields = {
            "kind": KIND,
            "version": VERSION,
            "machines": {**dict(kept), self._machine: self._figures},
        }
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(fields, file, indent=1)
            os.replace(name, self._path)
            self._is_changed = False
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def _read(path: Path | None) -> dict[str, dict[str, tuple[float, float]]]:
    """What a file holds by machine and name; what is damaged in it is not there."""
    try:
        fields = json.loads(path.read_text("utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict) or (fields.get("kind"), fields.get("version")) != (
        KIND,
        VERSION,
    ):
        return {}
    machines = fields.get("machines")
    if not isinstance(machines, dict):
        return {}
    return {
        machine: {name: pair for name, found in figures.items() if (pair := _pair(found))}
        for machine, figures in machines.items()
        if isinstance(figures, dict)
    }


def _pair(found: object) -> tuple[float, float] | None:
    """A figure and when it was measured; None for anything else."""
    if not isinstance(found, list) or len(found) != 2:
        return None
    value, measured_at = found
    if not all(type(x) in (int, float) and math.isfinite(x) for x in (value, measured_at)):
        return None
    return (float(value), float(measured_at)) if value > 0 else None
