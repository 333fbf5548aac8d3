"""First token from a mapped copy of the 21B shape, and memory beyond its weights at 4,096 tokens.

    python -m tests.bench.mapped_start [--layers 28] [--experts 64] [--runs 3] [--folder DIR]

Writes a copy of random nf4 weights (11.7 GB, deleted at the end), then starts processes that map
it, read a prompt of 12 tokens and choose the next: the first warms the page cache and is not
counted. No tokenizer or template is loaded. Memory is what the last process holds after a chunk of
512 tokens behind 3,500 others and 8 decoded ones, but for the pages of the copy.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.families import FAMILIES
from erniechat.model.family import routed_name
from erniechat.model.synthetic import random_weights, with_layers
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend

PROMPT, CONTEXT, CHUNK = 12, 4096, 512
FAMILY = FAMILIES["ernie4_5_moe"]


def shape(num_layers: int, num_experts: int) -> ModelConfig:
    """The 21B shape, cut if so asked."""
    config = with_layers(FAMILY.parse_config({}), num_layers)
    return dataclasses.replace(config, num_experts=num_experts)


def formats() -> Formats:
    """nf4 by the native kernels."""
    return Formats(FORMATS["nf4"], FORMATS["int8"], NativeBackend(), NativeBackend())


def write_copy(folder: Path, config: ModelConfig) -> None:
    """Random weights; the experts of a layer are all alike, since only their bytes matter."""
    few = dataclasses.replace(config, num_experts=1, num_experts_per_tok=1)
    weights = random_weights(few, FAMILY, formats())
    experts = config.num_experts
    with CopyWriter(folder, {}) as writer:
        for name, weight in weights.items():
            if ".experts." in name:
                continue
            if name.endswith(".router"):
                weight = torch.randn(experts, config.hidden_size) * 0.02
            elif name.endswith(".correction_bias"):
                weight = torch.zeros(experts)
            writer[name] = weight
        for layer_idx in config.moe_layers:
            for expert_idx in range(experts):
                for part in ("gate_up", "down"):
                    weight = weights[routed_name(layer_idx, 0, part)]
                    writer[routed_name(layer_idx, expert_idx, part)] = weight
        writer.finish()


def resident_nbytes(path: Path) -> tuple[int, int]:
    """Resident bytes of this process: of a mapped file, and of all else."""
    of_file = others = 0
    in_file = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            in_file = line.endswith(str(path))
        elif first == "Rss:":
            of_file += int(rest[0]) * 1024 * in_file
            others += int(rest[0]) * 1024 * (not in_file)
    return of_file, others


def start(folder: Path, num_layers: int, num_experts: int, began: float) -> None:
    """What a started process does; prints what it found as JSON."""
    from erniechat.model.assembly import assemble

    imported = time.time()
    config = shape(num_layers, num_experts)
    copy = QuantizedCopy(folder)
    decoder = assemble(config, copy, formats(), torch.device("cpu"), torch.bfloat16)
    assembled = time.time()
    kv_cache = decoder.new_kv_cache(CONTEXT)
    int(decoder.forward(list(range(PROMPT)), kv_cache).argmax())
    first = time.time()
    kv_cache.append_tokens([1] * (3500 - PROMPT))
    kv_cache.data.normal_()
    decoder.forward(list(range(CHUNK)), kv_cache)
    for token_id in range(8):
        decoder.forward([token_id], kv_cache)
    mapped, others = resident_nbytes(copy.path.resolve())
    out = {"imports": imported - began, "assembly": assembled - imported}
    out |= {"prompt": first - assembled, "first_token": first - began}
    sys.stdout.write(json.dumps(out | {"mapped": mapped, "others": others}))


def main() -> int:
    """Print times and memory; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--start", type=float, help="used by this program for its processes")
    args = parser.parse_args()
    if args.start:
        start(args.folder, args.layers, args.experts, args.start)
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name) / "copy"
        write_copy(folder, shape(args.layers, args.experts))
        command = [sys.executable, "-m", "tests.bench.mapped_start", "--folder", str(folder)]
        command += ["--layers", str(args.layers), "--experts", str(args.experts)]
        runs = []
        for _ in range(args.runs + 1):
            began = ["--start", str(time.time())]
            done = subprocess.run([*command, *began], check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout))
            sys.stdout.write(done.stdout + "\n")
            sys.stdout.flush()
    first = statistics.median(run["first_token"] for run in runs[1:])
    others = runs[-1]["others"]
    sys.stdout.write(
        f"first token of {PROMPT} tokens after {first:.2f} s (promised 2), "
        f"{others / 1e6:.0f} MB beyond the weights at {CONTEXT} tokens (promised 700)\n"
    )
    return 0 if first < 2 and others < 700e6 else 1


if __name__ == "__main__":
    sys.exit(main())
