"""One layer of the 21B model, decoding one token: time of each format and kernel backend.

    python -m tests.bench.one_layer [--rounds 9] [--threads N]

Formats take turns within a round, so that a machine whose speed drifts treats them alike; the
figure is the median, the ratio is to bf16. The routed experts differ from token to token, as they
do in a chat, so that nothing stays in the processor's cache.
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
from erniechat.model.synthetic import random_weights, with_layers
from quant.formats import FORMATS
from quant.kernels import BACKENDS, backend_for

CPU = torch.device("cpu")
TOKENS = 6  # decoded in a row; the first is not counted


def build(quant: str, kernels: str) -> tuple[Decoder, int]:
    """A model of one layer with routed experts, its embedding as small as it gets."""
    family = FAMILIES["ernie4_5_moe"]
    config = family.parse_config({"moe_layer_start_index": 0, "vocab_size": 1024})
    config = with_layers(config, 1)
    embedding = "bf16" if quant == "bf16" else "int8"
    formats = Formats(
        FORMATS[quant],
        FORMATS[embedding],
        backend_for(quant, CPU, kernels),
        backend_for(embedding, CPU),
    )
    weights = random_weights(config, family, formats)
    return assemble(config, weights, formats, CPU, torch.bfloat16), weights.nbytes


def seconds_per_token(decoder: Decoder) -> float:
    """Median time of a decoded token."""
    kv_cache = decoder.new_kv_cache(64)
    generator = torch.Generator().manual_seed(0)
    times = []
    for token_id in torch.randint(0, 1024, (TOKENS,), generator=generator).tolist():
        began = time.perf_counter()
        decoder.forward([token_id], kv_cache)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    models = {}
    for quant in ("bf16", "int8", "nf4"):
        for kernels in BACKENDS:
            if not BACKENDS[kernels]().why_not(quant, CPU):
                models[quant, kernels] = build(quant, kernels)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in models}
    for _ in range(args.rounds):
        for key, (decoder, _) in models.items():
            times[key].append(seconds_per_token(decoder))
    base = statistics.median(times["bf16", "torch"])
    sys.stdout.write(f"{'format':<8}{'kernels':<12}{'MB':>8}{'ms':>9}{'to bf16':>9}\n")
    for (quant, kernels), values in times.items():
        median = statistics.median(values)
        megabytes = models[quant, kernels][1] / 1e6
        sys.stdout.write(f"{quant:<8}{kernels:<12}{megabytes:>8.0f}")
        sys.stdout.write(f"{1e3 * median:>9.2f}{median / base:>8.2f}×\n")


if __name__ == "__main__":
    main()
