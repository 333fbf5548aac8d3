"""How many threads a computation should use: the physical cores that this process may use."""

import math
import os
from pathlib import Path

from quant.cgroups import PROC_SELF, ROOT, group_folders, read

TOPOLOGY = Path("/sys/devices/system/cpu")


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


def quota_cores(cgroups: Path = ROOT, proc_self: Path = PROC_SELF) -> float:
    """Cores that the quotas of a container or a service allow; infinity without one."""
    second, first = group_folders("cpu", cgroups, proc_self)
    quotas = [read(folder / "cpu.max").split() for folder in second]
    quotas += [
        [read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        for folder in first
    ]
    cores = [
        int(quota[0]) / int(quota[1])
        for quota in quotas
        if len(quota) == 2 and all(map(str.isdigit, quota))  # "max" and -1 mean none
    ]
    return min(cores, default=math.inf)


def default_num_threads() -> int:
    """Physical cores within affinity and quota, at least one."""
    cores = min(physical_cores(allowed_cpus()), quota_cores())
    return max(1, int(cores))
