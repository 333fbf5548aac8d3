"""A checkpoint on disk: what tensors it has, and one of them at a time in memory.

Headers are validated by the safetensors library. Tensors are read with pread rather than mapped:
mapped shards would count into the memory of this process page by page.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.family import shown
from quant.errors import QuantError
from quant.formats.bnb_checkpoint import STATE_PREFIX, parse_state, read_4bit, read_8bit
from quant.tensor import QuantTensor

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_JSON_NBYTES = 64 << 20
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

    def read(self, index: tuple[int | slice, ...] = ()) -> Tensor:
        """The tensor, or a contiguous part of it.

        Args:
            index: Leading indices, then at most one range of the next dimension.

        Raises:
            CheckpointError: If the file ends early.
        """
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
        nbytes = torch.Size(shape).numel() * self.dtype.itemsize
        buffer = bytearray(nbytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + begin * self.dtype.itemsize)
            view, done = memoryview(buffer), 0
            while done < nbytes and (count := file.readinto(view[done:])):
                done += count
        if done < nbytes:
            raise CheckpointError(
                f"{self.path.name} ends inside {self.name}", "fetch the file again"
            )
        if not nbytes:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).view(shape)


@dataclass(frozen=True, slots=True)
class StoredQuantized:
    """A weight that bitsandbytes has quantized: the tensors that make it up."""

    name: str
    codes: StoredTensor
    companions: Mapping[str, StoredTensor]
    shape: tuple[int, ...]
    format: str

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.codes.nbytes + sum(part.nbytes for part in self.companions.values())

    def read(self) -> QuantTensor | Tensor:
        """The weight as it was quantized, or the floats that its codes mean.

        Raises:
            CheckpointError: If its parts contradict each other.
        """
        parts = {name: stored.read() for name, stored in self.companions.items()}
        try:
            if self.format == "int8":
                return read_8bit(self.codes.read(), parts["SCB"], parts.get("weight_format"))
            state_name = next(name for name in parts if name.startswith(STATE_PREFIX))
            return read_4bit(self.codes.read(), parts, parse_state(parts[state_name]))
        except QuantError as exc:
            raise CheckpointError(f"{self.name}: {exc}", "fetch the file again") from exc


Stored = StoredTensor | StoredQuantized


class Checkpoint:
    """The config and tensors of a folder in Hugging Face layout.

    Args:
        folder: With config.json and safetensors files.

    Raises:
        CheckpointError: If a file is missing, damaged or contradicts another.
        UnsupportedModelError: If the folder holds another kind of checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.shards = _find_shards(folder)
        tensors = [tensor for path in self.shards for tensor in _read_header(path)]
        if any(t.name.startswith("ernie.") for t in tensors):
            raise UnsupportedModelError(
                f"{folder} is in Paddle's format (tensors named ernie.*)",
                "use the checkpoint whose name ends in -PT",
            )
        self.tensors = _group(tensors)

    def __iter__(self) -> Iterator[Stored]:
        """All tensors in the order in which they lie on disk."""
        return iter(self.tensors)

    @property
    def quantized_format(self) -> str | None:
        """The format in which bitsandbytes has quantized it, or None."""
        formats = {t.format for t in self.tensors if isinstance(t, StoredQuantized)}
        return formats.pop() if len(formats) == 1 else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of sensible size.

    Raises:
        CheckpointError: If it is missing, too large or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_NBYTES:
            raise CheckpointError(f"{path} is larger than 64 MiB", "fetch the file again")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "name a folder in Hugging Face layout"
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not readable JSON", "fetch the file again") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object", "fetch the file again")
    return value


