"""The quantized copy on disk: memory-mapped at every start, checked part by part.

A copy is a folder of two files. ``weights.bin`` holds the parts of all weights, each at a multiple
of 64 bytes, in the layout that the kernels read. ``index.json`` says what lies where, with a
checksum of every part and of itself. The folder gets its final name only when both files are on
the disk, so what has the name is complete. `quant.copy_writer` writes it.
"""

import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quant.copy_index import DTYPES, Place, damaged_index, is_entry, read_index
from quant.copy_names import DATA_FILE
from quant.errors import QuantError
from quant.pages import ask_for_large_pages, read_pages
from quant.tensor import QuantTensor
from quant.watch import watch

PIECE_NBYTES = 16 << 20  # a hundredth of a second of a fast disk

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


def weight_parts(weight: Weight) -> Mapping[str, Tensor]:
    """The tensors that a weight is made of, by name."""
    return {"": weight} if isinstance(weight, Tensor) else weight.parts


def part_bytes(part: Tensor) -> memoryview:
    """The bytes of a part as the copy has them."""
    data: memoryview = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return data


class QuantizedCopy:
    """A finished copy, memory-mapped: weights are views of the file and cost no reading.

    Args:
        folder: As given to `CopyWriter`.

    Raises:
        QuantError: If the copy is damaged, cut short or of another version.
        FileNotFoundError: If there is none.
    """

    def __init__(self, folder: Path) -> None:
        index = read_index(folder)
        self.folder = folder
        self.meta: Mapping[str, Any] = index["meta"]
        self._entries: dict[str, Any] = index["entries"]
        if not all(is_entry(entry, index["nbytes"]) for entry in self._entries.values()):
            raise QuantError(damaged_index(folder))
        self._memory = _map(folder / DATA_FILE, index["nbytes"])
        self._is_lost = watch(self._memory)

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

    @property
    def path(self) -> Path:
        """The data file."""
        return self.folder / DATA_FILE

    def check(self) -> None:
        """Refuse what was computed since the file could no longer be read.

        Raises:
            QuantError: From then on, always: what is mapped is lost.
        """
        if self._is_lost():
            raise QuantError(
                f"{self.path} can no longer be read: it was cut short, or its disk fails; start "
                "again, and if that fails too delete its folder: it will be made again"
            )

    def page_calls(self) -> list[Callable[[], object]]:
        """Calls that bring the file into memory piece by piece, before it is asked for."""
        return [
            partial(read_pages, self._memory, begin, PIECE_NBYTES)
            for begin in range(0, self.nbytes, PIECE_NBYTES)
        ]

    def let_go(self) -> None:
        """Count none of the file as this process' memory until it is read again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # nothing was written, so nothing is lost
            self._memory.madvise(mmap.MADV_DONTNEED)

    def place(self, name: str) -> Place:
        """Where a quantized weight lies in the data file; KeyError if there is none."""
        entry = self._entries[name]
        parts = {
            part_name: (part["offset"], tuple(part["shape"]), DTYPES[part["dtype"]])
            for part_name, part in entry["parts"].items()
        }
        out_features, in_features = entry["shape"]
        return Place(entry["format"], entry["layout"], (out_features, in_features), parts)

    def _view(self, part: Mapping[str, Any]) -> Tensor:
        dtype = DTYPES[part["dtype"]]
        count = torch.Size(part["shape"]).numel()
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=part["offset"])
        return flat.view(part["shape"])

    def damaged(
        self,
        largest_nbytes: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Read weights, compare each part with its checksum, and name those that differ.

        Args:
            largest_nbytes: Of weights of one part only those that are no larger; None for all.
            progress: Called with bytes read and bytes in all.
        """
        found, done = [], 0
        for name, entry in self._entries.items():
            parts = list(entry["parts"].values())
            is_wanted = largest_nbytes is None or (
                len(parts) == 1 and parts[0]["nbytes"] <= largest_nbytes
            )
            if not is_wanted:
                continue
            for part in parts:
                end = part["offset"] + part["nbytes"]
                if zlib.crc32(memoryview(self._memory)[part["offset"] : end]) != part["crc32"]:
                    found.append(name)
                    break
            if progress:
                done = max(done, end)
                progress(done, self.nbytes)
        return found

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            QuantError: Naming the first weight that differs.
        """
        for name in self.damaged():
            raise QuantError(
                f"{self.folder}: the weight {name} differs from its checksum; "
                "delete the folder and it will be made again"
            )

    def repair(self, name: str, weight: Weight) -> bool:
        """Write a weight anew where it lies; whoever has the copy mapped sees it at once.

        Args:
            name: Of the weight.
            weight: Made from the same checkpoint.

        Returns:
            Whether it is what was there once; if not, nothing is written.

        Raises:
            OSError: If the file cannot be written.
        """
        entry = self._entries[name]["parts"]
        data = {key: part_bytes(part) for key, part in weight_parts(weight).items()}
        if data.keys() != entry.keys() or any(
            zlib.crc32(data[key]) != part["crc32"] for key, part in entry.items()
        ):
            return False
        with (self.folder / DATA_FILE).open("r+b") as file:
            for key, part in entry.items():
                file.seek(part["offset"])
                file.write(data[key])
            file.flush()
            os.fsync(file.fileno())
        return True


def _map(path: Path, expected_nbytes: int) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes == expected_nbytes:
                # Private: the pages are the page cache's until someone writes, and no one does.
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                ask_for_large_pages(memory)
                return memory
    except FileNotFoundError:
        nbytes = 0
    raise QuantError(
        f"{path} has {nbytes} bytes instead of {expected_nbytes}; "
        "delete the folder and it will be made again"
    )
