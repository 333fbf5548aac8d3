"""How many threads a computation should use: the physical cores that this process may use."""

import math
import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")


def allowed_cpus() -> set[int]:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: set[int], topology: Path = TOPOLOGY) -> int:
    """Cores among logical processors; as many as processors where the system does not tell."""
    cores = set()
    for cpu in cpus:
        siblings = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return math.nan


def quota_cores(cgroups: Path = CGROUPS) -> float:
    """Cores that a container's quota allows; infinity without one."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()  # version 2
        if quota != "max":
            return float(quota) / float(period)
    except (OSError, ValueError):
        quota_us = _number(cgroups / "cpu" / "cpu.cfs_quota_us")  # version 1, −1 for none
        cores = quota_us / _number(cgroups / "cpu" / "cpu.cfs_period_us")
        if cores > 0:
            return cores
    return math.inf


def default_num_threads() -> int:
    """Physical cores within affinity and quota, at least one."""
    cores = min(physical_cores(allowed_cpus()), quota_cores())
    return max(1, int(cores))
