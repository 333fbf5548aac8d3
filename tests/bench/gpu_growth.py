"""A reply that grows into the experts' memory: what it costs, and whether its text stays.

    python -m tests.bench.gpu_growth --config FOLDER --gpu-memory 6GiB [--layers 28]

FOLDER has the config.json of a model; weights are random. Two replies to one prompt: with a cache
of --planned tokens that grows to --tokens, and with one that has them from the start. Experts
outside the GPU are read by it alone, so that the texts must be equal.
"""

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from erniechat.fit import expert_places, fit, this_machine
from erniechat.generation.generate import PREFILL_CHUNK, Limits, decode
from erniechat.generation.sampling import Sampler
from erniechat.model.assembly import assemble
from erniechat.model.decoder import Decoder
from erniechat.model.families import family_of
from erniechat.model.folder import read_json
from erniechat.model.synthetic import random_weights, with_layers
from erniechat.model_sizes import model_sizes
from erniechat.options import LoadOptions
from erniechat.planning import choose_device, choose_formats

PROMPT_TOKENS = 512


def decoder_of(args: argparse.Namespace, planned: int) -> Decoder:
    """Random weights, the experts that fit beside a cache of so many tokens on the GPU."""
    raw = read_json(Path(args.config) / "config.json")
    family = family_of(raw)
    config = family.parse_config(raw)
    config = with_layers(config, min(args.layers, config.num_hidden_layers))
    load = LoadOptions(gpu_memory=args.gpu_memory, cpu_share=0.0, prompt_cpu_share=0.0)
    device = choose_device("cuda")
    formats = choose_formats("nf4", load, device)
    sizes = model_sizes(config, family.tensors(config).values(), formats)
    memory = fit(sizes, load, planned, None, this_machine(device))
    places = dataclasses.replace(expert_places(memory, load), cache_tokens=planned)
    weights = random_weights(config, family, formats)
    return assemble(config, weights, formats, device, torch.bfloat16, places)


def reply(decoder: Decoder, num_tokens: int) -> dict[str, object]:
    """Speed, pauses and experts left of one greedy reply."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = decoder.config.vocab_size
    ids = torch.randint(0, vocab_size, (PROMPT_TOKENS,), generator=generator).tolist()
    kv_cache = decoder.new_kv_cache(num_tokens)
    for at in range(0, len(ids), PREFILL_CHUNK):
        logits = decoder.forward(ids[at : at + PREFILL_CHUNK], kv_cache)
    limits = Limits((), num_tokens - PROMPT_TOKENS, vocab_size)
    found, times, growths, pauses = [], [], [], []
    sampler = Sampler(0.0, repetition_penalty=1.3)
    clock = time.perf_counter()
    for token_id in decode(
        decoder, kv_cache, logits[-1], sampler, limits, generator, lambda: False
    ):
        now = time.perf_counter()
        found.append(token_id)
        if (growth := kv_cache.take_growth()) is None:
            times.append(now - clock)
        else:
            growths.append((growth.num_tokens, growth.num_experts))
            pauses.append(round(1e3 * (now - clock), 1))
        clock = now
    return {
        "tokens": len(found),
        "first_ms": round(1e3 * statistics.median(times[20:220]), 3),
        "last_ms": round(1e3 * statistics.median(times[-200:]), 3),
        "growths": growths,
        "pauses_ms": pauses,
        "resident": len(decoder.experts.resident),  # type: ignore[attr-defined]  # tiered
        "capacity": kv_cache.storage[1],
        "text": hashlib.sha256(str(found).encode()).hexdigest()[:16],
    }


def main() -> None:
    """Print a JSON line a reply; exit with 1 if their texts differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--gpu-memory", default="6GiB")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--planned", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--grow-only", action="store_true", help="leave the second reply out")
    args = parser.parse_args()
    texts = set()
    for planned in [args.planned, args.tokens][: 1 if args.grow_only else 2]:
        decoder = decoder_of(args, planned)
        row = {"planned": planned, **reply(decoder, args.tokens)}
        texts.add(row["text"])
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        decoder.experts.close()  # type: ignore[attr-defined]  # tiered
        del decoder
        torch.cuda.empty_cache()
    sys.exit(0 if len(texts) == 1 else 1)


if __name__ == "__main__":
    main()
