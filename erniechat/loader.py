"""LoadOptions to Engine: find the files, choose formats and kernels, quantize or map, assemble."""

import dataclasses
import time
from collections.abc import Callable

import torch

from erniechat.backend import ModelInfo
from erniechat.chat.generation_defaults import sampling_defaults, stop_token_ids
from erniechat.chat.sessions import kept_folder
from erniechat.decode_reads import DecodeReads
from erniechat.early import EarlyModel, find_early
from erniechat.engine import Engine
from erniechat.errors import CheckpointError, MemoryLimitError
from erniechat.events import Progress
from erniechat.fit import Machine, expert_places, machine_again, this_machine
from erniechat.machine import keep_figures, kept_figures, place_speeds
from erniechat.memory_plan import MemoryPlan
from erniechat.model.assembly import assemble
from erniechat.model.decoder import Decoder
from erniechat.model.kept_cache import KeptCaches
from erniechat.model_text import read_generation_values, read_prompt_tools
from erniechat.options import LoadOptions
from erniechat.placing import check_memory, earlier_use, residency_of
from erniechat.planning import Plan, copy_folder, make_plan, open_checkpoint
from erniechat.profiles import ProfileKeeper
from erniechat.prompts import PromptTools
from erniechat.resolve import locate
from erniechat.sizes import MAX_NBYTES, size_nbytes
from erniechat.start_plan import check_disk
from erniechat.weights import finished_weights
from quant.copy import QuantizedCopy, WeightSource
from quant.errors import QuantError
from quant.experts.adaptation import AdaptationPolicy
from quant.experts.adapter import ExpertAdapter
from quant.experts.store import ResidentExpertStore
from quant.experts.tiered import TieredExpertStore
from quant.figures import KeptFigures
from quant.kernels import set_num_threads
from quant.memory import gpu_memory, lacks_memory

NUM_TRIES = 3  # to fit a GPU that others use too
SHARE_OF_FREE = 0.9  # of its memory, after a try that failed

Report = Callable[[Progress], None]
Warn = Callable[[str], None]


def load_prompt_tools(options: LoadOptions) -> PromptTools:
    """Template and tokenizer of a model, without its weights.

    Raises:
        ModelError: If the model cannot be had or read.
    """
    files = locate(options)
    checkpoint = open_checkpoint(files, offline=options.offline) if files.is_gguf else None
    return read_prompt_tools(files.folder, options.model, checkpoint)


def load_engine(
    options: LoadOptions,
    report: Report | None = None,
    warn: Warn | None = None,
    early: EarlyModel | None = None,
    before: Machine | None = None,
) -> Engine:
    """Load a model.

    Args:
        options: Which model, and how it is held.
        report: Told how far loading is.
        warn: Told, in one line, what did not work and is not needed.
        early: What has been found of it already.
        before: The machine before this program loaded another model; by default it is as it is now.

    Raises:
        UsageError: If the options do not suit the model or the machine.
        ModelError: If the model cannot be had or read.
        MemoryLimitError: If it does not fit into memory.
        DiskLimitError: If the download or the copy does not fit on the disk.
    """
    began = time.perf_counter()
    warn = warn or (lambda text: None)
    early = early or find_early(options)
    files = early.files
    try:
        plan = make_plan(files, options)
        set_threads(options.threads)
        if options.gpu_memory is not None and plan.device.type == "cpu":
            warn(f"--gpu-memory {options.gpu_memory} changes nothing: the model runs on the CPU")
        machine = machine_again(before, plan.device) if before else this_machine(plan.device)
        check_memory(plan, options, warn, machine)
        check_disk(plan, options)
        weights = finished_weights(plan, options, report, warn)
        decoder, memory = _assembled(plan, options, weights, warn, machine)
    except QuantError as exc:
        raise CheckpointError(str(exc)) from exc
    except (MemoryError, RuntimeError) as exc:
        if not lacks_memory(exc):
            raise
        raise MemoryLimitError(
            f"{options.model} does not fit into the free memory", "use --4bit or a smaller model"
        ) from exc
    checkpoint, vocab_size = plan.checkpoint, plan.config.vocab_size
    prompts = read_prompt_tools(
        files.folder, options.model, checkpoint, vocab_size, early.tokenizer
    )
    generation_config = read_generation_values(files.folder, checkpoint)
    info = ModelInfo(
        model=options.model,
        quant=plan.quant,
        device=str(plan.device),
        context_length=memory.longest_context,
        thinking=prompts.template.thinking if prompts.template else "never",
        has_chat_template=prompts.template is not None,
        load_seconds=time.perf_counter() - began,
        defaults=sampling_defaults(generation_config),
        max_context_length=plan.config.max_position_embeddings,
        kv_nbytes_per_token=plan.config.kv_nbytes_per_token * decoder.dtype.itemsize // 2,
        planned_context=memory.context_length if decoder.cache_memory else 0,
    )
    keeper = ProfileKeeper(plan.fingerprint, warn)
    return Engine(
        info,
        decoder,
        prompts,
        stop_ids=stop_token_ids(
            prompts.tokenizer, prompts.template, checkpoint.config, generation_config
        ),
        weights_nbytes=weights.nbytes,
        on_turn=keeper.turn_ended,
        on_close=keeper.close,
        kept_caches=_kept_caches(plan, options, warn),
        adapter=_adapter(decoder, plan, options, warn),
        memory_left=_memory_left(memory),
        page_calls=_page_calls(plan, decoder, weights),
        reads=decode_reads(memory, kept_figures(plan.device, keep=options.keep_speeds)),
    )


