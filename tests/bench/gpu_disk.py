"""A model larger than GPU and RAM together: decode and prefill with experts on disk behind a GPU.

    python -m tests.bench.gpu_disk [--layers 10] [--gpu 192] [--ram 288] [--tokens 60]
        [--device cpu]

Random weights of the 21B model's shape with fewer layers are written as a quantized copy, as by
tests.bench.disk_tier. So many of the 64 experts of each layer but the first are on the GPU, so many
slots of RAM are there, and the rest is on disk; of the RAM all or a part is the cache that the
CPU runs, the rest is pinned. Tokens are random; routing is near uniform, or skewed, half of the
experts taking about 75 %. One JSON object a line. On the CPU all RAM is the cache, to try it out.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch

from erniechat.generation.generate import PREFILL_CHUNK
from erniechat.model.assembly import assemble
from erniechat.model.config import ModelConfig
from erniechat.model.disk_assembly import Residency
from erniechat.model.expert_assembly import ExpertPlaces
from erniechat.options import LoadOptions
from erniechat.planning import choose_formats
from quant.copy import QuantizedCopy
from quant.experts.placement import ExpertKey
from tests.bench.disk_tier import SkewedCopy, shape, write_copy


def places_of(
    config: ModelConfig, num_gpu: int, num_ram: int, num_cached: int
) -> tuple[ExpertPlaces, Residency]:
    """Experts at random: on the GPU, pinned, and sharing the cache."""
    keys = [ExpertKey(i, j) for i in config.moe_layers for j in range(config.num_experts)]
    random.Random(0).shuffle(keys)
    first = num_gpu + num_ram - num_cached
    tail = keys[first:]
    return ExpertPlaces(keys[num_gpu:first], tail), Residency(num_cached, tail[:num_cached])


def measure(args: argparse.Namespace, num_cached: int, skewed: bool) -> dict[str, object]:
    """One way to use the RAM."""
    device = torch.device(args.device)
    copy = (SkewedCopy if skewed else QuantizedCopy)(Path(args.folder))
    config = shape(args.layers)
    places, residency = places_of(config, args.gpu, args.ram, num_cached)
    formats = choose_formats("nf4", LoadOptions(), device)
    given = places if device.type == "cuda" else None
    decoder = assemble(config, copy, formats, device, torch.bfloat16, given, residency)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (args.prompt + args.tokens,), generator=generator)
    prompt, tokens = ids[: args.prompt].tolist(), ids[args.prompt :].tolist()
    cache = decoder.new_kv_cache(len(ids))
    for token_id in tokens[: args.warm]:  # compiles, and fills the cache
        decoder.forward([token_id], cache)
    cache.forget_from(0)
    began = time.perf_counter()
    for at in range(0, len(prompt), PREFILL_CHUNK):
        decoder.forward(prompt[at : at + PREFILL_CHUNK], cache).cpu()
    read = time.perf_counter() - began
    before = {use.name: use for use in decoder.experts.uses}
    began = time.perf_counter()
    for token_id in tokens:
        decoder.forward([token_id], cache).cpu()
    seconds = time.perf_counter() - began
    after = {use.name: use for use in decoder.experts.uses}
    run = {name: use.experts_run - before[name].experts_run for name, use in after.items()}
    disk_nbytes = after["disk"].nbytes_read - before["disk"].nbytes_read
    found: dict[str, object] = {
        "routing": "skewed" if skewed else "uniform", "gpu": args.gpu, "ram": args.ram,
        "cached": num_cached, "decode_tok_s": round(len(tokens) / seconds, 2),
        "prefill_tok_s": round(len(prompt) / read, 1), "experts_a_token": run,
        "disk_MB_a_token": round(disk_nbytes / 1e6 / len(tokens), 1),
        "disk_GB_s": round(disk_nbytes / 1e9 / seconds, 2),
    }  # fmt: skip
    if hasattr(decoder.experts, "close"):
        decoder.experts.close()
    return found


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="/var/tmp/erniechat-bench-copy")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--gpu", type=int, default=192, help="experts on the GPU")
    parser.add_argument("--ram", type=int, default=288, help="experts in RAM")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--warm", type=int, default=20)
    args = parser.parse_args()
    write_copy(Path(args.folder), args.layers)
    num_disk = (args.layers - 1) * 64 - args.gpu - args.ram
    for skewed in (False, True):
        for num_cached in sorted({min(args.ram, 2 * num_disk), args.ram}):
            sys.stdout.write(json.dumps(measure(args, num_cached, skewed)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
