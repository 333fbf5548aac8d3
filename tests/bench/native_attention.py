"""Attention of 512 tokens of the 21B shape on the CPU: native against torch, in turns.

    python -m tests.bench.native_attention [--threads 1] [--rounds 5]

Times are the least of the rounds; with one thread the time that it had the core, so that other
work on the machine does not count.
"""

import argparse
import sys
import time

import torch

from erniechat.model.layers import causal_attention
from quant.kernels.native import NativeBackend, set_num_threads
from quant.kernels.native import causal_attention as native_attention

HEADS, KV_HEADS, HEAD_DIM, NUM_TOKENS = 20, 4, 128, 512


def main() -> None:
    """Print a line a length of the context."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    backend = NativeBackend()
    for held in (512, 2048, 4096):
        q = torch.randn(HEADS, NUM_TOKENS, HEAD_DIM).bfloat16()
        k, v = torch.randn(2, KV_HEADS, held, HEAD_DIM).bfloat16()
        in_torch, native = [], []
        for _ in range(args.rounds + 1):
            began = clock()
            causal_attention(q, k, v)
            between = clock()
            native_attention(q, k, v, backend)
            native.append(clock() - between)
            in_torch.append(between - began)
        sys.stdout.write(
            f"{held} held, {args.threads} threads: torch {min(in_torch) * 1e3:.1f} ms, "
            f"native {min(native) * 1e3:.1f} ms, {min(in_torch) / min(native):.1f}×\n"
        )


if __name__ == "__main__":
    main()