def decode_reads(memory: MemoryPlan, figures: KeptFigures) -> DecodeReads:
    """Counts what decoded tokens of a model read."""
    return DecodeReads(memory.fixed_place, memory.sizes.fixed_read_nbytes, place_speeds(figures))


def _assembled(
    plan: Plan, options: LoadOptions, weights: WeightSource, warn: Warn, machine: Machine
) -> tuple[Decoder, MemoryPlan]:
    """The decoder; with fewer experts on the GPU where that has less room than it seemed to have.

    Raises:
        OutOfMemoryError: torch's, if that did not help.
    """
    dtype = getattr(torch, options.dtype)
    for tries_left in reversed(range(NUM_TRIES)):
        machine = machine_again(machine, plan.device)
        memory = check_memory(plan, options, warn, machine)
        residency = residency_of(memory, weights, options, warn)
        figures = kept_figures(plan.device, keep=options.keep_speeds)
        places = expert_places(memory, options, figures)
        try:
            decoder = assemble(
                plan.config, weights, plan.formats, plan.device, dtype, places, residency
            )
            if isinstance(weights, QuantizedCopy):
                weights.check()
            keep_figures(figures, warn)
            return decoder, memory
        except torch.OutOfMemoryError:
            if not tries_left or plan.device.type != "cuda":
                raise
        torch.cuda.empty_cache()  # after the handler, which holds on to what was assembled
        free = gpu_memory(plan.device)
        nbytes = int(SHARE_OF_FREE * free.free_nbytes) if free else 0
        warn(f"the GPU has less free memory than it seemed; now with at most {nbytes:,} bytes")
        options = dataclasses.replace(options, gpu_memory=f"{nbytes}B")
    raise AssertionError("the last try returns or raises")


def _adapter(
    decoder: Decoder, plan: Plan, options: LoadOptions, warn: Warn
) -> ExpertAdapter | None:
    """What moves experts as a conversation goes on, if they are in more than one place."""
    store = decoder.experts
    if not isinstance(store, TieredExpertStore) or not plan.config.moe_layers:
        return None
    profile = earlier_use(plan, options, warn)
    adapter = ExpertAdapter(
        store,
        plan.config.moe_layers,
        None if profile is None else profile.counts,
        0.0 if profile is None else profile.num_tokens,
        AdaptationPolicy(is_on=options.adapt),
    )
    if decoder.cache_memory is not None:
        decoder.cache_memory.lender.hits = adapter.hits
    return adapter


def _page_calls(plan: Plan, decoder: Decoder, weights: WeightSource) -> list[Callable[[], object]]:
    """What reads the copy from the disk, where all of it is run as it is mapped."""
    is_mapped = isinstance(decoder.experts, ResidentExpertStore) and plan.device.type == "cpu"
    if not is_mapped or not isinstance(weights, QuantizedCopy):
        return []
    return weights.page_calls()


def _memory_left(memory: MemoryPlan) -> int | None:
    """What an asked-for budget leaves where the KV cache is; None if none was asked for."""
    place = memory.fixed_place
    return memory.left_nbytes(place) if memory.budgets[place].asked else None


def _kept_caches(plan: Plan, options: LoadOptions, warn: Warn) -> KeptCaches:
    """Where what was read of saved conversations is kept."""
    key = f"{copy_folder(plan, '').name}-{options.dtype}-{plan.device.type}"
    limit = size_nbytes(options.session_cache, MAX_NBYTES) or 0
    return KeptCaches(kept_folder(), key, limit, warn)


def set_threads(threads: int | None) -> None:
    """Let kernels use that many cores, or leave their choice: the physical ones."""
    if threads is not None:
        set_num_threads(threads)
