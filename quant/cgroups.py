"""The control groups around this process, which limit what it gets of the machine."""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROC_SELF = Path("/proc/self")


def group_folders(
    controller: str, root: Path = ROOT, proc_self: Path = PROC_SELF
) -> tuple[list[Path], list[Path]]:
    """The folders of this process' groups, innermost first; a container often sees only its own.

    Args:
        controller: For instance memory or cpu.
        root: Where the control groups are mounted.
        proc_self: This process in the proc file system.

    Returns:
        Those of version 2, and the controller's of version 1.
    """
    second, first = [], []
    for line in read(proc_self / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            second += _folders_up(root, path)
        elif controller in controllers.split(","):
            first += _folders_up(root / controller, path)
    return second, first


def read(path: Path) -> str:
    """The text of a kernel file; empty where there is none or it may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _folders_up(root: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
