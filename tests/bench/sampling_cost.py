"""What choosing a token on the CPU takes.

    python -m tests.bench.sampling_cost

Logits are like a model's over ERNIE's vocabulary: 50 that stand out of 101,304.
"""

import argparse
import statistics
import time

import torch

from erniechat.generation.sampling import Sampler
from quant.allocator import keep_freed_memory

NUM_TOKENS = 101_304
SAMPLERS = (
    Sampler(temperature=0),
    Sampler(temperature=0.8, top_p=0.8),
    Sampler(temperature=0.6, top_p=0.95),
    Sampler(temperature=0.8, top_k=40),
    Sampler(temperature=0.8),
)


def main() -> None:
    """Print milliseconds a token, the median of 25."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    keep_freed_memory()  # as the command line does
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(NUM_TOKENS).normal_(0, 2, generator=generator)
    logits[torch.randint(0, NUM_TOKENS, (50,), generator=generator)] += torch.linspace(6, 14, 50)
    for sampler in SAMPLERS:
        seconds = []
        for _ in range(25):
            began = time.perf_counter()
            sampler.choose(logits, (), generator)
            seconds.append(time.perf_counter() - began)
        print(f"{1e3 * statistics.median(seconds):6.2f} ms  {sampler}")  # noqa: T201


if __name__ == "__main__":
    main()
