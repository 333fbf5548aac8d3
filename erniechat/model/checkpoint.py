"""A checkpoint on disk: what tensors it has, and one of them at a time in memory.

Tensors are read with pread rather than mapped: mapped shards would count into the memory of this
process page by page.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.family import shown
from erniechat.model.folder import INDEX_FILE, SINGLE_FILE, check_link, read_json, shard_names
from erniechat.model.stored import ShardHeader, StoredTensor, parse_header, read_header
from quant.errors import QuantError
from quant.formats.bnb_checkpoint import STATE_PREFIX, parse_state, read_4bit, read_8bit
from quant.tensor import QuantTensor


@dataclass(frozen=True, slots=True)
class StoredQuantized:
    """A weight that bitsandbytes has quantized: the tensors that make it up.

    Attributes:
        shape: Of the weight; None if that stands in a file that is not here yet.
    """

    name: str
    codes: StoredTensor
    companions: Mapping[str, StoredTensor]
    shape: tuple[int, ...] | None
    format: str

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.codes.nbytes + sum(part.nbytes for part in self.companions.values())

    @property
    def paths(self) -> set[Path]:
        """The files that it is in."""
        return {self.codes.path, *(part.path for part in self.companions.values())}

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
        headers: Of shards that are not there yet, or no more, by file name.

    Raises:
        CheckpointError: If a file is missing, damaged or contradicts another.
        UnsupportedModelError: If the folder holds another kind of checkpoint.
    """

    def __init__(self, folder: Path, headers: Mapping[str, ShardHeader] | None = None) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        headers = headers or {}
        self.shards = _find_shards(folder, headers)
        tensors: list[StoredTensor] = []
        for path in self.shards:
            header = headers.get(path.name)
            if header is None or path.exists():
                check_link(path)
                header = read_header(path)
            tensors += parse_header(path, header)
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


def _find_shards(folder: Path, headers: Mapping[str, ShardHeader]) -> list[Path]:
    """The safetensors files, in order."""
    if not (folder / INDEX_FILE).exists() and SINGLE_FILE in headers:
        return [folder / SINGLE_FILE]
    names = shard_names(folder)
    missing = [name for name in names if name not in headers and not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} files are missing: {', '.join(missing[:3])}",
            "fetch the model again",
        )
    return [folder / name for name in names]


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
    here = {path: path.exists() for path in {tensor.path for tensor in tensors}}
    for name, tensor in by_name.items():
        companions = _companions(name, by_name)
        if not companions:
            continue
        used.update((name, *(part.name for part in companions.values())))
        if "SCB" in companions:
            grouped[name] = StoredQuantized(name, tensor, companions, tensor.shape, "int8")
        else:
            grouped[name] = _stored_4bit(tensor, companions, here)
    return [grouped.get(n, t) for n, t in by_name.items() if n in grouped or n not in used]


def _stored_4bit(
    codes: StoredTensor, companions: Mapping[str, StoredTensor], here: Mapping[Path, bool]
) -> StoredQuantized:
    """A weight in 4 bits, whose shape its quant_state tells; the format is in that one's name."""
    name = codes.name
    state_name = next((n for n in companions if n.startswith(STATE_PREFIX)), "")
    if not state_name:
        raise CheckpointError(f"{shown(name)} has no quant_state", "fetch the model again")
    stored = companions[state_name]
    if not here[stored.path]:
        kind = state_name.removeprefix(STATE_PREFIX)
        return StoredQuantized(name, codes, companions, None, kind)
    try:
        state = parse_state(stored.read())
    except QuantError as exc:
        raise CheckpointError(f"{shown(name)}: {exc}", "fetch the model again") from exc
    return StoredQuantized(name, codes, companions, state["shape"], state["quant_type"])


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
