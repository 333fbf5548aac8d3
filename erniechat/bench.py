"""`erniechat bench`: prefill, decode, memory and hit rate, in one table or as JSON."""

import dataclasses
import functools
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from erniechat.comparison import compare, format_comparison
from erniechat.decode_reads import DecodeReads
from erniechat.errors import MemoryLimitError, UsageError
from erniechat.fit import Machine, expert_places, fit, machine_again, this_machine
from erniechat.generation.generate import PREFILL_CHUNK, Limits, decode
from erniechat.generation.sampling import Sampler
from erniechat.loader import decode_reads, load_engine, set_threads
from erniechat.machine import keep_figures, kept_figures
from erniechat.model.assembly import assemble
from erniechat.model.decoder import Decoder
from erniechat.model.families import family_of
from erniechat.model.folder import read_json
from erniechat.model.synthetic import random_weights, with_layers
from erniechat.model_sizes import model_sizes
from erniechat.options import BenchOptions, LoadOptions
from erniechat.planning import choose_device, choose_formats, context_length
from erniechat.quality import measure_quality
from quant.allocator import give_back_freed_memory
from quant.experts.adapter import ExpertAdapter
from quant.experts.tiered import TieredExpertStore
from quant.memory import lacks_memory, process_memory

SEED = 0
GIB = 1 << 30
Result = dict[str, Any]


def run_bench(load: LoadOptions, bench: BenchOptions, report: Callable[[str], None]) -> Result:
    """Measure a model's speed, or with ``bench.quality`` what its quantization costs.

    One run is not counted; the prompt is random with a fixed seed; tokens are decoded greedily
    and no token stops them. The clock is read when the device is done or an id has come from it.

    Args:
        load: Which model, and how it is held.
        bench: What to measure.
        report: Told in a line what is being done.

    Returns:
        What `format_bench` draws and ``--json`` prints. Speeds are tokens a second as
        ``{median, min, max}``, times seconds, memory bytes.
    """
    if bench.quality is not None:
        return measure_quality(load, bench, report)
    if bench.ab is not None:
        machine = this_machine(choose_device(load.device))  # before either side is loaded
        once = functools.partial(_once, bench=bench, report=report, machine=machine)
        return compare(load, bench.ab, bench.runs, once, report)
    began = time.perf_counter()
    report("loading")
    decoder, quant, weights_nbytes, adapter, reads = _model(load, bench, report)
    needed = bench.prompt_tokens + bench.new_tokens
    longest = context_length(load, decoder.config)
    if needed > longest:
        raise UsageError(
            f"--prompt-tokens and --new-tokens must sum to at most {longest:,}, got {needed:,}"
        )
    decoder.wait()
    load_seconds = time.perf_counter() - began
    runs = []
    for run in range(bench.runs + 1):
        report(f"run {run} of {bench.runs}" if run else "warming up")
        counted = reads if run else reads.anew()  # the first is not counted
        runs.append(timed_run(decoder, bench, counted))
        _adapt(adapter, len(runs), bench)
    return _result(load, bench, decoder, quant, weights_nbytes, load_seconds, runs[1:], reads)


def _once(
    load: LoadOptions, bench: BenchOptions, report: Callable[[str], None], machine: Machine
) -> dict[str, float]:
    """One run of a model that is loaded for it, after one that is not counted."""
    decoder, _, _, adapter, reads = _model(load, bench, report, machine)
    timed_run(decoder, bench)
    _adapt(adapter, 1, bench)
    found = timed_run(decoder, bench, reads) | {"hit_rate": reads.hit_rate}
    if isinstance(decoder.experts, TieredExpertStore):
        decoder.experts.close()
    del decoder, adapter
    gc.collect()
    give_back_freed_memory()
    torch.cuda.empty_cache()  # or the other side would find less memory
    return found


def _adapt(adapter: ExpertAdapter | None, num_runs: int, bench: BenchOptions) -> None:
    """Let experts move between two runs as between the turns of a chat."""
    if adapter is not None:
        adapter.adapt(num_runs * (bench.prompt_tokens + bench.new_tokens))


