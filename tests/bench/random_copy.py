"""A quantized copy of the 21B shape with random weights, written as fast as the disk takes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.family import routed_name
from erniechat.options import LoadOptions
from erniechat.planning import choose_formats
from quant.copy_names import DATA_FILE
from quant.copy_writer import CopyWriter
from quant.tensor import QuantTensor
from tests.bench.gpu_step import RepeatedExperts

BLOCK_NBYTES = 64 << 20


def formats_on(device: torch.device, quant: str = "nf4") -> Formats:
    """What a start on a device would choose."""
    return choose_formats(quant, LoadOptions(), device)


def write_copy(
    folder: Path, config: ModelConfig, formats: Formats, meta: Mapping[str, Any] | None = None
) -> None:
    """A few random experts stand for all; only their bytes matter."""
    source = RepeatedExperts(config, formats)
    names = [*source]
    for layer_idx in config.moe_layers:
        for expert_idx in range(config.num_experts):
            names += [routed_name(layer_idx, expert_idx, part) for part in ("gate_up", "down")]
    with CopyWriter(folder, meta or {}) as writer:
        for name in names:
            weight = source[name]
            if isinstance(weight, QuantTensor):
                is_linear = weight.format == formats.linear.name
                backend = formats.linear_backend if is_linear else formats.embedding_backend
                weight = backend.prepare(weight)
            writer[name] = weight
        writer.finish()


def read_once(folder: Path) -> None:
    """Bring a copy into the page cache."""
    block = bytearray(BLOCK_NBYTES)
    with (folder / DATA_FILE).open("rb", buffering=0) as file:
        while file.readinto(block):
            pass
