"""What a token costs on a GPU: the captured step at the shape of ERNIE-4.5-21B-A3B, by kernel.

    python -m tests.bench.gpu_step [--quant nf4] [--context 512 32768] [--kernels] [--sampling]
        [--tune]

Weights are random. Times are medians over replays of the captured graph; with ``--kernels`` a
profile of one replay follows, where the time between kernels is not counted.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from erniechat.generation.generate import Limits, decode
from erniechat.generation.sampling import Sampler
from erniechat.model.assembly import assemble
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.device_step import CapturedStep
from erniechat.model.families import family_of
from erniechat.model.synthetic import with_layers
from quant.copy import MemoryWeights, Weight
from quant.formats import format_named
from quant.kernels import backend_for
from quant.kernels.triton.backend import decode_launchers
from quant.kernels.triton.step_weights import ChoiceKind, Tuning

HUB_CONFIG = {
    "model_type": "ernie4_5_moe",
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_bias": False,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "moe_num_experts": 64,
    "moe_k": 6,
    "moe_intermediate_size": 1536,
    "moe_num_shared_experts": 2,
    "tie_word_embeddings": True,
}
SHAPE_21B = family_of(HUB_CONFIG).parse_config(HUB_CONFIG)
NUM_DISTINCT_EXPERTS = 8
DEVICE = torch.device("cuda")
NUM_PREFILLS = 7  # of which two warm up


class RepeatedExperts(MemoryWeights):
    """Random weights in which a few experts stand for all, so that making them takes no time."""

    def __init__(self, config: ModelConfig, formats: Formats) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        hidden, width = config.hidden_size, config.moe_intermediate_size
        heads = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        self._expert = {
            "gate_up": [
                formats.linear.random((2 * width, hidden), generator)
                for _ in range(NUM_DISTINCT_EXPERTS)
            ],
            "down": [
                formats.linear.random((hidden, width), generator)
                for _ in range(NUM_DISTINCT_EXPERTS)
            ],
        }
        self["embed_tokens"] = formats.embedding.random((config.vocab_size, hidden), generator)
        self["norm"] = torch.ones(hidden, dtype=torch.bfloat16)
        for i in range(config.num_hidden_layers):
            at = f"layers.{i}."
            self[at + "qkv"] = formats.linear.random((heads + 2 * kv, hidden), generator)
            self[at + "o"] = formats.linear.random((hidden, heads), generator)
            self[at + "input_norm"] = torch.ones(hidden, dtype=torch.bfloat16)
            self[at + "post_attention_norm"] = torch.ones(hidden, dtype=torch.bfloat16)
            name, wide = "mlp", config.intermediate_size
            if i in config.moe_layers:
                name, wide = "shared", config.num_shared_experts * width
                router = torch.randn(config.num_experts, hidden, generator=generator)
                self[at + "router"] = router * 0.02
                self[at + "correction_bias"] = torch.zeros(config.num_experts)
            self[at + name + ".gate_up"] = formats.linear.random((2 * wide, hidden), generator)
            self[at + name + ".down"] = formats.linear.random((hidden, wide), generator)

    def __missing__(self, name: str) -> Weight:
        _, layer_idx, _, expert_idx, matrix = name.split(".")
        return self._expert[matrix][(int(layer_idx) + int(expert_idx)) % NUM_DISTINCT_EXPERTS]


def build(quant: str, config: ModelConfig = SHAPE_21B) -> Decoder:
    embedding = "bf16" if quant == "bf16" else "int8"
    formats = Formats(
        format_named(quant),
        format_named(embedding),
        backend_for(quant, DEVICE, "triton"),
        backend_for(embedding, DEVICE, "triton"),
    )
    weights = RepeatedExperts(config, formats)
    began = time.perf_counter()
    decoder = assemble(config, weights, formats, DEVICE, torch.bfloat16)
    decoder.wait()
    seconds = time.perf_counter() - began
    held = torch.cuda.memory_allocated()
    report(
        event="loaded", quant=quant, held_GB=round(held / 1e9, 3), seconds=round(seconds, 2),
        over_MB=round((torch.cuda.max_memory_allocated() - held) / 1e6),
    )  # fmt: skip
    return decoder


def report(**row: object) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def median_ms(run, count: int, warmup: int = 5) -> float:
    """Milliseconds of a run on the device."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / count)
    return statistics.median(times)


