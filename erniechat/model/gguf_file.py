"""The header of a GGUF file: its metadata and where its tensors lie, believed only once checked.

The reader of the gguf package trusts counts and lengths; this one holds each to the file first.
Source of the layout: ggml, docs/gguf.md, versions 2 and 3, little-endian.
"""

import os
import struct
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NoReturn

import numpy as np

from erniechat.errors import CheckpointError, UnsupportedModelError, UsageError
from erniechat.model.family import shown
from erniechat.model.stored import ShardHeader

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_NBYTES = 256 << 20
MAX_ITEMS = 1 << 21  # of all arrays together; a vocabulary has 0.1 million tokens
MAX_ENTRIES = 1 << 16  # metadata keys, and tensors
MAX_NAME_NBYTES = 1 << 10
MAX_DIMENSIONS = 4
MAX_NUMEL = 1 << 48
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, BOOL, 10, 11, 12), "BbHhIifBQqd", strict=True))

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """One tensor as the header describes it.

    Attributes:
        name: As in the file.
        path: The file.
        kind: Number of the ggml type.
        kind_name: Its name: "F32", "Q4_0", …
        block: Neighbouring weights of a row that are stored together.
        block_nbytes: Bytes of such a block.
        shape: Slowest dimension first, as torch has it; the file has it the other way round.
        offset: Of its first byte in the file.
    """

    name: str
    path: Path
    kind: int
    kind_name: str
    block: int
    block_nbytes: int
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        numel = 1
        for size in self.shape:
            numel *= size
        return numel // self.block * self.block_nbytes

    def part(self, start: int, stop: int) -> "GgufEntry":
        """A range of the first dimension; it is one run of bytes."""
        each = self.nbytes // self.shape[0]
        shape = (stop - start, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + start * each)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked header.

    Attributes:
        path: The file.
        metadata: Values by key.
        entries: Tensors by ascending offset; none overlaps another or the end of the file.
    """

    path: Path
    metadata: dict[str, Value]
    entries: list[GgufEntry]


def gguf_library() -> ModuleType:
    """The gguf package, which knows the types of tensors.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        import gguf  # an extra: not everybody has it
    except ImportError as exc:
        raise UsageError(
            "--model with a GGUF file needs the gguf package, which is not installed",
            "pip install 'erniechat[gguf]'",
        ) from exc
    return gguf


class HeadTooShort(Exception):
    """A header goes on beyond what is here of its file."""


def read_gguf(path: Path, head: ShardHeader | None = None) -> GgufFile:
    """Read and check the header of a file; nothing of a tensor is read.

    Args:
        path: The file.
        head: Its beginning, if the file itself is not here.

    Raises:
        HeadTooShort: If the header is longer than the head.
        CheckpointError: If the file is damaged.
        UnsupportedModelError: If its version or a tensor's type is not known.
        UsageError: If the gguf package is not installed.
    """
    gguf_library()
    if head is not None:
        return _Header(BytesIO(head.text), path, head.file_nbytes).read()
    try:
        with path.open("rb") as file:
            return _Header(file, path, os.fstat(file.fileno()).st_size).read()
    except OSError as exc:
        raise CheckpointError(
            f"{path.name} cannot be read ({exc.strerror})", "check the file"
        ) from exc


