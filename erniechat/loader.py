"""LoadOptions to Engine: find the files, choose formats and kernels, quantize or map, assemble."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from erniechat.backend import ModelInfo
from erniechat.chat.generation_defaults import (
    read_generation_config,
    sampling_defaults,
    stop_token_ids,
)
from erniechat.chat.sessions import kept_folder
from erniechat.chat.template import ChatTemplate
from erniechat.chat.tokenizer import Tokenizer
from erniechat.engine import Engine
from erniechat.errors import CheckpointError, MemoryLimitError, UsageError
from erniechat.events import Progress
from erniechat.fit import fit, this_machine
from erniechat.memory_plan import FLAGS, MemoryPlan, model_sizes
from erniechat.model.assembly import assemble
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import (
    Formats,
    Reading,
    convert,
    plan_readings,
)
from erniechat.model.families import family_of
from erniechat.model.kept_cache import KeptCaches
from erniechat.options import LoadOptions
from erniechat.profiles import keep_profile, known_profile
from erniechat.prompts import PromptTools
from erniechat.resolve import resolve
from erniechat.sizes import MAX_NBYTES, least_size, size_nbytes
from quant.copy import COPY_VERSION, CopyWriter, MemoryWeights, QuantizedCopy, WeightSource
from quant.errors import QuantError
from quant.formats import format_named
from quant.kernels import backend_for, set_num_threads

DEFAULT_QUANT = "nf4"
DEFAULT_MAX_CONTEXT = 32_768

Report = Callable[[Progress], None]
Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be loaded, known before a weight is read."""

    checkpoint: Checkpoint
    config: ModelConfig
    readings: list[Reading]
    quant: str
    formats: Formats
    device: torch.device


def load_prompt_tools(options: LoadOptions) -> PromptTools:
    """Template and tokenizer of a model, without its weights.

    Raises:
        ModelError: If the model cannot be had or read.
    """
    folder = resolve(options, weights=False)
    return _prompt_tools(folder, options.model)


def _prompt_tools(folder: Path, model: str, vocab_size: int | None = None) -> PromptTools:
    template = ChatTemplate.from_folder(folder, model=model)
    return PromptTools(Tokenizer.from_folder(folder, vocab_size), template, model)


def load_engine(
    options: LoadOptions, report: Report | None = None, warn: Warn | None = None
) -> Engine:
    """Load a model.

    Args:
        options: Which model, and how it is held.
        report: Told how far loading is.
        warn: Told, in one line, what did not work and is not needed.

    Raises:
        UsageError: If the options do not suit the model or the machine.
        ModelError: If the model cannot be had or read.
        MemoryLimitError: If it does not fit.
    """
    began = time.perf_counter()
    warn = warn or (lambda text: None)
    folder = resolve(options)
    try:
        plan = make_plan(folder, options)
        set_threads(options.threads)
        _check_places(memory_plan(plan, options, warn), options)
        weights = _weights(plan, options, report, warn)
        dtype = getattr(torch, options.dtype)
        decoder = assemble(plan.config, weights, plan.formats, plan.device, dtype)
    except QuantError as exc:
        raise CheckpointError(str(exc)) from exc
    except (MemoryError, torch.OutOfMemoryError) as exc:
        raise MemoryLimitError(
            f"{options.model} does not fit into the free memory", "use --4bit or a smaller model"
        ) from exc
    prompts = _prompt_tools(folder, options.model, plan.config.vocab_size)
    raw_config, generation_config = plan.checkpoint.config, read_generation_config(folder)
    info = ModelInfo(
        model=options.model,
        quant=plan.quant,
        device=str(plan.device),
        context_length=context_length(options, plan.config),
        thinking=prompts.template.thinking if prompts.template else "never",
        has_chat_template=prompts.template is not None,
        load_seconds=time.perf_counter() - began,
        defaults=sampling_defaults(generation_config),
    )
    return Engine(
        info,
        decoder,
        prompts,
        stop_ids=stop_token_ids(prompts.tokenizer, prompts.template, raw_config, generation_config),
        weights_nbytes=weights.nbytes,
        on_close=lambda engine: keep_profile(engine, fingerprint(plan.checkpoint), warn),
        kept_caches=_kept_caches(plan, options, warn),
    )


def _kept_caches(plan: Plan, options: LoadOptions, warn: Warn) -> KeptCaches:
    """Where what was read of saved conversations is kept."""
    key = f"{copy_folder(plan, '').name}-{options.dtype}-{plan.device.type}"
    limit = size_nbytes(options.session_cache, MAX_NBYTES) or 0
    return KeptCaches(kept_folder(), key, limit, warn)


