"""A token where some experts are on the disk: in one native call, layer by layer, and all in RAM.

    python -m tests.bench.disk_step [--layers 6] [--missing 0 0.03 0.1] [--tokens 64] [--rounds 5]

The 21B model's shape with fewer layers and vocabulary, random weights; the ways take turns on one
copy and read the same tokens. The cache of experts has room for all but a share of them. ms a token
are medians over rounds, as are ratios to the token of the same round with all mapped, in one call;
reads are experts a token; 0 missing shows what a way costs in itself.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from erniechat.model.assembly import assemble
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.disk_assembly import Residency
from erniechat.model.families import FAMILIES
from erniechat.model.synthetic import random_weights, with_layers
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.experts.placement import ExpertKey
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend

FAMILY, CPU = FAMILIES["ernie4_5_moe"], torch.device("cpu")
VOCAB_SIZE = 8192


def write_copy(folder: Path, config: ModelConfig, formats: Formats) -> QuantizedCopy:
    """Random weights as a copy."""
    weights = random_weights(config, FAMILY, formats)
    with CopyWriter(folder, {}) as writer:
        for name in weights:
            writer[name] = weights[name]
        writer.finish()
    return QuantizedCopy(folder)


def build(copy: QuantizedCopy, config: ModelConfig, formats: Formats, missing: float) -> Decoder:
    """A decoder whose cache lacks a share of the experts; all are mapped if it is negative."""
    residency = None
    if missing >= 0:
        keys = [ExpertKey(i, e) for e in range(config.num_experts) for i in config.moe_layers]
        num_slots = round(len(keys) * (1 - missing))
        residency = Residency(num_slots, keys[:num_slots])
    return assemble(config, copy, formats, CPU, torch.bfloat16, residency=residency)


def read(decoder: Decoder, ids: list[int], by_layer: bool) -> tuple[float, float]:
    """Seconds and experts read from the disk a token, behind an empty context."""
    step, store, cache = decoder.step, decoder.experts, decoder.new_kv_cache(len(ids))
    before = getattr(store, "num_read", 0)
    decoder.step = None if by_layer else step
    began = time.perf_counter()
    for token_id in ids:
        decoder.forward([token_id], cache)
    seconds = (time.perf_counter() - began) / len(ids)
    decoder.step = step
    return seconds, (getattr(store, "num_read", 0) - before) / len(ids)


def main() -> None:
    """Print a row for each share and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--missing", type=float, nargs="*", default=[0.0, 0.03, 0.1])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default="/var/tmp")
    args = parser.parse_args()
    config = with_layers(FAMILY.parse_config({"vocab_size": VOCAB_SIZE}), args.layers)
    backend = NativeBackend()
    formats = Formats(FORMATS["nf4"], FORMATS["int8"], backend, backend)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        copy = write_copy(Path(folder) / "copy", config, formats)
        ways: dict[str, tuple[Decoder, bool]] = {}
        for missing in (-1.0, *args.missing):
            name = "all mapped" if missing < 0 else f"{100 * missing:g} % on disk"
            for by_layer in (True, False):  # each with a cache of its own
                decoder = build(copy, config, formats, missing)
                ways[f"{name}, {'by layer' if by_layer else 'in one call'}"] = decoder, by_layer
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for round_idx in range(args.rounds + 1):
            generator = torch.Generator().manual_seed(round_idx)
            drawn: Any = torch.randint(0, VOCAB_SIZE, (args.tokens,), generator=generator)
            for name, (decoder, by_layer) in ways.items():
                result = read(decoder, drawn.tolist(), by_layer)
                if round_idx:  # the first brings all into memory
                    found[name].append(result)
    least = [seconds for seconds, _ in found["all mapped, in one call"]]
    for name, results in found.items():
        seconds, reads = (statistics.median(values) for values in zip(*results, strict=True))
        ratio = statistics.median(r[0] / one for r, one in zip(results, least, strict=True))
        told = f"{1e3 * seconds:8.2f} ms a token{reads:8.2f} reads{ratio:8.2f} times the least"
        sys.stdout.write(f"{name:<26}{told}\n")


if __name__ == "__main__":
    main()
