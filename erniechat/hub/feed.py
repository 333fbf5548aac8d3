"""Shards as they arrive: downloads in the background, in order, ahead of who reads them."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from erniechat.errors import ModelNotFoundError
from erniechat.hub.failures import Stopped
from erniechat.hub.fetch import fetch_shard
from erniechat.hub.listing import HubFile, HubModel
from erniechat.sizes import shown_file_size

NUM_PARALLEL = 3
MAX_KEPT = 2  # shards on the disk at one time where they are deleted once they are read
POLL_SECONDS = 0.1

Report = Callable[[int, int], None]


class ShardFeed:
    """Downloads the missing shards of a model. Use as a context manager.

    Args:
        model: On the hub.
        needed: Paths of the shards that something is still to be read from; others are let be.
        report: Told bytes here and bytes in all, from several threads.
        discards: Whether `release` deletes a shard. Then one is downloaded while one is read.
    """

    def __init__(
        self, model: HubModel, needed: set[Path], report: Report, *, discards: bool = False
    ) -> None:
        self._model = model
        self._report = report
        self._discards = discards
        self._paths = [model.folder / shard.name for shard in model.shards]
        self._here = [path.exists() for path in self._paths]
        self._nbytes = [
            shard.nbytes if here or path not in needed else 0
            for shard, here, path in zip(model.shards, self._here, self._paths, strict=True)
        ]
        self._released = [path not in needed for path in self._paths]
        self._wanted = 0  # up to this one they are needed now
        self._next = 0
        self._errors: list[BaseException] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"download-{i}", daemon=True)
            for i in range(1 if discards else NUM_PARALLEL)
        ]

    def __enter__(self) -> "ShardFeed":
        for shard, here, released in zip(
            self._model.shards, self._here, self._released, strict=True
        ):
            if self._discards and here and released:  # an earlier start ended before it did this
                discard(self._model, shard)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (index := self._take()) is not None:
            shard = self._model.shards[index]
            try:
                fetch_shard(
                    self._model,
                    shard,
                    lambda nbytes, index=index: self._progress(index, nbytes),  # type: ignore[misc]
                    lambda: self._is_closed,
                )
            except Stopped:
                return
            except BaseException as exc:
                with self._changed:
                    self._errors.append(exc)
                    self._is_closed = True
                    self._changed.notify_all()
                return
            with self._changed:
                self._here[index] = True
                self._changed.notify_all()

    def _take(self) -> int | None:
        """The next shard to download, once that may begin; None if there is none."""
        with self._changed:
            while not self._is_closed:
                while self._next < len(self._paths) and self._is_done(self._next):
                    self._next += 1
                if self._next == len(self._paths):
                    return None
                if self._may_begin(self._next):
                    self._next += 1
                    return self._next - 1
                self._changed.wait()
        return None

    def _is_done(self, index: int) -> bool:
        return self._here[index] or self._released[index]

    def _may_begin(self, index: int) -> bool:
        if not self._discards or index <= self._wanted:
            return True
        kept = sum(
            here and not released for here, released in zip(self._here, self._released, strict=True)
        )
        return index == self._wanted + 1 and kept < MAX_KEPT

    def _progress(self, index: int, nbytes: int) -> None:
        self._nbytes[index] = nbytes
        self._report(sum(self._nbytes), sum(shard.nbytes for shard in self._model.shards))

    def wait_for(self, paths: Iterable[Path]) -> None:
        """Return once these shards are here.

        Raises:
            ErnieChatError: If one cannot be had.
        """
        wanted = [self._paths.index(path) for path in paths]
        with self._changed:
            self._wanted = max([self._wanted, *wanted])
            self._changed.notify_all()
            while not all(self._here[index] for index in wanted):
                if self._errors:
                    raise self._errors[0]
                self._changed.wait(POLL_SECONDS)

    def release(self, path: Path) -> None:
        """A shard is not needed any more; where originals are not kept it is deleted."""
        index = self._paths.index(path)
        with self._changed:
            if self._released[index]:
                return
            self._released[index] = True
            if self._discards:
                discard(self._model, self._model.shards[index])
            self._changed.notify_all()


def discard(model: HubModel, shard: HubFile) -> None:
    """Delete a shard from the hub's cache: its link in this snapshot, and the content behind it.

    A file behind it is deleted only if it is in the cache's part for this model.
    """
    link = model.folder / shard.name
    blobs = (model.folder.parent.parent / "blobs").resolve()
    target = link.resolve()
    link.unlink(missing_ok=True)
    if target.parent == blobs:
        target.unlink(missing_ok=True)


def check_online(model: HubModel, *, offline: bool) -> None:
    """Refuse to fetch what is missing where the network may not be used.

    Raises:
        ModelNotFoundError: With the number of files and their size.
    """
    from huggingface_hub import constants

    if (offline or constants.HF_HUB_OFFLINE) and model.missing:
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        raise ModelNotFoundError(
            f"offline ({why}), and {len(model.missing)} of {len(model.shards)} files of "
            f"{model.name} are not in the cache ({shown_file_size(sum(missing_nbytes(model)))})",
            "go online to fetch them, or use a complete model: erniechat cache ls",
        )


def missing_nbytes(model: HubModel) -> list[int]:
    """What is still to come of each shard that is not here; downloads are gone on with."""
    blobs = model.folder.parent.parent / "blobs"
    found = []
    for shard in model.missing:
        incomplete = blobs / f"{shard.identity}.incomplete"
        have = incomplete.stat().st_size if incomplete.exists() else 0
        found.append(max(shard.nbytes - have, 0))
    return found
