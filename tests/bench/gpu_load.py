"""From the quantized copy to a GPU: speed from a warm page cache, and what a full context takes.

    python -m tests.bench.gpu_load [--layers 28] [--experts 64] [--folder DIR]

Random weights of the 21B shape are written as a copy (11.7 GB), read once so that they are in the
page cache, then loaded three times. A prompt of 4,032 tokens and 64 decoded ones give the peak on
the GPU. ``--device cpu`` only shows that this program works.
"""

import argparse
import dataclasses
import gc
import statistics
import tempfile
import time
from pathlib import Path

import torch

from erniechat.model.assembly import assemble
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.synthetic import with_layers
from quant.copy import QuantizedCopy
from tests.bench.gpu_step import SHAPE_21B, report
from tests.bench.random_copy import formats_on, read_once, write_copy

CONTEXT = 4096
NUM_RUNS = 3


def gpu_nbytes(device: torch.device, what: str) -> int:
    """``memory_allocated``, ``max_memory_allocated`` or ``max_memory_reserved``; 0 on the CPU."""
    return int(getattr(torch.cuda, what)(device)) if device.type == "cuda" else 0


def load(
    config: ModelConfig, folder: Path, formats: Formats, device: torch.device
) -> tuple[Decoder, float]:
    """A decoder from a copy that is mapped anew, and how long that took."""
    gc.collect()  # a decoder's step and its choice name each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    copy = QuantizedCopy(folder)
    decoder = assemble(config, copy, formats, device, torch.bfloat16)
    decoder.wait()
    return decoder, time.perf_counter() - began


def measure(config: ModelConfig, folder: Path, formats: Formats, device: torch.device) -> Decoder:
    """Load several times, report, and give the last decoder."""
    before = gpu_nbytes(device, "memory_allocated")
    seconds = []
    for _ in range(NUM_RUNS):
        decoder = None
        decoder, taken = load(config, folder, formats, device)
        seconds.append(taken)
        held = gpu_nbytes(device, "memory_allocated")
        over = gpu_nbytes(device, "max_memory_allocated") - held
    nbytes = QuantizedCopy(folder).nbytes
    report(
        event="load", copy_GB=round(nbytes / 1e9, 2),
        held_GB=round((held - before) / 1e9, 2), seconds=round(statistics.median(seconds), 2),
        GB_s=round(nbytes / statistics.median(seconds) / 1e9, 1),
        best_GB_s=round(nbytes / min(seconds) / 1e9, 1), over_MB=round(over / 1e6),
    )  # fmt: skip
    assert decoder is not None
    return decoder


def main() -> None:
    """Print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, default=CONTEXT)
    args = parser.parse_args()
    config = dataclasses.replace(with_layers(SHAPE_21B, args.layers), num_experts=args.experts)
    device = torch.device(args.device)
    formats = formats_on(device)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name) / "copy"
        began = time.perf_counter()
        write_copy(folder, config, formats)
        report(event="written", seconds=round(time.perf_counter() - began, 1))
        read_once(folder)
        decoder = measure(config, folder, formats, device)
    kv_cache = decoder.new_kv_cache(args.context)
    ids = torch.randint(0, config.vocab_size, (args.context - 64,)).tolist()
    for first in range(0, len(ids), 512):
        logits = decoder.forward(ids[first : first + 512], kv_cache)
    for _ in range(64):
        logits = decoder.forward([int(logits.argmax())], kv_cache)
    report(
        event="peak", context=len(kv_cache),
        GB=round(gpu_nbytes(device, "max_memory_allocated") / 1e9, 3),
        reserved_GB=round(gpu_nbytes(device, "max_memory_reserved") / 1e9, 3),
    )  # fmt: skip


if __name__ == "__main__":
    main()