def filled_cache(decoder: Decoder, length: int):
    """A cache that seems to hold so many tokens; what they are is left to chance."""
    kv_cache = decoder.new_kv_cache(length + 4096)
    kv_cache.reserve(length + 4096)
    kv_cache._data.normal_()
    kv_cache.token_ids.extend([0] * length)
    return kv_cache


def greedy_graph(captured, vocab_size: int):
    step = captured.step

    def launch() -> None:
        step.forward(vocab_size)
        step.pick(vocab_size)
        step.advance()

    return captured.graph(("bench", vocab_size), launch)


def time_decode(decoder: Decoder, length: int, captured=None) -> float:
    captured = captured or decoder.step
    graph = greedy_graph(captured, SHAPE_21B.vocab_size)
    kv_cache = filled_cache(decoder, length)
    captured.place(kv_cache, length)
    return median_ms(graph.replay, 100)


def check_against_eager(decoder: Decoder, num_layers: int = 28) -> None:
    """The captured step against the same weights through the tile kernels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, SHAPE_21B.vocab_size, (200,), generator=generator).tolist()
    captured, decoder.step = decoder.step, None
    first, second = decoder.new_kv_cache(512), decoder.new_kv_cache(512)
    decoder.forward(ids, first)
    decoder.forward(ids, second)
    eager = decoder.forward([5], first)[0]
    decoder.step = captured
    replayed = decoder.forward([5], second)[0]
    error = float((eager - replayed).norm() / eager.norm())
    report(
        event="check",
        layers=num_layers,
        norm=round(float(eager.norm()), 2),
        other=round(float(replayed.norm()), 2),
        finite=bool(replayed.isfinite().all()),
        relative_error=round(error, 5),
        same=int(eager.argmax()) == int(replayed.argmax()),
    )


def prefill_seconds(decoder: Decoder, length: int) -> float:
    """A median over prompts read from nothing."""
    ids = torch.randint(0, SHAPE_21B.vocab_size, (length,)).tolist()
    times = []
    for _ in range(NUM_PREFILLS):
        kv_cache = decoder.new_kv_cache(length + 8)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for at in range(0, length, 512):
            decoder.forward(ids[at : at + 512], kv_cache)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def time_prefill(decoder: Decoder, length: int) -> None:
    seconds = prefill_seconds(decoder, length)
    report(
        event="prefill", tokens=length, ms=round(1e3 * seconds, 2), tok_s=round(length / seconds)
    )


def profile(run, label: str) -> None:
    """Time by kernel of one run."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as trace

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with trace(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        run()
        torch.cuda.synchronize()
    total: dict[str, list[float]] = defaultdict(list)
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            total[event.name[:60]].append(event.device_time)
    rows = sorted(total.items(), key=lambda item: -sum(item[1]))
    for name, times in rows[:14]:
        report(
            run=label,
            kernel=name,
            calls=len(times),
            us_each=round(statistics.median(times), 2),
            us=round(sum(times), 1),
        )


def profile_prefill(decoder: Decoder, length: int) -> None:
    ids, kv_cache = list(range(length)), decoder.new_kv_cache(length)

    def run() -> None:
        kv_cache.forget_from(0)
        decoder.forward(ids, kv_cache)

    profile(run, "prefill")


def time_choices(decoder: Decoder, quant: str) -> None:
    """What choosing a token costs, alone in a graph, and whole tokens with it."""
    captured, vocab_size = decoder.step, SHAPE_21B.vocab_size
    step = captured.step
    kinds = {
        "greedy": ChoiceKind(vocab_size),
        "off": ChoiceKind(vocab_size, greedy=False),
        "top_p 0.8": ChoiceKind(vocab_size, greedy=False, top_p=True),
        "top_k 40, top_p 0.8": ChoiceKind(vocab_size, greedy=False, top_k=True, top_p=True),
    }
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(vocab_size, generator=generator)).to(DEVICE)
    for name, kind in kinds.items():
        step.choice.set(0.8, 40, 0.8, 0.0, 1)

        def launch(kind: ChoiceKind = kind) -> None:
            step.choice.launch(kind)

        graph = captured.graph(("choice", kind), launch)
        step.choice.begin(logits, vocab_size)
        us = 1e3 * median_ms(graph.replay, 200)

        sampler = {
            "greedy": Sampler(0.0),
            "off": Sampler(0.8),
            "top_p 0.8": Sampler(0.8, 0, 0.8),
            "top_k 40, top_p 0.8": Sampler(0.8, 40, 0.8),
        }[name]
        kv_cache = filled_cache(decoder, 512)
        limits = Limits((), 257, vocab_size)
        ids = decode(decoder, kv_cache, logits, sampler, limits, generator, lambda: False)
        next(ids)
        began = time.perf_counter()
        count = sum(1 for _ in ids)
        ms = 1e3 * (time.perf_counter() - began) / count
        report(
            event="choice",
            quant=quant,
            sampling=name,
            us=round(us, 1),
            token_ms=round(ms, 4),
            tok_s=round(1e3 / ms, 1),
        )