class _Header:
    """Reads one header front to back.

    Args:
        file: At its start.
        path: Its name.
        size: Bytes of all of it.
    """

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size
        self._at = 0
        self._num_items = 0

    def read(self) -> GgufFile:
        if self._take(4, "its first word") != MAGIC:
            self._refuse("it does not begin with GGUF")
        version = self._number("I", "its version")
        if version not in VERSIONS:
            way_out = "use a little-endian file of version 3, which llama.cpp writes today"
            raise UnsupportedModelError(
                f"{self._path.name} has GGUF version {version}, supported are 2 and 3", way_out
            )
        num_tensors = self._count("tensors")
        num_keys = self._count("metadata keys")
        metadata = self._metadata(num_keys)
        raw = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT:
            self._refuse(f"general.alignment must be from 1 to 1 MiB, got {shown(alignment)}")
        start = -(-self._at // alignment) * alignment
        return GgufFile(self._path, metadata, self._entries(raw, start, alignment))

    def _metadata(self, num_keys: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(num_keys):
            key = self._string("a metadata key", MAX_NAME_NBYTES)
            if key in metadata:
                self._refuse(f"the key {shown(key)} is there twice")
            metadata[key] = self._value(self._number("I", "a type"), key)
        return metadata

    def _value(self, kind: int, key: str) -> Value:
        if kind == STRING:
            return self._string(key)
        if kind == ARRAY:
            return self._array(key)
        if kind not in SCALARS:
            self._refuse(f"{shown(key)} has the unknown type {kind}")
        number = self._number(SCALARS[kind], key)
        return bool(number) if kind == BOOL else number

    def _array(self, key: str) -> list[Scalar]:
        kind, count = self._number("I", key), self._number("Q", key)
        self._num_items += count
        if self._num_items > MAX_ITEMS:
            self._refuse(f"{shown(key)} brings the items of arrays to {self._num_items:,}")
        if kind == STRING:
            return [self._string(key) for _ in range(count)]
        if kind not in SCALARS:  # arrays of arrays too: nothing that is read here has them
            self._refuse(f"{shown(key)} is an array of the type {kind}")
        item = np.dtype("<" + SCALARS[kind])
        values = np.frombuffer(self._take(count * item.itemsize, key), item)
        return (values.astype(bool) if kind == BOOL else values).tolist()  # type: ignore[no-any-return]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset as written."""
        name = self._string("a tensor's name", MAX_NAME_NBYTES)
        num_dimensions = self._number("I", name)
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            self._refuse(f"{shown(name)} has {num_dimensions} dimensions")
        shape = tuple(self._number("Q", name) for _ in range(num_dimensions))[::-1]
        numel = 1
        for size in shape:
            numel *= size
        if not 0 < numel <= MAX_NUMEL:
            self._refuse(f"{shown(name)} has the shape {shown(shape)}")
        return name, shape, self._number("I", name), self._number("Q", name)

    def _entries(
        self, raw: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> list[GgufEntry]:
        library = gguf_library()
        entries: dict[str, GgufEntry] = {}
        for name, shape, kind, offset in raw:
            if name in entries:
                self._refuse(f"the tensor {shown(name)} is there twice")
            try:
                known = library.GGMLQuantizationType(kind)
            except ValueError as exc:
                raise UnsupportedModelError(
                    f"{self._path.name}: {shown(name)} has the unknown type {kind}",
                    "update the gguf package, or use a Q4_K_M or Q8_0 file",
                ) from exc
            block, block_nbytes = library.GGML_QUANT_SIZES[known]
            entry = GgufEntry(
                name, self._path, kind, known.name, block, block_nbytes, shape, start + offset
            )
            if shape[-1] % block:
                self._refuse(f"{shown(name)} has rows of {shape[-1]}, {known.name} blocks {block}")
            if offset % alignment:
                self._refuse(f"{shown(name)} does not begin at a multiple of {alignment}")
            if entry.offset + entry.nbytes > self._size:
                self._refuse(f"{shown(name)} ends after the file")
            entries[name] = entry
        ordered = sorted(entries.values(), key=lambda entry: entry.offset)
        for before, entry in pairwise(ordered):
            if before.offset + before.nbytes > entry.offset:
                self._refuse(f"{shown(before.name)} and {shown(entry.name)} overlap")
        return ordered

    def _count(self, what: str) -> int:
        count = self._number("Q", f"the number of {what}")
        if count > MAX_ENTRIES:
            self._refuse(f"it has {count:,} {what}, at most {MAX_ENTRIES:,} are read")
        return int(count)

    def _string(self, what: str, limit: int = MAX_HEADER_NBYTES) -> str:
        length = self._number("Q", what)
        if length > limit:
            self._refuse(f"{shown(what)} has text of {length:,} bytes")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            self._refuse(f"{shown(what)} has text that is not UTF-8")

    def _number(self, code: str, what: str) -> int:
        """A number of the format code; a float for "f" and "d"."""
        (value,) = struct.unpack("<" + code, self._take(struct.calcsize("<" + code), what))
        return value  # type: ignore[no-any-return]

    def _take(self, nbytes: int, what: str) -> bytes:
        """The next bytes, once it is known that the file has them."""
        self._at += nbytes
        if self._at > self._size:
            self._refuse(f"it ends inside {shown(what)}")
        if self._at > MAX_HEADER_NBYTES:
            self._refuse(f"its header is larger than {MAX_HEADER_NBYTES >> 20} MiB")
        data = self._file.read(nbytes)
        if len(data) < nbytes:
            raise HeadTooShort
        return data

    def _refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(
            f"{self._path.name} is not a sound GGUF file ({reason})", "fetch the file again"
        )
