"""Speed of the native kernels against a plain read of memory, bitsandbytes and torch in bf16.

    python -m tests.bench.bench_native [--rounds 7]

Each row alternates all contestants for some rounds and prints the best of each, since other work
on the machine only ever slows one down. On a machine with other work, ``--cpu-time`` measures one
thread by the time that it had the core.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.formats import FORMATS
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend, num_threads, read_probe, set_num_threads
from quant.tensor import QuantTensor

Clock = Callable[[], float]
WORKING_SET_NBYTES = 400_000_000  # far beyond the last cache
SHAPES = {"qkv": (3584, 2560), "gate_up": (3072, 2560), "down": (2560, 1536)}
HEAD = (103424, 2560)
HIDDEN, WIDTH, NUM_EXPERTS, TOP_K = 2560, 1536, 64, 6


def best_seconds(
    contestants: Mapping[str, Callable[[], None]], rounds: int, clock: Clock
) -> dict[str, float]:
    """Least time of each, taken in turns."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds + 1):
        for name, run in contestants.items():
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
    return best


def random_weights(name: str, shape: tuple[int, int]) -> list[QuantTensor]:
    """Enough weights of one shape to exceed the caches."""
    weight_format, generator = FORMATS[name], torch.Generator().manual_seed(0)
    first = weight_format.random(shape, generator)
    copies = max(1, WORKING_SET_NBYTES // first.nbytes)
    return [first] + [weight_format.random(shape, generator) for _ in range(copies - 1)]


def probe(weights: Sequence[QuantTensor]) -> Callable[[], None]:
    """Reads every byte of the weights once, as one long run."""
    parts = [part.view(torch.uint8).flatten() for w in weights for part in w.parts.values()]
    joined = torch.cat(parts)
    return lambda: (read_probe(joined), None)[1]


def report(title: str, nbytes: int, flops: float, best: Mapping[str, float]) -> None:
    """One line: what each reached, and native's share of the probe."""
    cells = [f"{name} {seconds * 1e3:8.3f} ms" for name, seconds in best.items()]
    native, read = best["native"], best["read"]
    print(  # noqa: T201 - a bench prints
        f"{title:26s} {' '.join(cells)} | native {nbytes / native / 1e9:5.1f} GB/s"
        f" {flops / native / 1e9:6.0f} GOP/s, {read / native * 100:5.1f} % of read"
    )


def bench_matmul(
    name: str, shape: tuple[int, int], num_tokens: int, rounds: int, clock: Clock
) -> None:
    """One product per weight of a working set beyond the caches."""
    weights = random_weights(name, shape)
    native = NativeBackend()
    x = torch.randn(num_tokens, shape[1]).bfloat16()
    contestants: dict[str, Callable[[], None]] = {"read": probe(weights)}

    def each(function: Callable[[QuantTensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for weight in weights:
                function(weight)

        return run

    contestants["native"] = each(lambda weight: native.matmul(x, weight))
    dense = [torch.randn(shape).bfloat16() for _ in range(2)]
    best = best_seconds(contestants, rounds, clock)
    best = {key: value / len(weights) for key, value in best.items()}
    if num_tokens > 4:
        more = best_seconds({"torch bf16": lambda: (F.linear(x, dense[0]), None)[1]}, rounds, clock)
        best.update(more)
    nbytes = weights[0].nbytes
    report(
        f"{name} {list(shape)} x{num_tokens}", nbytes, 2.0 * num_tokens * shape[0] * shape[1], best
    )


def bench_experts(name: str, num_tokens: int, rounds: int, num_layers: int, clock: Clock) -> None:
    """Whole layers of 64 experts, six a token."""
    weight_format, generator = FORMATS[name], torch.Generator().manual_seed(0)
    layers = [
        [
            ExpertWeights(
                weight_format.random((2 * WIDTH, HIDDEN), generator),
                weight_format.random((HIDDEN, WIDTH), generator),
            )
            for _ in range(NUM_EXPERTS)
        ]
        for _ in range(num_layers)
    ]
    native = NativeBackend()
    x = torch.randn(num_tokens, HIDDEN, generator=generator).bfloat16()
    chosen = [
        torch.stack(
            [torch.randperm(NUM_EXPERTS, generator=generator)[:TOP_K] for _ in range(num_tokens)]
        )
        for _ in range(max(num_layers, 16 if num_tokens == 1 else 1))
    ]
    topk_weights = torch.full((num_tokens, TOP_K), 1 / TOP_K)
    used = [
        weight
        for i, ids in enumerate(chosen)
        for e in sorted(set(ids.flatten().tolist()))
        for weight in (layers[i % num_layers][e].gate_up, layers[i % num_layers][e].down)
    ]

    def run() -> None:
        for i, ids in enumerate(chosen):
            native.routed_experts(x, ids, topk_weights, layers[i % num_layers])

    best = best_seconds({"read": probe(used), "native": run}, rounds, clock)
    best = {key: value / len(chosen) for key, value in best.items()}
    nbytes = sum(weight.nbytes for weight in used) // len(chosen)
    flops = 6.0 * num_tokens * TOP_K * HIDDEN * WIDTH
    report(f"{name} experts x{num_tokens}", nbytes, flops, best)


def bench_bnb(rounds: int, clock: Clock) -> None:
    """The CPU kernel of bitsandbytes beside ours, one token, one weight after another."""
    from quant.kernels.bnb import BnbBackend

    weights = random_weights("nf4", SHAPES["gate_up"])[:40]
    bnb, native = BnbBackend(), NativeBackend()
    theirs = [bnb.prepare(weight) for weight in weights]
    x = torch.randn(1, HIDDEN).bfloat16()

    def run(backend: NativeBackend | BnbBackend, some: Sequence[QuantTensor]) -> None:
        for weight in some:
            backend.matmul(x, weight)

    best = best_seconds(
        {
            "read": probe(weights),
            "native": lambda: run(native, weights),
            "bnb": lambda: run(bnb, theirs),
        },
        rounds,
        clock,
    )
    best = {key: value / len(weights) for key, value in best.items()}
    report("nf4 against bitsandbytes", weights[0].nbytes, 2.0 * 3072 * 2560, best)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", default="", help="decode, prefill, experts or bnb")
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    clock = time.thread_time if args.cpu_time else time.perf_counter
    if args.cpu_time:
        set_num_threads(1)
        torch.set_num_threads(1)
    elif args.threads:
        set_num_threads(args.threads)
    paths = ", ".join(NativeBackend().paths())
    print(f"threads {num_threads()}, paths {paths}, torch {torch.__version__}")  # noqa: T201
    if args.only in ("", "decode"):
        for name in ("nf4", "int8"):
            for shape in SHAPES.values():
                bench_matmul(name, shape, 1, args.rounds, clock)
            bench_matmul(name, SHAPES["gate_up"], 8, args.rounds, clock)
        bench_matmul("int8", HEAD, 1, args.rounds, clock)
    if args.only in ("", "experts"):
        for name in ("nf4", "int8"):
            bench_experts(name, 1, args.rounds, 3, clock)
        bench_experts("nf4", 4, args.rounds, 3, clock)
        bench_experts("nf4", 512, 3, 1, clock)
        bench_experts("int8", 512, 3, 1, clock)
    if args.only in ("", "prefill"):
        for name in ("nf4", "int8"):
            for num_tokens in (16, 48, 512):
                bench_matmul(name, SHAPES["gate_up"], num_tokens, min(args.rounds, 5), clock)
    if args.only in ("", "bnb"):
        bench_bnb(args.rounds, clock)


if __name__ == "__main__":
    main()