def _find_shards(folder: Path) -> list[Path]:
    """The safetensors files, in order."""
    if (folder / INDEX_FILE).exists():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{INDEX_FILE} has no weight_map", "fetch the file again")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{INDEX_FILE} names {shown(name)}, which is not a safetensors file beside it",
                    "do not trust this checkpoint",
                )
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise CheckpointError(
                f"{len(missing)} of {len(names)} files are missing: {', '.join(missing[:3])}",
                "fetch the model again",
            )
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if any(folder.glob("*.pdparams")):
        raise UnsupportedModelError(
            f"{folder} is in Paddle's format", "use the checkpoint whose name ends in -PT"
        )
    if any(folder.glob("*.bin")):
        raise UnsupportedModelError(
            f"{folder} has pickled weights, which can run code when opened",
            "use a checkpoint with safetensors files",
        )
    raise CheckpointError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}",
        "name a folder in Hugging Face layout",
    )


def _read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a shard by ascending offset."""
    try:
        with safe_open(path, framework="np"):  # it validates the header
            pass
        with path.open("rb") as file:
            header_nbytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_nbytes), object_pairs_hook=_without_repeats)
    except (SafetensorError, OSError, ValueError) as exc:
        reason = shown(str(exc))[1:-1]
        raise CheckpointError(
            f"{path.name} is not a sound safetensors file ({reason})", "fetch the file again"
        ) from exc
    header.pop("__metadata__", None)
    start = 8 + header_nbytes
    tensors = []
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UnsupportedModelError(
                f"{path.name}: {shown(name)} is stored as {entry['dtype']}",
                "use a checkpoint in bfloat16, or one quantized with bitsandbytes",
            )
        dtype, begin = DTYPES[entry["dtype"]], start + entry["data_offsets"][0]
        tensors.append(StoredTensor(name, path, dtype, tuple(entry["shape"]), begin))
    size = os.path.getsize(path)
    if any(t.offset + t.nbytes > size for t in tensors):
        raise CheckpointError(f"{path.name} is cut short", "fetch the file again")
    return sorted(tensors, key=lambda tensor: tensor.offset)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys a reader would silently drop one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _group(tensors: list[StoredTensor]) -> list[Stored]:
    """Put the parts of weights that bitsandbytes has quantized together."""
    by_name: dict[str, StoredTensor] = {}
    for tensor in tensors:
        if tensor.name in by_name:
            raise CheckpointError(
                f"{shown(tensor.name)} is in {by_name[tensor.name].path.name} and in "
                f"{tensor.path.name}",
                "fetch the model again",
            )
        by_name[tensor.name] = tensor
    grouped: dict[str, Stored] = {}
    used: set[str] = set()
    for name, tensor in by_name.items():
        companions = _companions(name, by_name)
        if not companions:
            continue
        used.update((name, *(part.name for part in companions.values())))
        if "SCB" in companions:
            shape, kind = tensor.shape, "int8"
        else:
            state_name = next((n for n in companions if n.startswith(STATE_PREFIX)), "")
            if not state_name:
                raise CheckpointError(f"{shown(name)} has no quant_state", "fetch the model again")
            try:
                state = parse_state(companions[state_name].read())
            except QuantError as exc:
                raise CheckpointError(f"{shown(name)}: {exc}", "fetch the model again") from exc
            shape, kind = state["shape"], state["quant_type"]
        grouped[name] = StoredQuantized(name, tensor, companions, shape, kind)
    return [grouped.get(n, t) for n, t in by_name.items() if n in grouped or n not in used]


def _companions(name: str, by_name: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors that belong to a quantized weight, by the last part of their name."""
    layer = name.removesuffix(".weight")
    if layer == name:
        return {}
    if f"{layer}.SCB" in by_name:
        found = {"SCB": by_name[f"{layer}.SCB"]}
        if f"{layer}.weight_format" in by_name:
            found["weight_format"] = by_name[f"{layer}.weight_format"]
        return found
    if f"{name}.absmax" not in by_name:
        return {}
    parts = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"]
    parts += [STATE_PREFIX + kind for kind in ("nf4", "fp4")]
    return {part: by_name[f"{name}.{part}"] for part in parts if f"{name}.{part}" in by_name}
