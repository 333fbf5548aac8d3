"""A model larger than the RAM it may use: the cache of experts against the plain mapping.

    python -m tests.bench.disk_tier [--layers 10] [--ratio 1.5] [--tokens 40] [--prompt 512]
        [--runs 3] [--ways cache unstaged]

Random weights of the 21B model's shape with fewer layers are written as a quantized copy. Each
way to run it is a process of its own in a memory control group (root is needed) whose limit is
the bytes of the model divided by ratio, with an empty page cache, in turns. Tokens are random, so
that no reply repeats itself. Decode is measured before a prompt and after it. What the prompt must
move are the experts that are not in RAM when it begins, each once; it is predicted to take as long
as the disk takes for these, or as the same prompt with all in RAM ("ram"), whichever is longer.
Routing is as the random router has it, near uniform, and skewed: a correction bias gives half of
the experts about 75 % of the choices.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import quant.copy
from erniechat.generation.generate import PREFILL_CHUNK
from erniechat.model.assembly import assemble
from erniechat.model.config import ModelConfig
from erniechat.model.disk_assembly import Residency
from erniechat.model.families import FAMILIES
from erniechat.model.synthetic import random_weights, with_layers
from erniechat.model_sizes import model_sizes
from erniechat.options import LoadOptions
from erniechat.planning import choose_formats
from quant.copy import QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.experts.placement import ExpertKey
from quant.memory import process_memory
from quant.speeds import measure_disk
from quant.tensor import QuantTensor

FAMILY = FAMILIES["ernie4_5_moe"]
DEVICE = torch.device("cpu")
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20
WAYS = ("ram", "mapping", "large", "lru", "cache", "unstaged", "ahead")
WRONG = 0.27  # guesses of the next layer's choice, as on the built-in model; here all are right
HOT_BIAS = 0.0227  # of the router's probabilities; the share it gives is printed


def shape(layers: int) -> ModelConfig:
    """The 21B model with fewer layers."""
    return with_layers(FAMILY.parse_config({}), layers)


def write_copy(folder: Path, layers: int) -> None:
    """Random weights as a copy, if there is none."""
    if folder.exists():
        return
    sys.stderr.write(f"writing {folder}\n")
    formats = choose_formats("nf4", LoadOptions(), DEVICE)
    weights = random_weights(shape(layers), FAMILY, formats)
    with CopyWriter(folder, {"layers": layers}) as writer:
        for name in weights:
            writer[name] = _quiet(name, weights[name])
        writer.finish()


def _quiet(name: str, weight: QuantTensor | Tensor) -> QuantTensor | Tensor:
    """Blocks that add nothing, so that each token keeps a choice of experts of its own.

    With random weights as they are, tokens look alike after a few layers and share their experts.
    """
    if not isinstance(weight, QuantTensor) or not name.endswith((".o", ".down")):
        return weight
    parts = {**weight.parts, "absmax": torch.zeros_like(weight.parts["absmax"])}
    return QuantTensor(weight.format, weight.layout, weight.shape, parts)


class SkewedCopy(QuantizedCopy):
    """A copy whose routers prefer half of the experts, another half in each layer."""

    def __getitem__(self, name: str) -> QuantTensor | Tensor:
        """A weight."""
        weight = super().__getitem__(name)
        if not name.endswith("correction_bias") or isinstance(weight, QuantTensor):
            return weight
        generator = torch.Generator().manual_seed(int(name.split(".")[1]))
        hot = torch.randperm(len(weight), generator=generator)[: len(weight) // 2]
        biased = weight.clone()
        biased[hot] += HOT_BIAS
        return biased


V1 = (CGROUPS / "memory" / "memory.limit_in_bytes").exists()


def group_of(pid: int) -> Path:
    """The control group of a process of this benchmark."""
    return (CGROUPS / "memory" if V1 else CGROUPS) / f"erniechat-bench-{pid}"


def enter_group(limit: int) -> None:
    """Move this process into a memory control group with a limit."""
    folder = group_of(os.getpid())
    folder.mkdir(exist_ok=True)
    (folder / ("memory.limit_in_bytes" if V1 else "memory.max")).write_text(str(limit))
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def _err(store: Any) -> None:
    """Make guesses as often wrong as they are on a real model: blocks that add nothing hide it."""
    right, generator = store._predict, torch.Generator().manual_seed(2)

    def predict(layer_idx: int, hidden_states: Tensor) -> Tensor:
        scores: Tensor = right(layer_idx, hidden_states).clone()
        chosen = scores.topk(6).indices
        wrong = chosen[torch.rand(len(chosen), generator=generator) < WRONG]
        others = torch.randint(0, len(scores), (len(wrong),), generator=generator)
        scores[others], scores[wrong] = scores[wrong], 0.0
        return scores

    store._predict = predict


def decode(decoder: Any, ids: list[int], cache: Any) -> tuple[float, float]:
    """Tokens a second, and which share of the experts that they chose was in RAM."""
    before = {use.name: use.experts_run for use in decoder.experts.uses}
    began = time.perf_counter()
    for token_id in ids:
        decoder.forward([token_id], cache)
    seconds = time.perf_counter() - began
    run = {u.name: u.experts_run - before[u.name] for u in decoder.experts.uses}
    return len(ids) / seconds, run.get("RAM", 0) / max(1, sum(run.values()))


def child(args: argparse.Namespace) -> None:
    """Run one way and print what was measured as JSON."""
    if args.way == "mapping":  # as any program maps a file; "large" is as a copy is mapped
        quant.copy.ask_for_large_pages = lambda memory: None  # type: ignore[attr-defined]
    copy = (SkewedCopy if args.skewed else QuantizedCopy)(Path(args.folder))
    config = shape(args.layers)
    slots = [s for s in FAMILY.tensors(config).values() if not getattr(s, "optional", False)]
    formats = choose_formats("nf4", LoadOptions(), DEVICE)
    sizes = model_sizes(config, slots, formats)
    handle = os.open(copy.path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    limit = int(copy.nbytes / args.ratio)
    if args.way != "ram":
        enter_group(limit)
    residency = None
    if args.way not in ("mapping", "large", "ram"):
        taken = process_memory().rss_nbytes + sizes.fixed_nbytes + args.spare * MIB
        num_slots = (limit - taken) // (sizes.expert_nbytes + 8192)
        first = [
            ExpertKey(layer, e) for e in range(config.num_experts) for layer in config.moe_layers
        ]
        residency = Residency(
            num_slots, first, by_use=args.way != "lru", read_ahead=args.way == "ahead",
            stage=args.way != "unstaged",
        )  # fmt: skip
    decoder = assemble(config, copy, formats, DEVICE, torch.bfloat16, residency=residency)
    if args.way == "ahead":
        _err(decoder.experts)
    generator = torch.Generator().manual_seed(1)
    num_tokens = (args.warm + args.tokens, args.prompt, args.tokens)
    ids = torch.randint(0, config.vocab_size, (sum(num_tokens),), generator=generator).tolist()
    cache = decoder.new_kv_cache(len(ids))
    cold, warm = num_tokens[0], args.warm
    decode(decoder, ids[:warm], cache)
    before = decode(decoder, ids[warm:cold], cache)
    store: Any = decoder.experts
    keys = [ExpertKey(i, e) for i in config.moe_layers for e in range(config.num_experts)]
    has_disk = residency is not None
    missing = sum(key not in store for key in keys) if has_disk else 0
    nbytes = store.nbytes_read if has_disk else 0
    began = time.perf_counter()
    for at in range(cold, cold + args.prompt, PREFILL_CHUNK):
        decoder.forward(ids[at : min(at + PREFILL_CHUNK, cold + args.prompt)], cache)
    read = time.perf_counter() - began
    moved = store.nbytes_read - nbytes if has_disk else 0
    after = decode(decoder, ids[cold + args.prompt :], cache)
    counts = decoder.experts.counts[list(config.moe_layers)].float()
    top = counts.sort(1, descending=True).values[:, : config.num_experts // 2].sum() / counts.sum()
    out = {
        "decode": before[0],
        "hit_rate": before[1],
        "decode_after": after[0],
        "hit_rate_after": after[1],
        "prompt_seconds": read,
        "missing": missing * (sizes.expert_nbytes + 8192) * bool(has_disk),
        "moved": moved,
        "hot_half": float(top),
        "slots": residency.num_slots if residency else 0,
        "peak": process_memory().peak_rss_nbytes,
        "limit": limit,
    }
    sys.stdout.write(json.dumps(out) + "\n")


def measure(args: argparse.Namespace, way: str, skewed: bool) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.disk_tier", "--way", way]
    for name in ("folder", "layers", "ratio", "tokens", "prompt", "warm", "spare"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--skewed"] * skewed
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        out, told = run.communicate()
    if group_of(run.pid).exists():
        group_of(run.pid).rmdir()
    if run.returncode:
        raise SystemExit(f"{way}: {told[-2000:]} (status {run.returncode})")
    return dict(json.loads(out))


def main() -> None:
    """Print a row for each kind of routing and way to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="/var/tmp/erniechat-bench-copy")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--ratio", type=float, default=1.5, help="bytes of the model to RAM")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--warm", type=int, default=10, help="tokens before the clock starts")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--spare", type=int, default=200, help="MiB of the limit for activations")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--routing", nargs="*", default=["uniform", "skewed"])
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--skewed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        child(args)
        return
    write_copy(Path(args.folder), args.layers)
    disk = measure_disk(Path(args.folder))
    sys.stdout.write(f"the disk reads {disk / 1e9:.2f} GB/s\n{HEAD}\n")
    for skewed in (routing == "skewed" for routing in args.routing):
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
        for _ in range(args.runs):
            for way in args.ways:
                runs[way].append(measure(args, way, skewed))
        in_ram = [row["prompt_seconds"] for row in runs.get("ram", [])]
        for way, rows in runs.items():
            least = statistics.median(in_ram) if in_ram else 0.0
            told = _row(way, rows, args.prompt, least, disk)
            sys.stdout.write(f"{'skewed' if skewed else 'uniform':<9}{told}\n")
            sys.stdout.flush()


