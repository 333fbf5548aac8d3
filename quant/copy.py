"""The quantized copy on disk: written once as a stream, then memory-mapped at every start.

A copy is a folder of two files. ``weights.bin`` holds the parts of all weights, each at a multiple
of 64 bytes, in the layout that the kernels read. ``index.json`` says what lies where, with a
checksum of every part and of itself. The folder gets its final name only when both files are on
the disk, so what has the name is complete.
"""

import fcntl
import glob
import json
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.tensor import QuantTensor

COPY_VERSION = 1  # part of every key: raise it when files or layouts change
ALIGNMENT = 64
DATA_FILE = "weights.bin"
INDEX_FILE = "index.json"

Weight = QuantTensor | Tensor


class WeightSource(Protocol):
    """Where a model takes its finished weights from."""

    def __getitem__(self, name: str) -> Weight:
        """The weight of that name; KeyError if there is none."""
        ...

    def __iter__(self) -> Iterator[str]:
        """All names."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        ...


class MemoryWeights(dict[str, Weight]):
    """Weights held in memory: the source when no copy is kept."""

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.nbytes for weight in self.values())


def _parts(weight: Weight) -> Mapping[str, Tensor]:
    return {"": weight} if isinstance(weight, Tensor) else weight.parts


def _new_temporary(folder: Path) -> tuple[Path, BufferedWriter]:
    """A folder beside the final one, and its data file, locked while the writer lives."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        file = (temporary / DATA_FILE).open("wb")
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # another writer took it for abandoned before it was locked


def _remove_abandoned(folder: Path) -> None:
    """Delete what writers of this copy left that were killed: gigabytes that no one locks."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        with suppress(OSError), (path / DATA_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


class CopyWriter:
    """Writes a copy weight by weight. Use as a context manager: without `finish` nothing is kept.

    Args:
        folder: Final name of the copy; its parent is made if needed.
        meta: What the copy is of; given back by `QuantizedCopy.meta`.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self._folder = folder
        self._entries: dict[str, Any] = {}
        self._meta = dict(meta)
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_abandoned(folder)
        self._temporary, self._file = _new_temporary(folder)

    def __enter__(self) -> "CopyWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __setitem__(self, name: str, weight: Weight) -> None:
        """Append a weight."""
        entry: dict[str, Any] = {"parts": {n: self._append(p) for n, p in _parts(weight).items()}}
        if isinstance(weight, QuantTensor):
            entry |= {"format": weight.format, "layout": weight.layout, "shape": weight.shape}
        self._entries[name] = entry

    def _append(self, part: Tensor) -> dict[str, Any]:
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        data = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        self._file.write(data)
        return {
            "offset": offset,
            "shape": list(part.shape),
            "dtype": str(part.dtype).removeprefix("torch."),
            "crc32": zlib.crc32(data),
        }

    def finish(self) -> None:
        """Put everything on the disk and give the copy its name.

        If another process finished the same copy first, that one stays and this one goes.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        index = {
            "version": COPY_VERSION,
            "meta": self._meta,
            "nbytes": self._file.tell(),
            "entries": self._entries,
        }
        text = json.dumps(index)
        with (self._temporary / INDEX_FILE).open("w", encoding="utf-8") as file:
            json.dump({"crc32": zlib.crc32(text.encode()), "index": index}, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            self._temporary.rename(self._folder)
        except OSError:
            if not (self._folder / INDEX_FILE).exists():
                raise
        parent = os.open(self._folder.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


class QuantizedCopy:
    """A finished copy, memory-mapped: weights are views of the file and cost no reading.

    Args:
        folder: As given to `CopyWriter`.

    Raises:
        QuantError: If the copy is damaged, cut short or of another version.
        FileNotFoundError: If there is none.
    """

    def __init__(self, folder: Path) -> None:
        index = _read_index(folder)
        self.folder = folder
        self.meta: Mapping[str, Any] = index["meta"]
        self._entries: dict[str, Any] = index["entries"]
        self._memory = _map(folder / DATA_FILE, index["nbytes"])

    def __iter__(self) -> Iterator[str]:
        """All names, in the order of writing."""
        return iter(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the file, all of which may be in memory."""
        return len(self._memory)

    def __getitem__(self, name: str) -> Weight:
        """A weight whose parts are views of the mapped file."""
        entry = self._entries[name]
        parts = {n: self._view(part) for n, part in entry["parts"].items()}
        if "format" not in entry:
            return parts[""]
        out_features, in_features = entry["shape"]
        return QuantTensor(entry["format"], entry["layout"], (out_features, in_features), parts)

    def _view(self, part: Mapping[str, Any]) -> Tensor:
        dtype = getattr(torch, part["dtype"])
        count = torch.Size(part["shape"]).numel()
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=part["offset"])
        return flat.view(part["shape"])

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            QuantError: Naming the first weight that differs.
        """
        for name, entry in self._entries.items():
            for part in entry["parts"].values():
                data = self._view(part).flatten().view(torch.uint8).numpy()
                if zlib.crc32(data.data) != part["crc32"]:
                    raise QuantError(
                        f"{self.folder}: the weight {name} differs from its checksum; "
                        "delete the folder and it will be made again"
                    )


def _map(path: Path, expected_nbytes: int) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes == expected_nbytes:
                # Private: the pages are the page cache's until someone writes, and no one does.
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        nbytes = 0
    raise QuantError(
        f"{path} has {nbytes} bytes instead of {expected_nbytes}; "
        "delete the folder and it will be made again"
    )


def _read_index(folder: Path) -> dict[str, Any]:
    data = (folder / INDEX_FILE).read_bytes()
    try:
        file = json.loads(data.decode("utf-8"))
        index: dict[str, Any] = file["index"]
        intact = zlib.crc32(json.dumps(index).encode()) == file["crc32"]
        version = index["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        intact, version = False, None
    if not intact:
        raise QuantError(
            f"{folder / INDEX_FILE} is damaged; delete the folder and it will be made again"
        )
    if version != COPY_VERSION:
        raise QuantError(
            f"{folder} has version {version} instead of {COPY_VERSION}; "
            "delete the folder and it will be made again"
        )
    return index
