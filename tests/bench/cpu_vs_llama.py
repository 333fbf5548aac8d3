"""Decode and prefill on the CPU against llama.cpp on the same bits, in turns.

    python -m tests.bench.cpu_vs_llama --llama-bench PATH [--layers 14] [--experts 64] [--quant nf4]

Both run random weights of the 21B shape with that many layers, ours in nf4 (or int8), theirs in
Q4_0 (or Q8_0) from a GGUF that this script writes with the ``gguf`` package. They take turns, so
that a machine whose speed drifts treats both alike; the ratio is of medians. A plain read of memory
on the same threads stands beside each round. With fewer stored experts (``--experts 32``), still 6
of them for a token, all 28 layers fit twice into 24 GB: a decoded token reads as many bytes, but a
prompt's tokens share fewer experts, so quote prefill with all 64. llama.cpp's source is inside the
``llama-cpp-python`` source package; build its target llama-bench.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as cli.py does, before torch is imported

import torch

from erniechat.bench import timed_run
from erniechat.model.assembly import assemble
from erniechat.model.families import FAMILIES
from erniechat.model.synthetic import random_weights, with_layers
from erniechat.options import BenchOptions, LoadOptions
from erniechat.planning import choose_formats
from quant.kernels.native import read_probe, set_num_threads
from tests.bench import random_gguf

PEER_TYPE = {"nf4": "q4_0", "int8": "q8_0"}
PROBE_NBYTES = 1 << 30
CPU = torch.device("cpu")


def peer(program: Path, model: Path, bench: BenchOptions, threads: int) -> dict[str, float]:
    """One run of llama-bench: tokens a second of prefill and decode."""
    sizes = ["-p", str(bench.prompt_tokens), "-n", str(bench.new_tokens)]
    command = [str(program), "-m", str(model), *sizes, "-t", str(threads), "-r", "1", "-o", "json"]
    out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    rows = json.loads(out)
    return {"prefill" if row["n_prompt"] else "decode": row["avg_ts"] for row in rows}


def probe(buffer: torch.Tensor) -> float:
    """Gigabytes a second of a plain read."""
    began = time.perf_counter()
    read_probe(buffer)
    return buffer.nbytes / (time.perf_counter() - began) / 1e9


def main() -> None:
    """Print both, round by round, and the ratios of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="written here if it is not there yet")
    parser.add_argument("--layers", type=int, default=14, help="28 is the whole model")
    parser.add_argument("--experts", type=int, default=64, help="stored; a token uses 6")
    parser.add_argument("--quant", choices=list(PEER_TYPE), default="nf4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=48)
    args = parser.parse_args()
    family = FAMILIES["ernie4_5_moe"]
    config = with_layers(family.parse_config({"moe_num_experts": args.experts}), args.layers)
    set_num_threads(args.threads)
    bench = BenchOptions(prompt_tokens=args.p, new_tokens=args.n)
    formats = choose_formats(args.quant, LoadOptions(), CPU)
    weights = random_weights(config, family, formats)
    decoder = assemble(config, weights, formats, CPU, torch.bfloat16)
    with tempfile.TemporaryDirectory() as name:
        model = args.gguf or Path(name) / "model.gguf"
        if not model.exists():
            random_gguf.write(model, PEER_TYPE[args.quant], config)
        buffer = torch.ones(PROBE_NBYTES, dtype=torch.uint8)
        peer_name = PEER_TYPE[args.quant]
        sys.stdout.write(
            f"{args.layers} layers, {args.experts} experts, {args.threads} threads: "
            f"ours {args.quant} {weights.nbytes / 1e9:.2f} GB, "
            f"llama.cpp {peer_name} {model.stat().st_size / 1e9:.2f} GB\n"
        )
        rounds = []
        for idx in range(args.rounds + 1):  # the first is not counted
            theirs = peer(args.llama_bench, model, bench, args.threads)
            bandwidth = probe(buffer)
            ours = timed_run(decoder, bench)
            if idx:
                rounds.append((ours, theirs))
                sys.stdout.write(
                    f"  read {bandwidth:5.1f} GB/s · decode {ours['decode']:6.2f} / "
                    f"{theirs['decode']:6.2f} · prefill {ours['prefill']:7.1f} / "
                    f"{theirs['prefill']:7.1f} tok/s\n"
                )
                sys.stdout.flush()
    for stage in ("decode", "prefill"):
        ours_median = statistics.median(o[stage] for o, _ in rounds)
        theirs_median = statistics.median(t[stage] for _, t in rounds)
        sys.stdout.write(
            f"{stage}: {ours_median:.2f} against {theirs_median:.2f} tok/s, "
            f"{ours_median / theirs_median:.2f}×\n"
        )


if __name__ == "__main__":
    main()
