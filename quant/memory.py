"""Bytes free and allowed on each device, and bytes that this process holds. Units are bytes."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import torch

from quant.cgroups import PROC_SELF, ROOT, group_folders, read


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of the host or of a GPU.

    Attributes:
        free_nbytes: What can be taken now without pushing out anything but cached files.
        total_nbytes: What this process may ever have: all there is, or a container's limit.
    """

    free_nbytes: int
    total_nbytes: int


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Host memory of this process, mapped files that are in memory included.

    Attributes:
        rss_nbytes: Now.
        peak_rss_nbytes: At most since it started.
    """

    rss_nbytes: int
    peak_rss_nbytes: int


def host_memory(cgroup_root: Path = ROOT, proc_self: Path = PROC_SELF) -> DeviceMemory:
    """The host's memory, or what the container or service around this process leaves of it.

    Cached files of a control group count as free, as they do for the whole machine: the kernel
    drops them first, and a mapped checkpoint would otherwise look like memory in use.

    Args:
        cgroup_root: Where the control groups are mounted, version 1 or 2.
        proc_self: This process in the proc file system.
    """
    machine = psutil.virtual_memory()
    free, total = int(machine.available), int(machine.total)
    for limit, used in _cgroup_limits(cgroup_root, proc_self):
        free = min(free, max(limit - used, 0))
        total = min(total, limit)
    return DeviceMemory(free, total)


def gpu_memory(device: torch.device) -> DeviceMemory | None:
    """A GPU's memory over all processes; None if there is no such GPU.

    What torch holds in its cache and no tensor uses counts as free.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return DeviceMemory(free + cached, total)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory; torch has a type of it for GPUs only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def process_memory(proc_self: Path = PROC_SELF) -> ProcessMemory:
    """Host memory of this process, now and at most.

    Linux' own peak (VmHWM) comes first: ru_maxrss outlives an exec, so that a process started by
    a large one would report that one's size. ru_maxrss is in KiB on Linux, in bytes on macOS;
    Windows has a peak of its own.
    """
    info = psutil.Process().memory_info()
    rss = int(info.rss)
    peak = _peak_of_status(proc_self / "status") or _peak_of_usage()
    return ProcessMemory(rss, max(rss, peak or int(getattr(info, "peak_wset", rss))))


def _peak_of_usage() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak_of_status(path: Path) -> int | None:
    for line in read(path).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # the kernel writes KiB and calls them kB
    return None


def _cgroup_limits(cgroup_root: Path, proc_self: Path) -> Iterator[tuple[int, int]]:
    """Limit and bytes in use of every control group around this process that has a limit."""
    second, first = group_folders("memory", cgroup_root, proc_self)
    for folder in second:
        yield from _limits_of(folder, ("memory.max", "memory.high"), "memory.current", "")
    for folder in first:
        yield from _limits_of(folder, ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")


def _limits_of(
    folder: Path, limit_names: tuple[str, ...], usage_name: str, stat_prefix: str
) -> Iterator[tuple[int, int]]:
    usage = read(folder / usage_name).strip()
    if not usage.isdigit():  # the root group has no such file
        return
    stat = dict(line.split(" ", 1) for line in read(folder / "memory.stat").splitlines())
    cached = sum(int(stat.get(f"{stat_prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    for name in limit_names:
        limit = read(folder / name).strip()
        if limit.isdigit():  # "max" means none
            yield int(limit), max(int(usage) - cached, 0)
