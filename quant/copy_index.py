"""The index of a quantized copy: what lies where in its data file. It is checked before use."""

import json
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quant.copy_names import COPY_VERSION, INDEX_FILE
from quant.errors import QuantError
from quant.tensor import QuantTensor

ALIGNMENT = 64

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a quantized weight lies in the copy's data file.

    Attributes:
        format: Of the weight.
        layout: Of its parts.
        shape: ``(out_features, in_features)``.
        parts: By name the first byte in the file, the shape and the dtype.
    """

    format: str
    layout: str
    shape: tuple[int, int]
    parts: Mapping[str, tuple[int, tuple[int, ...], torch.dtype]]

    def span(self) -> tuple[int, int]:
        """The first byte, and the one after the last."""
        ends = [
            begin + torch.Size(shape).numel() * dtype.itemsize
            for begin, shape, dtype in self.parts.values()
        ]
        return min(begin for begin, _, _ in self.parts.values()), max(ends)

    def view(self, memory: mmap.mmap | memoryview, origin: int) -> QuantTensor:
        """The weight in a buffer whose first byte is the file's byte number origin."""
        parts = {
            name: torch.frombuffer(
                memory, dtype=dtype, count=torch.Size(shape).numel(), offset=begin - origin
            ).view(shape)
            for name, (begin, shape, dtype) in self.parts.items()
        }
        return QuantTensor(self.format, self.layout, self.shape, parts)


def is_entry(entry: Any, nbytes: int) -> bool:
    """Whether an entry of an index describes a weight that lies within the file."""
    try:
        for part in entry["parts"].values():
            numel = torch.Size(part["shape"]).numel()
            sizes = (part["offset"], part["nbytes"], *part["shape"])
            if (
                any(type(size) is not int or size < 0 for size in sizes)
                or part["offset"] % ALIGNMENT
                or part["offset"] + part["nbytes"] > nbytes
                or part["nbytes"] != numel * DTYPES[part["dtype"]].itemsize
                or type(part["crc32"]) is not int
            ):
                return False
        if "format" in entry:
            rows, columns = entry["shape"]
            return (
                isinstance(entry["format"], str)
                and isinstance(entry["layout"], str)
                and type(rows) is type(columns) is int
                and rows > 0 < columns
            )
        return set(entry["parts"]) == {""}
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError):
        return False


def damaged_index(folder: Path) -> str:
    """What to say of an index that cannot be believed."""
    return f"{folder / INDEX_FILE} is damaged; delete the folder and it will be made again"


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a finished copy; its entries are still to be checked one by one.

    Raises:
        QuantError: If it is damaged or of another version.
        FileNotFoundError: If there is none.
    """
    data = (folder / INDEX_FILE).read_bytes()
    try:
        file = json.loads(data.decode("utf-8"))
        index: dict[str, Any] = file["index"]
        intact = zlib.crc32(json.dumps(index).encode()) == file["crc32"]
        version = index["version"]
        intact &= isinstance(index["meta"], dict) and isinstance(index["entries"], dict)
        intact &= type(index["nbytes"]) is int
    except (ValueError, KeyError, TypeError, RecursionError):
        intact, version = False, None
    if not intact:
        raise QuantError(damaged_index(folder))
    if version != COPY_VERSION:
        raise QuantError(
            f"{folder} has version {version} instead of {COPY_VERSION}; "
            "delete the folder and it will be made again"
        )
    return index
