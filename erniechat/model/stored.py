"""One shard of a checkpoint: its header, checked before it is believed, and its tensors.

A header is JSON that others wrote. Everything in it that says where bytes lie is held to the rules
of the format: tensors follow one another without a gap or an overlap, and fill the file.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.family import shown

LENGTH_NBYTES = 8
MAX_HEADER_NBYTES = 16 << 20  # ten times that of the largest published shard
MAX_DIMENSIONS = 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Of the format, and of no use here.
OTHER_DTYPES = ("C64", "F4", "F6_E2M3", "F6_E3M2", "U16", "U32", "U64")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a shard; nothing of it is in memory."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def paths(self) -> set[Path]:
        """The files that it is in."""
        return {self.path}

    def read(self, index: tuple[int | slice, ...] = ()) -> Tensor:
        """The tensor, or a contiguous part of it.

        Args:
            index: Leading indices, then at most one range of the next dimension.

        Raises:
            CheckpointError: If the file cannot be read or ends early.
        """
        shape, _ = self._range(index)
        buffer = bytearray(torch.Size(shape).numel() * self.dtype.itemsize)
        self.read_into(index, memoryview(buffer))
        if not buffer:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).view(shape)

    def _range(self, index: tuple[int | slice, ...]) -> tuple[list[int], int]:
        """The shape of a part, and how many values lie before it."""
        shape, begin = list(self.shape), 0
        for position in index:
            inner = torch.Size(shape[1:]).numel()
            if isinstance(position, slice):
                start, stop, _ = position.indices(shape[0])
                begin += start * inner
                shape[0] = stop - start
                break
            begin += position * inner
            shape = shape[1:]
        return shape, begin

    def read_into(self, index: tuple[int | slice, ...], memory: memoryview) -> None:
        """Read a part's bytes as they lie in the file.

        Args:
            index: As for `read`.
            memory: Of the part's size.

        Raises:
            CheckpointError: If the file cannot be read or ends early.
        """
        nbytes, done = len(memory), 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + self._range(index)[1] * self.dtype.itemsize)
                while done < nbytes and (count := file.readinto(memory[done:])):
                    done += count
        except OSError as exc:
            raise CheckpointError(
                f"{self.path.name} cannot be read ({exc.strerror})", "fetch the file again"
            ) from exc
        if done < nbytes:
            raise CheckpointError(
                f"{self.path.name} ends inside {self.name}", "fetch the file again"
            )


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """The header of a shard that may not be on this machine yet.

    Attributes:
        text: The JSON, without the length before it.
        file_nbytes: Bytes of the whole file.
    """

    text: bytes
    file_nbytes: int


class _HeaderError(ValueError):
    """What is wrong with a header, in words for the user."""


def read_header(path: Path) -> ShardHeader:
    """The header of a file.

    Raises:
        CheckpointError: If it is no regular file, cannot be read, or is too short for its header.
    """
    try:
        with open(path, "rb", opener=_open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            text_nbytes = header_nbytes(file.read(LENGTH_NBYTES), size)
            return ShardHeader(file.read(text_nbytes), size)
    except (OSError, ValueError) as exc:
        raise _unsound(path.name, exc) from exc


def header_nbytes(start: bytes, file_nbytes: int) -> int:
    """How long the JSON of a header is, from a file's first bytes.

    Raises:
        ValueError: If no header of that length can be in the file, or it is too long to be one.
    """
    length = int.from_bytes(start[:LENGTH_NBYTES], "little")
    if len(start) < LENGTH_NBYTES or length > file_nbytes - LENGTH_NBYTES:
        raise _HeaderError("the file is shorter than its header")
    if length > MAX_HEADER_NBYTES:
        raise _HeaderError(f"a header of {length} bytes")
    return length


def parse_header(path: Path, header: ShardHeader) -> list[StoredTensor]:
    """The tensors of a shard by ascending offset.

    Raises:
        CheckpointError: If the header breaks a rule of the format.
        UnsupportedModelError: If a tensor is of a type that is not used here.
    """
    try:
        entries = json.loads(header.text.decode("utf-8"), object_pairs_hook=_without_repeats)
        if not isinstance(entries, dict):
            raise _HeaderError("the header is not a JSON object")
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise _HeaderError("the metadata is not text by name")
        tensors = [_tensor(path, name, entry) for name, entry in entries.items()]
        start = LENGTH_NBYTES + len(header.text)
        tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
        position = 0
        for tensor in tensors:
            if tensor.offset != position:
                raise _HeaderError(f"{shown(tensor.name)} begins at {tensor.offset}")
            position += tensor.nbytes
        if start + position != header.file_nbytes:
            raise _HeaderError(f"{header.file_nbytes} bytes instead of {start + position}")
    except (ValueError, RecursionError) as exc:
        raise _unsound(path.name, exc) from exc
    return [StoredTensor(t.name, path, t.dtype, t.shape, start + t.offset) for t in tensors]


def _tensor(path: Path, name: str, entry: Any) -> StoredTensor:
    """An entry of a header; its offset counts from the end of the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _HeaderError(f"the entry of {shown(name)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and (dtype.startswith("F8_") or dtype in OTHER_DTYPES):
        raise UnsupportedModelError(
            f"{path.name}: {shown(name)} is stored as {shown(dtype)[1:-1]}",
            "use a checkpoint in bfloat16, or one quantized with bitsandbytes",
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _HeaderError(f"the dtype of {shown(name)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _HeaderError(f"the shape of {shown(name)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _HeaderError(f"the offsets of {shown(name)}")
    nbytes = DTYPES[dtype].itemsize
    for size in shape:
        nbytes *= size
    if offsets[1] - offsets[0] != nbytes:
        raise _HeaderError(f"{shown(name)} has {offsets[1] - offsets[0]} bytes, its shape {nbytes}")
    return StoredTensor(name, path, DTYPES[dtype], tuple(shape), offsets[0])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys a reader would silently drop one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _HeaderError("a key is there twice")
    return found


def _unsound(name: str, exc: BaseException) -> CheckpointError:
    reason = shown(str(exc))[1:-1]
    return CheckpointError(
        f"{name} is not a sound safetensors file ({reason})", "fetch the file again"
    )


def _open_regular(path: str, flags: int) -> int:
    """Open what is a file; a pipe or a device would block, or never end."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _HeaderError("it is not a regular file")
    return descriptor
