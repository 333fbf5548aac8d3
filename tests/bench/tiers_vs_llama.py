"""A part of the experts on the GPU, against llama.cpp with as many of its layers' there, in turn.

    python -m tests.bench.tiers_vs_llama --llama-bench PATH --gguf Q4_0.gguf [--rounds 5]

llama.cpp keeps the experts of whole layers on the CPU (``-ncmoe``): 14 leaves 896 of 1,728 on the
GPU, 27 leaves 64. Ours has 864 and 64, chosen at random, with uniform routing; then 864 with half
the experts taking the share ``--skew`` of all choices. The shape is that of the 21B model, the
weights are random. Prints each round, then medians and ratios.
"""

import argparse
import json
import statistics
import subprocess

from tests.bench.gpu_step import prefill_seconds, report
from tests.bench.gpu_tiers import build, skew, time_decode

CASES = ((14, 864), (27, 64))  # layers whose experts llama.cpp leaves on the CPU; our experts there


def llama(binary: str, gguf: str, num_cpu_layers: int, threads: int) -> dict[str, float]:
    """Tokens a second of one run of llama-bench."""
    command = [binary, "-m", gguf, "-p", "512", "-n", "64", "-ngl", "99", "-fa", "1"]
    command += ["-ncmoe", str(num_cpu_layers), "-t", str(threads), "-r", "2", "-o", "json"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        "decode" if row["n_gen"] else "prefill": row["avg_ts"] for row in json.loads(found.stdout)
    }


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--skew", type=float, default=0.75)
    args = parser.parse_args()
    for num_cpu_layers, num_resident in CASES:
        decoder = build("nf4", num_resident)
        time_decode(decoder, 5)
        prefill_seconds(decoder, 512)
        theirs, mine = [], []
        for _ in range(args.rounds):
            theirs.append(llama(args.llama_bench, args.gguf, num_cpu_layers, args.threads))
            decode = 1e3 / time_decode(decoder, 64)
            mine.append({"decode": decode, "prefill": 512 / prefill_seconds(decoder, 512)})
            report(event="round", ncmoe=num_cpu_layers, llama=theirs[-1], ours=mine[-1])
        summary = {}
        for what in ("decode", "prefill"):
            a, b = (statistics.median(run[what] for run in runs) for runs in (mine, theirs))
            summary[what] = {"ours": round(a, 1), "llama": round(b, 1), "ratio": round(a / b, 2)}
        if num_resident > len(decoder.config.moe_layers) * 8:
            skew(decoder, args.skew)
            speeds = [1e3 / time_decode(decoder, 64) for _ in range(args.rounds)]
            ratio = statistics.median(speeds) / summary["decode"]["llama"]
            summary["skewed decode"] = {
                "ours": round(statistics.median(speeds), 1), "ratio": round(ratio, 2)
            }  # fmt: skip
        report(event="summary", ncmoe=num_cpu_layers, resident=num_resident, **summary)
        decoder.experts.close()
        del decoder


if __name__ == "__main__":
    main()
