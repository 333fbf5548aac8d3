"""From the quantized copy to a GPU: speed from a warm page cache, and what a full context takes.

    python -m tests.bench.gpu_load [--layers 28] [--folder FOLDER]

Random weights of the 21B shape are written as a copy, read once so that they are in the page cache,
then loaded three times. A prompt of 4,032 tokens and 64 decoded ones give the peak on the GPU.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from erniechat.model.assembly import assemble
from erniechat.model.conversion import Formats
from erniechat.model.synthetic import with_layers
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.formats import format_named
from quant.kernels import backend_for
from tests.bench.gpu_step import DEVICE, SHAPE_21B, RepeatedExperts, report

CONTEXT = 4096


def main() -> None:
    """Print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--folder")
    args = parser.parse_args()
    config = with_layers(SHAPE_21B, args.layers)
    formats = Formats(
        format_named("nf4"),
        format_named("int8"),
        backend_for("nf4", DEVICE, "triton"),
        backend_for("int8", DEVICE, "triton"),
    )
    source = RepeatedExperts(config, formats)
    names = [*source]
    for i in config.moe_layers:
        for j in range(config.num_experts):
            names += [f"layers.{i}.experts.{j}.gate_up", f"layers.{i}.experts.{j}.down"]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        with CopyWriter(Path(name) / "copy", {}) as writer:
            for weight_name in names:
                writer[weight_name] = source[weight_name]
            writer.finish()
        copy = QuantizedCopy(Path(name) / "copy")
        (Path(name) / "copy" / "weights.bin").read_bytes()
        speeds = []
        for _ in range(3):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            decoder = assemble(config, copy, formats, DEVICE, torch.bfloat16)
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            speeds.append(held / (time.perf_counter() - began) / 1e9)
            over = torch.cuda.max_memory_allocated() - held
            if len(speeds) < 3:
                del decoder
        report(
            event="load", GB=round(held / 1e9, 2), GB_s=round(statistics.median(speeds), 1),
            over_MB=round(over / 1e6),
        )  # fmt: skip
    kv_cache = decoder.new_kv_cache(CONTEXT)
    ids = torch.randint(0, config.vocab_size, (CONTEXT - 64,)).tolist()
    for first in range(0, len(ids), 512):
        logits = decoder.forward(ids[first : first + 512], kv_cache)
    for _ in range(64):
        logits = decoder.forward([int(logits.argmax())], kv_cache)
    report(event="peak", context=CONTEXT, GB=round(torch.cuda.max_memory_allocated() / 1e9, 3))


if __name__ == "__main__":
    main()
