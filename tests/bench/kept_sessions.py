"""What it takes to go on with a saved conversation: reading it again, or from the disk.

    python -m tests.bench.kept_sessions [--tokens 512 1024 2048 4000] [--runs 5]

On the built-in model; alternating runs, medians. The file is in the page cache, as it is when one
comes back soon.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time
from pathlib import Path

from erniechat.generation.generate import prefill
from erniechat.model.kept_cache import KeptCaches
from tests.engines import load_mini


def main() -> None:
    """Print a row for each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4000])
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    decoder = load_mini("nf4").decoder
    rng = random.Random(1)
    print("tokens    MB   read again   from disk   keep")  # noqa: T201  its output
    with tempfile.TemporaryDirectory() as folder:
        kept = KeptCaches(Path(folder), "key", 1 << 40, print)
        for num_tokens in asked.tokens:
            ids = [rng.randrange(300, 4000) for _ in range(num_tokens)]
            rows = []
            for _ in range(asked.runs):
                times = [time.perf_counter()]
                cache = decoder.new_kv_cache(4096)
                list(prefill(decoder, cache, ids, lambda: False))
                times.append(time.perf_counter())
                kept.keep("a", cache, 1e3)
                times.append(time.perf_counter())
                assert kept.restore("a", decoder.new_kv_cache(4096), ids) == num_tokens - 1
                times.append(time.perf_counter())
                rows.append([b - a for a, b in itertools.pairwise(times)])
                kept.path("a").unlink()
            read, write, restore = (1e3 * statistics.median(c) for c in zip(*rows, strict=True))
            nbytes = num_tokens * cache.nbytes_per_token / 1e6
            print(  # noqa: T201  its output
                f"{num_tokens:6,}  {nbytes:4.0f}  {read:8.1f} ms  {restore:7.1f} ms {write:7.1f} ms"
            )


if __name__ == "__main__":
    main()
