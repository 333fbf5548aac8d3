"""Quantizing a checkpoint of the 21B shape on the GPU and on the CPU, in turns.

    python -m tests.bench.gpu_convert [--layers 4] [--experts 64] [--rounds 3] [--folder DIR]
        [--quant nf4] [--readers N] [--stages N] [--device cuda]

Writes that many layers in bf16 (4 are 5.5 GB; random values, repeated) and quantizes them from the
page cache, each time in a process of its own, which reports speed and peaks. Four layers take
about 50 s on 16 cores. All copies must have the same checksums.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from erniechat.model.checkpoint import Checkpoint
from erniechat.model.conversion import Formats
from erniechat.model.delivery import convert
from erniechat.model.families import family_of
from erniechat.model.readings import plan_readings
from quant import staging
from quant.copy_names import INDEX_FILE
from quant.copy_writer import CopyWriter
from quant.formats import format_named
from quant.kernels.reference import ReferenceBackend
from quant.memory import process_memory

BLOCK_NUMEL = 32 << 20  # random values that are written again and again
SHARD_NBYTES = 5_000_000_000


def write_checkpoint(folder: Path, num_layers: int, num_experts: int) -> int:
    """Shards of random bf16 values; their bytes."""
    raw = {
        "model_type": "ernie4_5_moe", "num_hidden_layers": num_layers,
        "moe_num_experts": num_experts,
    }  # fmt: skip
    family = family_of(raw)
    slots = family.tensors(family.parse_config(raw))
    generator = torch.Generator().manual_seed(0)
    block = torch.empty(BLOCK_NUMEL).normal_(0, 0.02, generator=generator).bfloat16()
    memory = memoryview(block.view(torch.uint8).numpy())
    shards: list[dict[str, dict[str, object]]] = [{}]
    sizes, weight_map = [0], {}
    for name, slot in slots.items():
        if name == "lm_head.weight":
            continue
        nbytes = 2 * torch.Size(slot.shape).numel()
        if sizes[-1] + nbytes > SHARD_NBYTES:
            shards.append({})
            sizes.append(0)
        offsets = [sizes[-1], sizes[-1] + nbytes]
        shards[-1][name] = {"dtype": "BF16", "shape": slot.shape, "data_offsets": offsets}
        sizes[-1] += nbytes
        weight_map[name] = f"model-{len(shards):05d}.safetensors"
    for number, (shard, size) in enumerate(zip(shards, sizes, strict=True), 1):
        text = json.dumps(shard).encode()
        with (folder / f"model-{number:05d}.safetensors").open("wb", buffering=0) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            left = size
            while left:
                left -= file.write(memory[: min(left, len(memory))])
    (folder / "config.json").write_text(json.dumps(raw))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes)


def run(checkpoint: Path, target: Path, quant: str, device: str) -> dict[str, object]:
    """Quantize once in this process; what it took."""
    found = Checkpoint(checkpoint)
    family = family_of(found.config)
    readings = plan_readings(found, family, family.parse_config(found.config))
    backend = ReferenceBackend()  # whose layouts are Triton's and the native kernels'
    formats = Formats(format_named(quant), format_named("int8"), backend, backend)
    quantizer = None
    if device != "native":
        if device == "cuda":
            torch.zeros(1, device="cuda")
        quantizer = staging.StagedQuantizer(torch.device(device))
    warnings: list[str] = []
    before = process_memory().rss_nbytes
    began = time.perf_counter()
    with CopyWriter(target, {}) as writer:
        convert(readings, formats, writer, quantizer=quantizer, warn=warnings.append)
        written = time.perf_counter()
        writer.finish()
    nbytes = sum(tensor.nbytes for tensor in found)
    peak = torch.cuda.max_memory_reserved() if device == "cuda" else 0
    return {
        "on": device,
        "MB_s": round(nbytes / (written - began) / 1e6),
        "seconds": round(written - began, 2),
        "finish_seconds": round(time.perf_counter() - written, 2),
        "host_over_MB": round((process_memory().peak_rss_nbytes - before) / 1e6),
        "gpu_MB": round(peak / 1e6),
        "warnings": warnings,
    }


def checksums(target: Path) -> list[int]:
    """Those of all parts of a copy."""
    entries = json.loads((target / INDEX_FILE).read_text())["index"]["entries"]
    return [part["crc32"] for entry in entries.values() for part in entry["parts"].values()]


def main() -> int:
    """Print JSON lines and a summary; 1 if copies differ or the device failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--readers", type=int, default=staging.NUM_READERS)
    parser.add_argument("--stages", type=int, default=staging.NUM_STAGES)
    parser.add_argument("--device", default="cuda", help="cpu: the same path without a GPU")
    parser.add_argument("--run", nargs=2, help="used by this program for its processes")
    args = parser.parse_args()
    staging.NUM_READERS, staging.NUM_STAGES = args.readers, args.stages
    if args.run:
        found = run(Path(args.run[0]), Path(args.run[1]), args.quant, args.device)
        sys.stdout.write(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        checkpoint, target = Path(name) / "checkpoint", Path(name) / "copy"
        checkpoint.mkdir()
        nbytes = write_checkpoint(checkpoint, args.layers, args.experts)
        sys.stdout.write(f"checkpoint {nbytes / 1e9:.2f} GB, {os.cpu_count()} cores\n")
        speeds: dict[str, list[float]] = {args.device: [], "native": []}
        seen, failed = set(), False
        for device in (args.device, "native") * args.rounds:
            command = [sys.executable, "-m", "tests.bench.gpu_convert", "--quant", args.quant]
            command += ["--readers", str(args.readers), "--stages", str(args.stages)]
            command += ["--device", device, "--run", str(checkpoint), str(target)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            speeds[device].append(found["MB_s"])
            failed |= bool(found["warnings"])
            seen.add(tuple(checksums(target)))
            shutil.rmtree(target)
            sys.stdout.write(done.stdout + "\n")
            sys.stdout.flush()
    ours, cpu = (statistics.median(speeds[device]) for device in (args.device, "native"))
    same = len(seen) == 1
    sys.stdout.write(
        f"{args.device} {ours:.0f} MB/s of bf16, native {cpu:.0f}, ratio {ours / cpu:.2f}; copies "
        f"{'equal' if same else 'DIFFER'}\n"
    )
    return 0 if same and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
