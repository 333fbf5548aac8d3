"""Decode on the CPU beside busy processes: what they cost against what they take.

    python -m tests.bench.native_beside [--busy 0 1 2] [--layers 6] [--mini] [--rounds 5]

Runs a cut 21B model (or the built-in one) with as many threads as there are cores, alone and beside
so many processes that never sleep, in turns. With C cores and B busy processes the system gives a
program of C threads C / (C + B) of the machine, its fair share; the figure to read is the speed as
a part of the speed alone, against that.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from erniechat.loader import load_engine
from erniechat.model.decoder import Decoder
from erniechat.options import LoadOptions
from quant.kernels.native import default_num_threads, set_num_threads
from tests.bench.native_step import VOCAB_SIZE, build

BUSY = "while True: pass"
SETTLE_SECONDS = 0.3


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that never sleep, ended at exit."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        if running:
            time.sleep(SETTLE_SECONDS)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def tokens_per_second(decoder: Decoder, seconds: float) -> float:
    """Tokens decoded after 64 others, for so long."""
    kv_cache = decoder.new_kv_cache(1024)
    decoder.forward(list(range(64)), kv_cache)
    began, num_tokens = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        decoder.forward([num_tokens % VOCAB_SIZE], kv_cache)
        num_tokens += 1
        if len(kv_cache) == 1024:
            kv_cache.forget_from(64)
    return num_tokens / (time.perf_counter() - began)


def main() -> None:
    """Print a line for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--mini", action="store_true", help="the built-in model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=default_num_threads())
    args = parser.parse_args()
    decoder = load_engine(LoadOptions()).decoder if args.mini else build("nf4", args.layers)
    set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    speeds: dict[int, list[float]] = {count: [] for count in args.busy}
    for _ in range(args.rounds):
        for count in args.busy:
            with busy_processes(count):
                speeds[count].append(tokens_per_second(decoder, args.seconds))
    medians = {count: statistics.median(values) for count, values in speeds.items()}
    cores = default_num_threads()
    for count, median in medians.items():
        share = median / medians[args.busy[0]]
        spread = f"{min(speeds[count]):.1f}–{max(speeds[count]):.1f}"
        sys.stdout.write(
            f"{count} busy beside {args.threads} threads on {cores} cores: {median:.1f} tok/s "
            f"({spread}), {share:.0%} of alone, fair {cores / (cores + count):.0%}\n"
        )


if __name__ == "__main__":
    main()
