"""Decode and prefill with a part of the experts outside the GPU's memory, at the 21B shape.

    python -m tests.bench.gpu_tiers [--resident 864 432 0] [--skew 0.75] [--shares] [--prefill 512]
        [--adapt]

Weights are random; ``--resident`` routed experts of 1,728 lie on the GPU, chosen at random, the
others in pinned memory. Routing is uniform, or with ``--skew S`` so that the resident half of the
experts gets the share S of all choices. ``--adapt`` measures what moves cost: replies of 256 tokens
in which 64 experts change places beside the tokens, at once before one, or not at all, in turns;
with ``--skew`` it then turns to the other half, and lets experts move until none does any more:
speed and hit rate without and with. Times are medians over tokens of a captured graph; with
``--shares`` every way to share the rest between CPU and bus is tried.
"""

import argparse
import statistics
import time

import torch

from erniechat.model.assembly import assemble
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.expert_assembly import ExpertPlaces
from quant.experts.adaptation import AdaptationPolicy
from quant.experts.adapter import ExpertAdapter
from quant.experts.placement import ExpertKey
from quant.formats import format_named
from quant.kernels import backend_for
from quant.kernels.native import num_threads, read_probe, set_num_threads
from tests.bench.gpu_step import (
    DEVICE,
    NUM_PREFILLS,
    SHAPE_21B,
    RepeatedExperts,
    filled_cache,
    greedy_graph,
    prefill_seconds,
    report,
)

KEYS = [ExpertKey(i, j) for i in SHAPE_21B.moe_layers for j in range(SHAPE_21B.num_experts)]
TOP_K = SHAPE_21B.num_experts_per_tok


def build(quant: str, num_resident: int) -> Decoder:
    """The model with its experts in two places."""
    embedding = "bf16" if quant == "bf16" else "int8"
    formats = Formats(
        format_named(quant),
        format_named(embedding),
        backend_for(quant, DEVICE, "triton"),
        backend_for(embedding, DEVICE, "triton"),
    )
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(2)).tolist()
    ram = [KEYS[i] for i in order[num_resident:]]
    weights = RepeatedExperts(SHAPE_21B, formats)
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    decoder = assemble(SHAPE_21B, weights, formats, DEVICE, torch.bfloat16, ExpertPlaces(ram))
    torch.cuda.synchronize()
    report(
        event="loaded", quant=quant, resident=num_resident, of=len(KEYS),
        shares=decoder.experts.cpu_share.tolist(),
        row_shares={k: round(v, 3) for k, v in decoder.experts.prompts._row_shares.items()},
        threads=num_threads(), seconds=round(time.perf_counter() - began, 1),
        gpu_GB=round(torch.cuda.memory_allocated() / 1e9, 3),
    )  # fmt: skip
    return decoder