def make_plan(folder: Path, options: LoadOptions) -> Plan:
    """Choose format, kernels and device for a checkpoint and account for its tensors.

    Raises:
        UsageError: If the options do not suit the model or the machine.
        ModelError: If the checkpoint cannot be read.
    """
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.config)
    config = family.parse_config(checkpoint.config)
    readings = plan_readings(checkpoint, family, config)
    device = choose_device(options.device)
    quant = options.quant
    if quant == "auto":
        quant = checkpoint.quantized_format or DEFAULT_QUANT
    return Plan(checkpoint, config, readings, quant, choose_formats(quant, options, device), device)


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


def set_threads(threads: int | None) -> None:
    """Let kernels use that many cores, or leave their choice: the physical ones."""
    if threads is not None:
        set_num_threads(threads)


def memory_plan(plan: Plan, options: LoadOptions, warn: Warn | None = None) -> MemoryPlan:
    """Where every byte of a model goes on this machine, known before a weight is read.

    Raises:
        UsageError: If a flag asks for more memory than there is.
        MemoryLimitError: If the model does not fit, naming the least that works.
    """
    sizes = model_sizes(plan.config, [reading.slot for reading in plan.readings], plan.formats)
    profile = known_profile(fingerprint(plan.checkpoint), warn or (lambda text: None))
    counts = None if profile is None else profile.counts
    context = context_length(options, plan.config)
    try:
        return fit(sizes, options, context, counts, this_machine(plan.device))
    except MemoryLimitError as exc:
        if plan.quant not in ("bf16", "int8"):
            raise
        raise MemoryLimitError(exc.message, f"{exc.hint}, or use --4bit") from exc


def _check_places(plan: MemoryPlan, options: LoadOptions) -> None:
    """Refuse a plan that the stores cannot carry out yet."""
    elsewhere = plan.sizes.num_experts - plan.num_experts(plan.fixed_place)
    if elsewhere and (plan.fixed_place == "GPU" or options.cpu_memory is not None):
        flag = FLAGS[plan.fixed_place]
        needed = plan.nbytes(plan.fixed_place) + elsewhere * plan.sizes.expert_nbytes
        raise MemoryLimitError(
            f"{elsewhere:,} of {plan.sizes.num_experts:,} experts do not fit into the "
            f"{plan.fixed_place}",
            f"{flag} {least_size(needed)} would hold all",
        )


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash that changes when a checkpoint does: its config, and each shard's name, size and age.

    Files of the hub's cache are links whose targets are named by content, so a revision that
    shares a file with another one shares its identity too.
    """
    facts: list[Any] = [checkpoint.config]
    for shard in checkpoint.shards:
        real = shard.resolve()
        stat = real.stat()
        facts.append((str(real), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def copy_folder(plan: Plan, model: str) -> Path:
    """Where the quantized copy of a plan lives: readable name, then all that it depends on."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in Path(model).name or "model")
    kernels = f"{plan.formats.linear_backend.name}-{plan.formats.embedding_backend.name}"
    key = f"{fingerprint(plan.checkpoint)}-{plan.quant}-{kernels}-v{COPY_VERSION}"
    return platformdirs.user_cache_path("erniechat") / "copies" / f"{name}-{key}"


def _weights(plan: Plan, options: LoadOptions, report: Report | None, warn: Warn) -> WeightSource:
    """Map the quantized copy, making it first if there is none; or quantize into memory."""
    progress = _reporter(report)
    if not options.copy:
        return _convert_to_memory(plan, progress)
    folder = copy_folder(plan, options.model)
    with suppress(FileNotFoundError, NotADirectoryError):
        return QuantizedCopy(folder)
    try:
        with CopyWriter(folder, {"model": options.model, "quant": plan.quant}) as writer:
            convert(plan.readings, plan.formats, writer, progress)
            writer.finish()
        return QuantizedCopy(folder)
    except OSError as exc:
        warn(
            f"no quantized copy is kept: {folder.parent} cannot be written ({exc.strerror}); "
            "the next start quantizes again, or use --no-copy"
        )
    return _convert_to_memory(plan, progress)


def _convert_to_memory(plan: Plan, progress: Callable[[int, int], None] | None) -> MemoryWeights:
    weights = MemoryWeights()
    convert(plan.readings, plan.formats, weights, progress)
    return weights


def _reporter(report: Report | None) -> Callable[[int, int], None] | None:
    if report is None:
        return None
    return lambda done, total: report(Progress("quantize", done, total))