def variants() -> Iterator[tuple[str, dict[str, object]]]:
    yield "as it is", {}
    yield "no pdl", {"pdl": False}
    for warps in (4, 16):
        yield f"project warps {warps}", {"project_warps": warps}
    yield "output warps 8", {"output_warps": 8}
    for splits, warps in ((8, 1), (8, 4), (4, 2)):
        yield f"down {splits}/{warps}", {"down_splits": splits, "down_warps": warps}
    yield "route warps 4", {"route_warps": 4}
    yield "combine warps 4", {"combine_warps": 4}
    yield "attention 64/4/16/5", _attention(64, 4, 16, 5)
    yield "attention 64/4/32/3", _attention(64, 4, 32, 3)
    yield "attention 128/4/32/3", _attention(128, 4, 32, 3)


def _attention(tile: int, warps: int, splits: int, stages: int) -> dict[str, object]:
    return {
        "attention_tile": tile,
        "attention_warps": warps,
        "attention_splits": splits,
        "attention_stages": stages,
    }


def tuned(decoder: Decoder, **changes: object):
    """The same weights in another captured step."""
    step = decoder.step.step
    other = decode_launchers().DecodeStep(
        step.sizes, step._layers, step._embedding, step._head, step._final_norm, step._experts,
        step._inverse_frequencies, Tuning(**changes),
    )  # fmt: skip
    return CapturedStep(other, None, DEVICE)


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", nargs="*", default=["nf4"])
    parser.add_argument("--context", type=int, nargs="*", default=[512])
    parser.add_argument("--prefill", type=int, nargs="*", default=[32, 512])
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--check-layers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--sampling", action="store_true")
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    for quant in args.quant:
        for num_layers in args.check_layers:
            check_against_eager(build(quant, with_layers(SHAPE_21B, num_layers)), num_layers)
        decoder = build(quant)
        began = time.perf_counter()
        check_against_eager(decoder)
        report(event="first token", seconds=round(time.perf_counter() - began, 1))
        for length in args.context:
            ms = time_decode(decoder, length)
            report(
                event="decode",
                quant=quant,
                context=length,
                ms=round(ms, 4),
                tok_s=round(1e3 / ms, 1),
            )
        if args.sampling:
            time_choices(decoder, quant)
        if args.kernels:
            apart = tuned(decoder, pdl=False)
            time_decode(decoder, args.context[0], apart)
            profile(greedy_graph(apart, SHAPE_21B.vocab_size).replay, "decode")
            time_decode(decoder, 32768, apart)
            profile(greedy_graph(apart, SHAPE_21B.vocab_size).replay, "decode 32k")
        for length in args.prefill:
            time_prefill(decoder, length)
        if args.kernels and args.prefill:
            profile_prefill(decoder, args.prefill[-1])
        for name, changes in variants() if args.tune else ():
            try:
                other = tuned(decoder, **changes)
                ms = time_decode(decoder, args.context[0], other)
            except Exception as exc:
                report(event="failed", variant=name, error=repr(exc)[:300])
                continue
            long = time_decode(decoder, 32768, other)
            report(
                event="variant",
                variant=name,
                ms=round(ms, 4),
                tok_s=round(1e3 / ms, 1),
                ms_32k=round(long, 4),
            )
        report(event="peak", quant=quant, GB=round(torch.cuda.max_memory_allocated() / 1e9, 3))
        del decoder
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