def _model(
    load: LoadOptions,
    bench: BenchOptions,
    report: Callable[[str], None],
    before: Machine | None = None,
) -> tuple[Decoder, str, int, ExpertAdapter | None, DecodeReads]:
    """The model to measure, its format, its bytes, who moves its experts, who counts reads."""
    if bench.synthetic is None:
        engine = load_engine(load, before=before)
        nbytes = engine.memory().weights_nbytes
        return engine.decoder, engine.info.quant, nbytes, engine.adapter, engine.reads
    raw = read_json(Path(bench.synthetic) / "config.json")
    family = family_of(raw)
    config = family.parse_config(raw)
    if bench.layers is not None:
        if bench.layers > config.num_hidden_layers:
            raise UsageError(
                f"--layers must be at most the {config.num_hidden_layers} of {bench.synthetic}, "
                f'got "{bench.layers}"'
            )
        config = with_layers(config, bench.layers)
    set_threads(load.threads)
    device = choose_device(load.device)
    quant = "nf4" if load.quant == "auto" else load.quant
    formats = choose_formats(quant, load, device)
    try:
        slots = family.tensors(config).values()
        sizes = model_sizes(config, slots, formats, getattr(torch, load.dtype))
        tokens = max(load.ctx or 0, bench.prompt_tokens + bench.new_tokens)
        figures = kept_figures(device, keep=load.keep_speeds)
        machine = machine_again(before, device) if before else this_machine(device)
        memory = fit(sizes, load, tokens, None, machine)
        places = expert_places(memory, load, figures)
        if places.disk:
            raise MemoryLimitError(
                f"{len(places.disk):,} experts fit into no memory, and random weights are in no "
                "file to read them from",
                "give more --cpu-memory, or use --layers N for a part of the model",
            )
        weights = random_weights(config, family, formats)
        decoder = assemble(config, weights, formats, device, getattr(torch, load.dtype), places)
        keep_figures(figures, report)
    except (MemoryError, RuntimeError) as exc:
        if not lacks_memory(exc):
            raise
        raise MemoryLimitError(
            f"random {quant} weights of {bench.synthetic} do not fit into the free memory",
            "use --layers N for a part of the model",
        ) from exc
    return decoder, quant, weights.nbytes, None, decode_reads(memory, figures)


def timed_run(
    decoder: Decoder, bench: BenchOptions, reads: DecodeReads | None = None
) -> dict[str, float]:
    """One prompt and its answer: tokens a second, and seconds to the first token.

    Args:
        decoder: The model.
        bench: How many tokens each has.
        reads: Told what the answer read.
    """
    generator = torch.Generator().manual_seed(SEED)
    vocab_size = decoder.config.vocab_size
    ids = torch.randint(0, vocab_size, (bench.prompt_tokens,), generator=generator).tolist()
    kv_cache = decoder.new_kv_cache(bench.prompt_tokens + bench.new_tokens)
    began = _clock(decoder)
    for at in range(0, len(ids), PREFILL_CHUNK):
        logits = decoder.forward(ids[at : at + PREFILL_CHUNK], kv_cache)
    prefilled = _clock(decoder)
    limits = Limits((), bench.new_tokens + 1, vocab_size)
    sampler = Sampler(temperature=0)
    reply = decode(decoder, kv_cache, logits[-1], sampler, limits, generator, lambda: False)
    next(reply)  # an id is known when all that it needs is computed
    before = decoder.experts.uses
    first = time.perf_counter()
    for _ in reply:
        pass
    decoded = time.perf_counter()
    if reads is not None:
        reads.add(before, decoder.experts.uses, bench.new_tokens, decoded - first)
    return {
        "prefill": bench.prompt_tokens / (prefilled - began),
        "decode": bench.new_tokens / (decoded - first),
        "first_token": first - began,
    }


