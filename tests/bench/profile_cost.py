"""What keeping the routing counts takes at a turn's end.

    python -m tests.bench.profile_cost

Counts of the 21B model's shape. A thread writes them; told is what the turn itself waits for, how
long the writing takes, and the longest gap that a thread sees which does nothing but look at the
clock, as the one that shows the prompt might, beside the longest without a writer.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from erniechat import profiles
from erniechat.profiles import ProfileKeeper

NUM_LAYERS, NUM_EXPERTS, NUM_EACH = 28, 64, 6
TOKENS = 300  # of a turn
RUNS = 25


def longest_gap(seconds: float) -> float:
    """The longest time between two looks at the clock."""
    longest, now = 0.0, time.perf_counter()
    end = now + seconds
    while now < end:
        before, now = now, time.perf_counter()
        longest = max(longest, now - before)
    return longest


def main() -> None:
    """Print medians and the worst of some turns, in ms."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(NUM_LAYERS, NUM_EXPERTS, dtype=torch.int64)
    config = SimpleNamespace(moe_layers=range(1, NUM_LAYERS))
    decoder = SimpleNamespace(config=config, experts=SimpleNamespace(counts=counts))
    engine: Any = SimpleNamespace(decoder=decoder, num_tokens_seen=0)
    found: dict[str, list[float]] = {"turn": [], "written": [], "gap": [], "gap without": []}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        profiles.profile_folder = lambda: Path(folder)  # type: ignore[assignment]
        keeper = ProfileKeeper("21B", print)
        for _ in range(RUNS):
            engine.num_tokens_seen += TOKENS
            chosen = torch.rand(NUM_LAYERS, TOKENS, NUM_EXPERTS, generator=generator)
            for layer_idx in range(1, NUM_LAYERS):
                ids = chosen[layer_idx].topk(NUM_EACH).indices.flatten()
                counts[layer_idx] += torch.bincount(ids, minlength=NUM_EXPERTS)
            found["gap without"].append(longest_gap(0.1))
            began = time.perf_counter()
            keeper.turn_ended(engine)
            found["turn"].append(time.perf_counter() - began)
            found["gap"].append(longest_gap(0.1))
            keeper.turn_ended(engine)  # nothing is new
            assert keeper._writer is not None
            keeper._writer.join()
            began = time.perf_counter()
            engine.num_tokens_seen += 1
            keeper.close(engine)  # the same on this thread
            found["written"].append(time.perf_counter() - began)
    for name, seconds in found.items():
        middle, worst = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
        print(f"{name:<12}{middle:8.3f} ms, at most {worst:.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
