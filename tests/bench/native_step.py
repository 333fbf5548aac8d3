"""A decoded token of a cut 21B model: in one native call against layer by layer in torch.

    python -m tests.bench.native_step [--quant nf4] [--layers 6] [--held 128] [--threads N]

Both take turns on one set of weights; figures are medians over rounds of the median of 8 tokens.
"""

import argparse
import statistics
import sys
import time

import torch

from erniechat.model.assembly import assemble
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.families import FAMILIES
from erniechat.model.kv_cache import KVCache
from erniechat.model.synthetic import random_weights, with_layers
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend, num_threads, set_num_threads

VOCAB_SIZE, NUM_TOKENS = 1024, 8


def build(quant: str, num_layers: int) -> Decoder:
    """Random weights of the 21B's first layers, with a small vocabulary."""
    family = FAMILIES["ernie4_5_moe"]
    config = with_layers(family.parse_config({"vocab_size": VOCAB_SIZE}), num_layers)
    formats = Formats(FORMATS[quant], FORMATS["int8"], NativeBackend(), NativeBackend())
    weights = random_weights(config, family, formats)
    return assemble(config, weights, formats, torch.device("cpu"), torch.bfloat16)


def milliseconds(decoder: Decoder, kv_cache: KVCache, seed: int) -> float:
    """Median time of a token."""
    held, times = len(kv_cache), []
    generator = torch.Generator().manual_seed(seed)
    for token_id in torch.randint(0, VOCAB_SIZE, (NUM_TOKENS,), generator=generator).tolist():
        began = time.perf_counter()
        decoder.forward([token_id], kv_cache)
        times.append(time.perf_counter() - began)
    kv_cache.forget_from(held)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", choices=("nf4", "fp4", "int8"), default="nf4")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--held", type=int, default=128, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=num_threads())
    args = parser.parse_args()
    set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    decoder = build(args.quant, args.layers)
    step = decoder.step
    kv_cache = decoder.new_kv_cache(args.held + NUM_TOKENS)
    kv_cache.append_tokens([1] * args.held)
    kv_cache.data.normal_()
    in_torch, native = [], []
    for seed in range(args.rounds):
        for found, times in ((None, in_torch), (step, native)):
            decoder.step = found
            times.append(milliseconds(decoder, kv_cache, seed))
    before, after = statistics.median(in_torch), statistics.median(native)
    sys.stdout.write(
        f"{args.quant}, {args.layers} layers, {args.held} held, {args.threads} threads: torch "
        f"{before:.2f} ms, native step {after:.2f} ms, ratio {before / after:.2f}\n"
    )


if __name__ == "__main__":
    main()