def _clock(decoder: Decoder) -> float:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    return time.perf_counter()


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _result(
    load: LoadOptions,
    bench: BenchOptions,
    decoder: Decoder,
    quant: str,
    weights_nbytes: int,
    load_seconds: float,
    runs: list[dict[str, float]],
    reads: DecodeReads,
) -> Result:
    on_gpu = decoder.device.type == "cuda"
    config = decoder.config
    tokens = bench.prompt_tokens + bench.new_tokens
    return {
        "model": f"random weights of {bench.synthetic}" if bench.synthetic else load.model,
        "revision": load.revision,
        "layers": config.num_hidden_layers,
        "quant": quant,
        "kernels": decoder.experts.kernels,
        "device": torch.cuda.get_device_name(decoder.device) if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": load.dtype,
        "torch": torch.__version__,
        "prompt_tokens": bench.prompt_tokens,
        "new_tokens": bench.new_tokens,
        "runs": bench.runs,
        "load_seconds": load_seconds,
        "prefill": {"tokens_per_second": _spread([run["prefill"] for run in runs])},
        "decode": {"tokens_per_second": _spread([run["decode"] for run in runs])},
        "first_token_seconds": _spread([run["first_token"] for run in runs]),
        "memory": {
            "weights": weights_nbytes,
            "kv_cache": tokens * config.kv_nbytes_per_token,
            "host_peak": process_memory().peak_rss_nbytes,
            "gpu_peak": torch.cuda.max_memory_allocated(decoder.device) if on_gpu else 0,
        },
        "experts": {
            "hit_rate": reads.hit_rate,
            "nbytes_per_token": {
                place: nbytes / reads.num_tokens for place, nbytes in reads.nbytes.items()
            },
        },
        "reads": {
            place: dataclasses.asdict(read) | {"share": read.share}
            for place, read in reads.reads().items()
        },
    }


def format_bench(result: Result) -> str:
    """The result as a table for people."""
    if "ab" in result:
        return format_comparison(result)
    if "quality" in result:
        return _format_quality(result)
    head = (
        f"{result['model']} · {result['layers']} layers · {result['quant']} · "
        f"kernels {result['kernels']} · {result['dtype']}\n"
        f"{result['device']} · {result['threads']} threads · torch {result['torch']} · "
        f"{result['runs']} runs, median (min–max)"
    )
    memory = result["memory"]
    prefill, decode = result["prefill"], result["decode"]
    rows = [
        ("prefill", f"{_shown(prefill['tokens_per_second'])} tok/s", result["prompt_tokens"]),
        ("decode", f"{_shown(decode['tokens_per_second'])} tok/s", result["new_tokens"]),
    ]
    lines = [f"  {name:<12} {value}   ({count} tokens)" for name, value, count in rows]
    lines.append(f"  {'first token':<12} {_shown(result['first_token_seconds'])} s")
    sizes = f"weights {memory['weights'] / GIB:.2f} · host peak {memory['host_peak'] / GIB:.2f}"
    if memory["gpu_peak"]:
        sizes += f" · GPU peak {memory['gpu_peak'] / GIB:.2f}"
    lines.append(f"  {'memory':<12} {sizes} GiB")
    lines.append(
        f"  {'hit rate':<12} {100 * result['experts']['hit_rate']:.1f} % of routed experts"
    )
    lines += [f"  {'from ' + place:<12} {_read(read)}" for place, read in result["reads"].items()]
    return "\n".join([head, "", *lines]) + "\n"


def _read(read: Result) -> str:
    """What a token reads of a place, and which share that is of what the place gives."""
    told = f"{read['nbytes_per_token'] / 1e6:.1f} MB a token, "
    told += f"{read['nbytes_per_second'] / 1e9:.2f} GB/s"
    if read["share"] is None:
        return f"{told} (erniechat doctor measures what there is)"
    return f"{told}, {100 * read['share']:.1f} % of {read['measured'] / 1e9:.1f}"


def _shown(values: dict[str, float]) -> str:
    digits = 3 if values["median"] < 1 else 2 if values["median"] < 100 else 0
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def _format_quality(result: Result) -> str:
    lines = [
        f"{result['model']} · {result['tokens']:,} tokens of {result['quality']} in windows of "
        f"{result['window']}",
        "",
        f"  {'format':<8}{'GiB':>8}{'perplexity':>12}{'mean KL':>12}{'top-1':>9}",
    ]
    for name, row in result["formats"].items():
        compared = (
            f"{row['kl']:>12.5f}{100 * row['top1']:>8.2f}%" if "kl" in row else f"{'–':>12}{'–':>9}"
        )
        lines.append(f"  {name:<8}{row['weights'] / GIB:>8.3f}{row['perplexity']:>12.4f}{compared}")
    return "\n".join(lines) + "\n"
