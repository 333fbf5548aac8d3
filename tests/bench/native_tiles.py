"""AMX tiles against AVX-512 in the native kernels: the same bits, then speed in turns.

    python -m tests.bench.native_tiles [--layers 14] [--experts 64] [--rounds 5] [--threads N]

Prints a JSON line a check and a line a measurement. Without AMX on this CPU, or without the
system's leave to use it, it says so and exits with 1; ``--emulated`` runs the checks alone, on
tiles in software. Speeds are of random weights of the 21B shape with that many layers.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from erniechat.bench import timed_run
from erniechat.model.assembly import assemble
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder
from erniechat.model.families import FAMILIES
from erniechat.model.synthetic import random_weights, with_layers
from erniechat.options import BenchOptions
from quant.formats import FORMATS
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend, num_threads, set_num_threads
from quant.kernels.native.library import library
from quant.kernels.reference import ReferenceBackend

TILES, VECTORS = "amx", "avx512"
HIDDEN, WIDTH = 2560, 1536
BOUND = 0.0125  # of a product's relative error, as tests/quant/test_kernels.py has it


def say(**facts: object) -> None:
    """One JSON line."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Of all values together."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def checks(path: str) -> Iterator[bool]:
    """Products and a layer of experts: equal to AVX-512, and near the reference."""
    for quant in ("nf4", "int8"):
        weight = FORMATS[quant].quantize(torch.randn(3584, HIDDEN) * 0.02)
        for num_tokens in (9, 16, 17, 100, 512):
            x = torch.randn(num_tokens, HIDDEN).bfloat16()
            out = NativeBackend(path).matmul(x, weight)
            equal = torch.equal(out, NativeBackend(VECTORS).matmul(x, weight))
            error = relative_error(out, ReferenceBackend().matmul(x.float(), weight))
            # A bfloat16 result adds 2⁻⁹ at most.
            good = equal and error < BOUND + 2**-9
            say(check="product", path=path, quant=quant, tokens=num_tokens, bits_equal=equal,
                error=round(error, 5), passed=good)  # fmt: skip
            yield good
        experts = [
            ExpertWeights(
                FORMATS[quant].quantize(torch.randn(2 * WIDTH, HIDDEN) * 0.02),
                FORMATS[quant].quantize(torch.randn(HIDDEN, WIDTH) * 0.02),
            )
            for _ in range(8)
        ]
        x = torch.randn(128, HIDDEN).bfloat16()
        ids = torch.rand(128, 8).topk(3).indices
        arguments = x, ids, torch.rand(128, 3), experts
        outs = [NativeBackend(name).routed_experts(*arguments) for name in (path, VECTORS)]
        error = relative_error(
            outs[0], ReferenceBackend().routed_experts(x.float(), *arguments[1:])
        )
        good = torch.equal(*outs) and error < 3 * BOUND
        say(check="layer", path=path, quant=quant, tokens=128, bits_equal=torch.equal(*outs),
            error=round(error, 5), passed=good)  # fmt: skip
        yield good


def decoders(quant: str, num_layers: int, num_experts: int) -> dict[str, Decoder]:
    """One set of weights, read through both paths."""
    family = FAMILIES["ernie4_5_moe"]
    config = with_layers(family.parse_config({}), num_layers)
    config = dataclasses.replace(config, num_experts=num_experts)
    made = {}
    weights = None
    for path in (TILES, VECTORS):
        backend = NativeBackend(path)
        formats = Formats(FORMATS[quant], FORMATS["int8"], backend, backend)
        weights = weights or random_weights(config, family, formats)
        made[path] = assemble(config, weights, formats, torch.device("cpu"), torch.bfloat16)
    return made


def measure(quant: str, args: argparse.Namespace) -> None:
    """Prefill of several lengths and decode through both paths, in turns."""
    found = decoders(quant, args.layers, args.experts)
    for prompt_tokens in (32, 128, 512):
        bench = BenchOptions(prompt_tokens=prompt_tokens, new_tokens=args.n)
        runs: dict[str, list[dict[str, float]]] = {path: [] for path in found}
        for idx in range(args.rounds + 1):  # the first is not counted
            for path, decoder in found.items():
                run = timed_run(decoder, bench)
                runs[path] += [run] if idx else []
        medians = {
            stage: {path: statistics.median(r[stage] for r in runs[path]) for path in found}
            for stage in ("prefill", "decode")
        }
        for stage, by_path in medians.items():
            if stage == "decode" and prompt_tokens != 512:
                continue
            say(measured=stage, quant=quant, layers=args.layers, experts=args.experts,
                threads=args.threads, prompt_tokens=prompt_tokens,
                amx=round(by_path[TILES], 2), avx512=round(by_path[VECTORS], 2),
                ratio=round(by_path[TILES] / by_path[VECTORS], 3))  # fmt: skip


def main() -> int:
    """Check, then measure; 1 if a check failed or there is nothing to check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--experts", type=int, default=64, help="stored; a token uses 6")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quant", choices=("nf4", "int8"), nargs="*", default=["nf4", "int8"])
    parser.add_argument("--threads", type=int, default=num_threads())
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("--emulated", action="store_true", help="only the checks, in software")
    args = parser.parse_args()
    set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    paths = library().paths
    path = "amx-emulated" if args.emulated else TILES
    if path not in paths:
        say(error=f"no {path} here; there are {', '.join(paths)}")
        return 1
    say(paths=paths, threads=args.threads, torch=torch.__version__)
    if not all(list(checks(path))):
        return 1
    if not args.emulated:
        for quant in args.quant:
            measure(quant, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
