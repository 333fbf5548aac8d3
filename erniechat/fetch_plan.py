"""What a start will fetch and keep, and whether the disks hold it: a pure function of sizes.

Nothing here looks at a disk or the network. All sizes are bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# An index, blocks of the file system, and what other programs write meanwhile.
RESERVE_NBYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system.

    Attributes:
        device: Equal for all folders on it.
        folder: A folder on it, for people.
        free_nbytes: What this user may still write.
    """

    device: int
    folder: str
    free_nbytes: int


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What one file system must hold at most at one time.

    Attributes:
        disk: Which.
        parts: Bytes by what they are.
    """

    disk: Disk
    parts: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """In all."""
        return sum(self.parts.values())

    @property
    def lacking_nbytes(self) -> int:
        """What is too little, 0 if it fits."""
        return max(0, self.nbytes + RESERVE_NBYTES - self.disk.free_nbytes)


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What a start fetches and keeps.

    Attributes:
        download_nbytes: To be fetched.
        num_files: So many shards of ``num_shards``.
        keep_nbytes: What the copy adds for the next start; 0 if it is here or none is kept.
        has_copy: Whether a finished copy is here, and nothing has to be quantized.
        needs: By file system.
    """

    download_nbytes: int
    num_files: int
    num_shards: int
    keep_nbytes: int
    has_copy: bool
    needs: tuple[DiskNeed, ...]

    @property
    def fits(self) -> bool:
        """Whether every disk holds it."""
        return not any(need.lacking_nbytes for need in self.needs)


def plan_fetch(
    shard_nbytes: Sequence[int],
    missing_nbytes: Sequence[int],
    copy_nbytes: int,
    *,
    has_copy: bool,
    keeps_copy: bool,
    discards: bool,
    hub_disk: Disk,
    copy_disk: Disk,
) -> FetchPlan:
    """What a start fetches and keeps.

    Args:
        shard_nbytes: Of all shards.
        missing_nbytes: What is still to come of each shard that is not here.
        copy_nbytes: What a finished copy has beyond what is written of it already.
        has_copy: Whether it is finished.
        keeps_copy: Whether one is kept at all.
        discards: Whether a shard is deleted once its tensors are in the copy; then at most two
            are there at one time.
        hub_disk: Where shards go.
        copy_disk: Where the copy goes.
    """
    if has_copy:
        return FetchPlan(0, 0, len(shard_nbytes), 0, True, ())
    peak = sum(missing_nbytes)
    if discards and keeps_copy:
        peak = min(peak, sum(sorted(missing_nbytes)[-2:]))
    keep = copy_nbytes if keeps_copy else 0
    wanted = [(hub_disk, {"download": peak}), (copy_disk, {"copy": keep})]
    if hub_disk.device == copy_disk.device:
        wanted = [(copy_disk, {"download": peak, "copy": keep})]
    needs = tuple(DiskNeed(disk, parts) for disk, parts in wanted if sum(parts.values()))
    num_files = sum(nbytes > 0 for nbytes in missing_nbytes)
    return FetchPlan(sum(missing_nbytes), num_files, len(shard_nbytes), keep, False, needs)