def time_decode(decoder: Decoder, count: int, context: int = 512) -> float:
    """Milliseconds a token, greedily, with the graph's own choice of the next one.

    As in a reply the host is a token behind, and sleeps while it waits.
    """
    captured, store = decoder.step, decoder.experts
    graph = greedy_graph(captured, SHAPE_21B.vocab_size)
    kv_cache = filled_cache(decoder, context)
    captured.place(kv_cache, context)
    times, began = [], time.perf_counter()
    ended = [torch.cuda.Event(blocking=True) for _ in range(count)]
    for at in range(count):
        store.server.wake()
        graph.replay()
        ended[at].record()
        if at:
            ended[at - 1].synchronize()
            store.server.check()
            now = time.perf_counter()
            times.append(now - began)
            began = now
    torch.cuda.synchronize()
    store.server.check()
    captured._held = (-1, -1, -1)
    if int(captured.step._arrived[1]):
        raise RuntimeError("an answer of the CPU never came")
    return 1e3 * statistics.median(times[count // 10 :])


def measure(decoder: Decoder, label: str, count: int) -> None:
    """One row: speed, and where experts were found."""
    store = decoder.experts
    before = [use.experts_run for use in store.uses]
    requests, _, busy, *_ = store.server.use
    ms = time_decode(decoder, count)
    ran = [use.experts_run - b for use, b in zip(store.uses, before, strict=True)]
    requests_now, _, busy_now, *_ = store.server.use
    total = sum(ran)
    on_cpu = ran[2] * store.pool.slot_nbytes
    report(
        event="decode", label=label, ms=round(ms, 3), tok_s=round(1e3 / ms, 1),
        gpu=round(ran[0] / total, 3), bus=round(ran[1] / total, 3), cpu=round(ran[2] / total, 3),
        cpu_GB_s=round(on_cpu / 1e9 / max(busy_now - busy, 1e-9), 1),
        cpu_us_a_request=round(1e6 * (busy_now - busy) / max(requests_now - requests, 1), 1),
    )  # fmt: skip


def skew(decoder: Decoder, wanted: float) -> None:
    """Raise the resident experts' bias until they get the wanted share of choices."""
    store, low, high = decoder.experts, 0.0, 0.05
    for _ in range(7):
        bias = (low + high) / 2
        for layer_idx in SHAPE_21B.moe_layers:
            tensor = decoder.weights.tensors[f"layers.{layer_idx}.correction_bias"]
            tensor.zero_()
            mine = [k.expert_idx for k in store.resident if k.layer_idx == layer_idx]
            tensor[mine] = bias
        before = [use.experts_run for use in store.uses]
        time_decode(decoder, 20)
        ran = [use.experts_run - b for use, b in zip(store.uses, before, strict=True)]
        share = ran[0] / sum(ran)
        low, high = (bias, high) if share < wanted else (low, bias)
    report(event="skew", share=round(share, 3), bias=bias)


def adapt(decoder: Decoder, count: int) -> None:
    """Let the half that is not resident be the preferred one, without and with moves."""
    store = decoder.experts
    for layer_idx in SHAPE_21B.moe_layers:
        tensor = decoder.weights.tensors[f"layers.{layer_idx}.correction_bias"]
        tensor.copy_(tensor.max() - tensor)
    measure(decoder, "other half, before", count)
    adapter = ExpertAdapter(store, SHAPE_21B.moe_layers, None, 0.0, AdaptationPolicy())
    tokens = 0
    for _ in range(20):
        time_decode(decoder, 256)
        tokens += 256
        began = time.perf_counter()
        moved = adapter.adapt(tokens)
        report(event="adapt", moved=moved, ms=round(1e3 * (time.perf_counter() - began), 1))
        if not moved:
            break
    measure(decoder, "other half, after", count)


NUM_MOVES, REPLY_TOKENS, NUM_ROUNDS = 64, 256, 5
WAYS = ("none", "beside", "at once")


def time_reply(decoder: Decoder, way: str, seed: int) -> tuple[float, int]:
    """Seconds of a reply with the host a token behind, and the token at which all have moved."""
    captured, store = decoder.step, decoder.experts
    graph = greedy_graph(captured, SHAPE_21B.vocab_size)
    kv_cache = filled_cache(decoder, 512)  # kept: the device writes to it
    captured.place(kv_cache, 512)
    generator = torch.Generator().manual_seed(seed)
    one, other = sorted(store.pinned), sorted(store.resident)
    order = [torch.randperm(len(keys), generator=generator).tolist() for keys in (one, other)]
    pairs = [(one[i], other[j]) for i, j in zip(*order, strict=False)][:NUM_MOVES]
    ended, moved_at = [], 0
    torch.cuda.synchronize()
    began = time.perf_counter()
    for at in range(REPLY_TOKENS):
        store.server.wake()
        graph.replay()
        ended.append(torch.cuda.Event(blocking=True))
        ended[at].record()
        if at:
            ended[at - 1].synchronize()
        if way != "none" and at == 1:
            store.moves.ask(pairs) if way == "beside" else store.swap_all(pairs)
        store.moves.advance()
        moved_at = moved_at or (at if at > 1 and store.moves.is_idle else 0)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    store.server.check()
    captured._held = (-1, -1, -1)
    if int(captured.step._arrived[1]):
        raise RuntimeError("an answer of the CPU never came")
    return seconds, moved_at


def measure_moves(decoder: Decoder) -> None:
    """Three rows: tokens a second while experts move beside them, at once before one, or not."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    moved = dict.fromkeys(WAYS, 0)
    for turn in range(NUM_ROUNDS + 1):
        for way in WAYS:
            seconds, moved[way] = time_reply(decoder, way, turn)
            times[way] += [seconds] * bool(turn)  # the first is not counted
    still = statistics.median(times["none"])
    for way in WAYS:
        median = statistics.median(times[way])
        report(
            event="moves", way=way, moves=NUM_MOVES * (way != "none"), tokens=REPLY_TOKENS,
            tok_s=round(REPLY_TOKENS / median, 1), ratio=round(still / median, 4),
            lost_ms=round(1e3 * (median - still), 1), all_moved_at=moved[way],
        )  # fmt: skip


def time_prefill(decoder: Decoder, length: int, label: str = "measured") -> None:
    """One row: speed of a prompt, and what the CPU took for its share."""
    before = decoder.experts.server.use
    seconds = prefill_seconds(decoder, length)
    after = decoder.experts.server.use
    num_layers = NUM_PREFILLS * len(SHAPE_21B.moe_layers) * -(-length // 512)
    report(
        event="prefill", tokens=length, ms=round(1e3 * seconds, 2), tok_s=round(length / seconds),
        label=label, rows_a_layer=(after.num_rows - before.num_rows) // num_layers,
        cpu_us_a_layer=round(1e6 * (after.row_seconds - before.row_seconds) / num_layers),
    )  # fmt: skip


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--resident", type=int, nargs="*", default=[864])
    parser.add_argument("--skew", type=float)
    parser.add_argument("--adapt", action="store_true")
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--prefill", type=int, nargs="*", default=[512])
    args = parser.parse_args()
    if args.threads:
        set_num_threads(args.threads)
    torch.manual_seed(0)
    probe = torch.ones(1 << 30, dtype=torch.uint8)
    for _ in range(3):
        began = time.perf_counter()
        read_probe(probe)
    report(event="probe", GB_s=round((1 << 30) / 1e9 / (time.perf_counter() - began), 1))
    for num_resident in args.resident:
        decoder = build(args.quant, num_resident)
        time_decode(decoder, 5)
        measure(decoder, "uniform", args.tokens)
        for length in args.prefill:
            time_prefill(decoder, length)
        if args.shares:
            for share in (0.0, 0.34, 0.5, 0.67, 0.84, 1.0):
                shares = [round(share * n) for n in range(TOP_K + 1)]
                decoder.experts.cpu_share.copy_(torch.tensor(shares))
                measure(decoder, f"shares {shares}", args.tokens)
            for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
                sizes = decoder.experts.prompts.masks
                decoder.experts.where.share_rows(dict.fromkeys(sizes, share))
                time_prefill(decoder, 512, f"row share {share}")
        if args.adapt:
            measure_moves(decoder)
        if args.skew:
            skew(decoder, args.skew)
            measure(decoder, f"skew {args.skew}", args.tokens)
            if args.adapt:
                adapt(decoder, args.tokens)
        decoder.experts.close()
        del decoder
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
