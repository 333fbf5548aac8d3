"""A quantized model written as a checkpoint that transformers and bitsandbytes load.

Linear maps go out as bitsandbytes saves them: codes, scales and what they mean. What transformers
does not hold as a linear map, the routed experts first of all, goes out as the bfloat16 values that
our codes stand for, since there is no quantized form of it that would be loaded.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erniechat.errors import DiskLimitError, ErnieChatError, UsageError
from erniechat.hub.failures import FULL
from erniechat.loader import set_threads
from erniechat.model.families import family_of
from erniechat.model.family import Dense, Routed, Slot, routed_name
from erniechat.model.folder import INDEX_FILE
from erniechat.options import LoadOptions
from erniechat.paths import user_path
from erniechat.planning import Plan, make_plan
from erniechat.resolve import locate
from erniechat.sizes import shown_file_size
from erniechat.start_plan import check_disk
from erniechat.weights import finished_weights
from quant.copy import WeightSource, part_bytes
from quant.errors import QuantError
from quant.formats import FORMATS
from quant.formats.bnb_checkpoint import CODEBOOKS, STATE_PREFIX
from quant.tensor import QuantTensor

MAX_SHARD_NBYTES = 2 << 30
SMALL_FILES = (".json", ".jinja", ".model", ".txt")
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}

Progress = Callable[[int, int], None]


def export(options: LoadOptions, target: str, progress: Progress | None = None) -> str:
    """Write a model to a folder.

    Args:
        options: Which model, and in which format.
        target: A folder that is not there yet.
        progress: Called with tensors written and tensors in all.

    Returns:
        What was written, in one line.

    Raises:
        UsageError: If the folder is there, the model is a GGUF file, or the format is ours alone.
        ModelError: If the model cannot be had.
        DiskLimitError: If the disk is full.
    """
    folder = user_path(target).absolute()
    if folder.exists():
        raise UsageError(f'"{target}" is there already; name a folder that is not')
    files = locate(options)
    if files.is_gguf:  # its config and tokenizer are not in the hub's form
        raise UsageError(
            f'export takes a folder or a model on the hub, got the file "{options.model}"',
            "name the checkpoint that the file was made of",
        )
    plan = make_plan(files, options)
    set_threads(options.threads)
    check_disk(plan, options)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        weights = finished_weights(plan, options, None, lambda text: None)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        nbytes = _write(plan, weights, partial, progress or (lambda done, total: None))
        _write_small(plan, files.folder, partial)
        partial.rename(folder)
    except QuantError as exc:
        raise UsageError(str(exc)) from exc
    except OSError as exc:
        if exc.errno in FULL:
            raise DiskLimitError(f"the disk of {folder.parent} is full", "free some space") from exc
        raise ErnieChatError(f"cannot write {folder}: {exc.strerror}") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return f"{folder}: {shown_file_size(nbytes)}, {plan.quant} as bitsandbytes has it"


@dataclass(frozen=True, slots=True)
class Out:
    """One tensor of the checkpoint that is written: what it will be, before it is made."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def _write(plan: Plan, weights: WeightSource, folder: Path, progress: Progress) -> int:
    """Write all shards and their index; the bytes of all tensors."""
    outs = list(_outs(plan, weights))
    shards: list[list[Out]] = [[]]
    for out in outs:
        if shards[-1] and sum(o.nbytes for o in shards[-1]) + out.nbytes > MAX_SHARD_NBYTES:
            shards.append([])
        shards[-1].append(out)
    weight_map, done = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for out in shard:
                tensor = out.make()
                if (tensor.dtype, tuple(tensor.shape)) != (out.dtype, out.shape):
                    raise QuantError(f"{out.name} came out as {tensor.dtype} {list(tensor.shape)}")
                file.write(part_bytes(tensor))
                weight_map[out.name] = name
                done += 1
                progress(done, len(outs))
    nbytes = sum(out.nbytes for out in outs)
    index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), "utf-8")
    return nbytes