HEAD = (
    f"{'routing':<9}{'way':<9}{'decode tok/s':>18}{'hits':>6}{'after prompt':>13}{'hits':>6}"
    f"{'prefill tok/s':>20}{'must move':>10}{'moved MB':>9}{'predicted':>10}{'s':>6}"
    f"{'hot half':>9}{'peak GiB':>9}"
)


def _row(way: str, rows: list[dict[str, float]], prompt: int, least: float, disk: float) -> str:
    """The medians of some runs."""

    def middle(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    speeds = [row["decode"] for row in rows]
    prompts = [prompt / row["prompt_seconds"] for row in rows]
    has_disk = rows[-1]["slots"] > 0
    hits = [f"{100 * middle(n):.0f} %" if has_disk else "" for n in ("hit_rate", "hit_rate_after")]
    moved = [f"{middle(n) / 1e6:,.0f}" if has_disk else "" for n in ("missing", "moved")]
    predicted = f"{max(least, middle('missing') / disk):.2f} s" if has_disk and least else ""
    return (
        f"{way:<9}{middle('decode'):>6.2f} ({min(speeds):.2f}–{max(speeds):.2f}){hits[0]:>6}"
        f"{middle('decode_after'):>13.2f}{hits[1]:>6}"
        f"{prompt / middle('prompt_seconds'):>7.1f} ({min(prompts):.0f}–{max(prompts):.0f})"
        f"{moved[0]:>12}{moved[1]:>9}{predicted:>10}{middle('prompt_seconds'):>6.2f}"
        f"{100 * middle('hot_half'):>7.0f} %{middle('peak') / (1 << 30):>9.2f}"
    )


if __name__ == "__main__":
    main()
