"""What will be loaded and how: checkpoint, formats, kernels, device, and the key of its copy."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from erniechat.errors import UsageError
from erniechat.hub.feed import check_online
from erniechat.hub.fetch import has_header, shard_header
from erniechat.hub.listing import HubModel
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.families import family_of
from erniechat.model.gguf_checkpoint import GgufCheckpoint
from erniechat.model.readings import Reading, plan_readings
from erniechat.model.stored import ShardHeader
from erniechat.options import LoadOptions
from erniechat.resolve import ModelFiles
from quant.copy_names import COPY_VERSION
from quant.errors import QuantError
from quant.formats import format_named
from quant.kernels import backend_for

DEFAULT_QUANT = "nf4"
DEFAULT_MAX_CONTEXT = 32_768
NUM_HEADER_REQUESTS = 8  # at one time


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be loaded, known before a weight is read."""

    checkpoint: Checkpoint
    config: ModelConfig
    readings: list[Reading]
    quant: str
    formats: Formats
    device: torch.device
    hub: HubModel | None = None

    @property
    def fingerprint(self) -> str:
        """A hash that changes when the checkpoint does."""
        return fingerprint(self.checkpoint, self.hub)


def make_plan(files: ModelFiles, options: LoadOptions) -> Plan:
    """Choose format, kernels and device for a checkpoint and account for its tensors.

    Of a model on the hub only the headers of shards are read, from there if need be.

    Raises:
        UsageError: If the options do not suit the model or the machine.
        ModelError: If the checkpoint cannot be read.
    """
    checkpoint = open_checkpoint(files, offline=options.offline)
    family = family_of(checkpoint.config)
    config = family.parse_config(checkpoint.config)
    readings = plan_readings(checkpoint, family, config)
    device = choose_device(options.device)
    quant = options.quant
    if quant == "auto":
        quant = checkpoint.quantized_format or DEFAULT_QUANT
    formats = choose_formats(quant, options, device)
    return Plan(checkpoint, config, readings, quant, formats, device, files.hub)


def open_checkpoint(files: ModelFiles, *, offline: bool) -> Checkpoint:
    """A model's checkpoint; of shards that are still on the hub the headers are fetched.

    Raises:
        ModelError: If it cannot be had or read.
    """
    headers = _headers(files.hub, offline=offline) if files.hub else {}
    if files.is_gguf:
        heads = {Path(name).name: header for name, header in headers.items()}
        return GgufCheckpoint(files.folder, heads)
    return Checkpoint(files.folder, headers)


def choose_device(name: str) -> torch.device:
    """The device that a model runs on.

    Raises:
        UsageError: If a GPU is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UsageError('--device must be auto or cpu here, got "cuda": torch finds no GPU')
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_cuda) else "cpu")


def choose_formats(quant: str, options: LoadOptions, device: torch.device) -> Formats:
    """Formats and kernel backends; embedding and head are kept in at least 8 bits.

    Raises:
        UsageError: If the asked-for kernels do not serve the format.
    """
    embedding = "bf16" if quant == "bf16" else "int8"
    try:
        backend = backend_for(quant, device, options.kernels)
        name = backend.name if not backend.why_not(embedding, device) else "auto"
        return Formats(
            format_named(quant),
            format_named(embedding),
            backend,
            backend_for(embedding, device, name),
        )
    except QuantError as exc:
        raise UsageError(str(exc)) from exc


def context_length(options: LoadOptions, config: ModelConfig) -> int:
    """Tokens of prompt and answer together.

    Raises:
        UsageError: If more is asked for than the model was made for.
    """
    longest = config.max_position_embeddings
    if options.ctx is not None and options.ctx > longest:
        raise UsageError(f'--ctx must be at most {longest:,} for this model, got "{options.ctx}"')
    return options.ctx or min(longest, DEFAULT_MAX_CONTEXT)


def _headers(hub: HubModel, *, offline: bool) -> dict[str, ShardHeader]:
    """Headers of the shards that are not here."""
    missing = hub.missing
    if not all(has_header(hub, shard) for shard in missing):
        check_online(hub, offline=offline)
    with ThreadPoolExecutor(NUM_HEADER_REQUESTS) as pool:
        headers = pool.map(lambda shard: shard_header(hub, shard), missing)
        return {shard.name: header for shard, header in zip(missing, headers, strict=True)}


def fingerprint(checkpoint: Checkpoint, hub: HubModel | None = None) -> str:
    """A hash that changes when a checkpoint does.

    Of a folder: its config, and each shard's name, size and age. Of a model on the hub: its config
    and each shard's hash, so that it is the same before the download, after it, and when the
    shards are gone; and a revision that shares its files with another one shares this too.
    """
    facts: list[Any] = [checkpoint.config]
    if hub is not None:
        facts += [(shard.identity, shard.nbytes) for shard in hub.shards]
    else:
        for shard in checkpoint.shards:
            real = shard.resolve()
            stat = real.stat()
            facts.append((str(real), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def copy_folder(plan: Plan, model: str) -> Path:
    """Where the quantized copy of a plan lives: readable name, then all that it depends on."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in Path(model).name or "model")
    kernels = f"{plan.formats.linear_backend.name}-{plan.formats.embedding_backend.name}"
    key = f"{plan.fingerprint}-{plan.quant}-{kernels}-v{COPY_VERSION}"
    return platformdirs.user_cache_path("erniechat") / "copies" / f"{name}-{key}"