def _header(shard: list[Out]) -> bytes:
    """The header of a safetensors file: its length, then JSON padded to eight bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for out in shard:
        end = position + out.nbytes
        offsets = [position, end]
        entries[out.name] = {"dtype": NAMES[out.dtype], "shape": out.shape, "data_offsets": offsets}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_small(plan: Plan, source: Path, folder: Path) -> None:
    """Tokenizer, template and config; the config says how weights are quantized."""
    for path in source.iterdir():
        if path.suffix in SMALL_FILES and path.name not in ("config.json", INDEX_FILE):
            shutil.copyfile(path, folder / path.name)
    config = {k: v for k, v in plan.checkpoint.config.items() if k != "quantization_config"}
    config["tie_word_embeddings"] = not _has_head(plan)
    if plan.quant != "bf16":
        config["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": plan.quant in CODEBOOKS,
            "load_in_8bit": plan.quant == "int8",
            "bnb_4bit_quant_type": plan.quant if plan.quant in CODEBOOKS else "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["lm_head", "gate"],
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _has_head(plan: Plan) -> bool:
    return any(isinstance(r.slot, Dense) and r.slot.target == "lm_head" for r in plan.readings)


def _outs(plan: Plan, weights: WeightSource) -> Iterator[Out]:
    """The tensors that are written, by their names on the hub."""
    slots = family_of(plan.checkpoint.config).tensors(plan.config)
    begins = _begins(slots)
    here = set(weights)
    for name, slot in slots.items():
        if isinstance(slot, Routed):
            yield _expert(name, slot, weights)
        elif slot.target in here:
            yield from _dense(name, slot, begins[name], weights)


def _begins(slots: Mapping[str, Slot]) -> dict[str, int]:
    """At which row of its weight each piece begins."""
    rows: dict[tuple[str, int], int] = {
        (slot.target, slot.piece): slot.shape[0]
        for slot in slots.values()
        if isinstance(slot, Dense) and slot.shape
    }
    return {
        name: sum(rows[slot.target, piece] for piece in range(slot.piece))
        for name, slot in slots.items()
        if isinstance(slot, Dense)
    }


def _expert(name: str, slot: Routed, weights: WeightSource) -> Out:
    matrix = "down" if slot.part == "down" else "gate_up"
    rows, columns = slot.shape
    begin = rows if slot.part == "up" else 0

    def make() -> Tensor:
        weight = weights[routed_name(slot.layer_idx, slot.expert_idx, matrix)]  # type: ignore[arg-type]  # one of two
        return _values(weight)[begin : begin + rows]

    return Out(name, torch.bfloat16, (rows, columns), make)


def _dense(name: str, slot: Dense, begin: int, weights: WeightSource) -> Iterator[Out]:
    weight = weights[slot.target]
    if isinstance(weight, Tensor):
        part = weight[begin : begin + slot.shape[0]]
        if slot.role == "correction_bias":
            part = part[None]  # as the hub has it
        yield Out(name, part.dtype, tuple(part.shape), lambda: part)
        return
    rows = slot.shape[0]
    if slot.role == "embedding" or weight.format == "bf16":
        yield Out(name, torch.bfloat16, slot.shape, lambda: _values(weight)[begin : begin + rows])
    elif weight.format == "int8":
        yield from _int8(name, slot.shape, weight, begin)
    else:
        yield from _codebook(name, slot.shape, weight, begin)


def _values(weight: QuantTensor | Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    _check_layout(weight)
    return FORMATS[weight.format].dequantize(weight, torch.bfloat16)


def _check_layout(weight: QuantTensor) -> None:
    if weight.layout != FORMATS[weight.format].layout:
        raise QuantError(
            f"the copy is in the layout {weight.layout} of other kernels; use --kernels reference"
        )


def _int8(name: str, shape: tuple[int, ...], weight: QuantTensor, begin: int) -> Iterator[Out]:
    """What Linear8bitLt saves."""
    _check_layout(weight)
    codes, scale = (weight.parts[k][begin : begin + shape[0]] for k in ("codes", "absmax"))
    layer = name.removesuffix("weight")
    yield Out(name, torch.int8, shape, lambda: codes)
    yield Out(f"{layer}SCB", torch.float32, shape[:1], lambda: scale)
    yield Out(f"{layer}weight_format", torch.uint8, (), lambda: torch.tensor(0, dtype=torch.uint8))


def _codebook(name: str, shape: tuple[int, ...], weight: QuantTensor, begin: int) -> Iterator[Out]:
    """What Linear4bit saves: the even input in the high nibble, blocks of 64, row by row."""
    _check_layout(weight)
    codebook = CODEBOOKS[weight.format]
    rows, columns = shape
    state = {"quant_type": weight.format, "blocksize": 64, "dtype": "bfloat16", "shape": shape}
    text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def codes() -> Tensor:
        low, high = codebook.to_rows(weight)[0][begin : begin + rows].view(-1, 2).unbind(1)
        return (low << 4 | high).view(-1, 1)

    def absmax() -> Tensor:
        return codebook.to_rows(weight)[1][begin : begin + rows].reshape(-1)

    yield Out(name, torch.uint8, (rows * columns // 2, 1), codes)
    yield Out(f"{name}.absmax", torch.float32, (rows * columns // 64,), absmax)
    yield Out(f"{name}.quant_map", torch.float32, (16,), lambda: codebook.codebook)
    yield Out(f"{name}.{STATE_PREFIX}{weight.format}", torch.uint8, (len(text),), lambda: text)
