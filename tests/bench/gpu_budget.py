"""Whether --gpu-memory is kept: the most that the driver saw in use while a model ran.

    python -m tests.bench.gpu_budget --config FOLDER [--budgets 3GiB 6GiB] [--layers 28] [--grow]

FOLDER has the config.json of a model; weights are random. The GPU must be otherwise unused. With
--grow the context becomes six times as long as what was planned of it (gpu_growth).
"""

import argparse
import json
import subprocess
import sys
import time

from erniechat.sizes import size_nbytes

MIB = 1 << 20


def used_nbytes() -> int:
    """Of the first GPU, by all processes."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(query, capture_output=True, check=True, text=True).stdout) * MIB


def reading(args: argparse.Namespace, asked: str) -> list[str]:
    """A prompt and its answer, twice."""
    command = [sys.executable, "-m", "erniechat", "bench", "--synthetic", args.config]
    command += ["--layers", str(args.layers), "--ctx", str(args.ctx), "--gpu-memory", asked]
    return [*command, "--prompt-tokens", "512", "--new-tokens", "64", "--runs", "2", "--json"]


def growing(args: argparse.Namespace, asked: str) -> list[str]:
    """A reply whose cache grows."""
    command = [sys.executable, "-m", "tests.bench.gpu_growth", "--config", args.config]
    command += ["--layers", str(args.layers), "--planned", str(args.ctx)]
    return [*command, "--tokens", str(6 * args.ctx), "--gpu-memory", asked, "--grow-only"]


def figures(result: dict[str, dict[str, dict[str, float]]]) -> dict[str, object]:
    """Of erniechat bench."""
    return {
        "decode": result["decode"]["tokens_per_second"]["median"],
        "prefill": result["prefill"]["tokens_per_second"]["median"],
        "experts": result["experts"],
    }


def main() -> None:
    """Print a JSON line a budget; exit with 1 if one was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--budgets", nargs="*", default=["3GiB", "6GiB"])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--grow", action="store_true")
    args = parser.parse_args()
    kept = True
    for asked in args.budgets:
        before = peak = used_nbytes()
        command = growing(args, asked) if args.grow else reading(args, asked)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            peak = max(peak, used_nbytes())
            time.sleep(0.05)
        result = json.loads(process.communicate()[0])
        budget = size_nbytes(asked, 0) or 0
        row = {
            "asked": asked,
            "budget_MiB": budget // MIB,
            "peak_MiB": (peak - before) // MIB,
            "kept": peak - before <= budget,
            **(result if args.grow else figures(result)),
        }
        kept &= row["kept"]
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
