"""First and second start at the 21B shape: speed and memory of quantizing, time to the prompt.

    python -m tests.bench.first_start [--layers 28] [--quant nf4] [--threads 2] [--folder DIR]
        [--tokenizer DIR]

Writes a checkpoint of that many layers whose shards are sparse files (zeros take no disk and are
quantized like any weights), quantizes it in a process of its own, starts chats from the copy until
their prompt is on the screen, and compares a one-shot of the built-in model with importing torch,
in turns. The copy takes 11.7 GB. The published tokenizer, 11 MB, takes half a second to read; the
built-in one, without --tokenizer, nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pexpect

from erniechat.mini import checkpoint_folder
from erniechat.model.families import FAMILIES

SHARD_NBYTES = 5_000_000_000
FIRST = """
import json, sys, time
from erniechat.loader import load_engine
from erniechat.options import LoadOptions
from quant.memory import process_memory
seen = {"quantize": [], "peak": 0}
before = process_memory().rss_nbytes
def report(progress):
    now = time.perf_counter()
    if not seen["quantize"]:
        seen["quantize"].append((now, progress.done))
    if progress.done == progress.total:
        seen["quantize"].append((now, progress.done))
        seen["peak"] = process_memory().peak_rss_nbytes
options = LoadOptions(model=sys.argv[1], quant=sys.argv[2], threads=int(sys.argv[3]), ctx=4096)
load_engine(options, report)
(begin, first), (end, last) = seen["quantize"]
print(json.dumps({"nbytes": last - first, "seconds": end - begin, "before": before,
    "peak": seen["peak"]}))
"""
SECOND = """
import sys, time
from erniechat.loader import load_engine
from erniechat.options import LoadOptions
imported = time.perf_counter()
options = LoadOptions(model=sys.argv[1], quant=sys.argv[2], threads=int(sys.argv[3]), ctx=4096)
load_engine(options)
print(time.perf_counter() - imported)
"""


def write_sparse_checkpoint(
    folder: Path, num_layers: int, texts: Path | None = None, **changes: object
) -> int:
    """A checkpoint of the 21B shape, or one changed, that is all zeros and holes; its bytes.

    Args:
        folder: Where it goes.
        num_layers: Of 28.
        texts: The folder of its tokenizer and template; the built-in model's if None.
        changes: Of the config.
    """
    raw = {"model_type": "ernie4_5_moe", "num_hidden_layers": num_layers, **changes}
    family = FAMILIES["ernie4_5_moe"]
    slots = family.tensors(family.parse_config(raw))
    shards: list[dict[str, dict[str, object]]] = [{}]
    sizes, weight_map = [0], {}
    for name, slot in slots.items():
        if name == "lm_head.weight":
            continue
        is_wide = "gate.weight" in name or "bias" in name
        nbytes = (4 if is_wide else 2) * _numel(slot.shape)
        if sizes[-1] + nbytes > SHARD_NBYTES:
            shards.append({})
            sizes.append(0)
        offsets = [sizes[-1], sizes[-1] + nbytes]
        dtype = "F32" if is_wide else "BF16"
        shards[-1][name] = {"dtype": dtype, "shape": slot.shape, "data_offsets": offsets}
        sizes[-1] += nbytes
        weight_map[name] = f"model-{len(shards):05d}.safetensors"
    for number, (shard, size) in enumerate(zip(shards, sizes, strict=True), 1):
        text = json.dumps(shard).encode()
        path = folder / f"model-{number:05d}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(path, 8 + len(text) + size)
    (folder / "config.json").write_text(json.dumps(raw))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(((texts or checkpoint_folder()) / name).read_bytes())
    return sum(sizes)


def _numel(shape: tuple[int, ...]) -> int:
    out = 1
    for size in shape:
        out *= size
    return out


def seconds_to_prompt(words: list[str], environment: dict[str, str]) -> float:
    """From the start of a chat to its prompt on a terminal."""
    began = time.perf_counter()
    command = ["-m", "erniechat", "--no-save", "--ctx", "4096", *words]
    chat = pexpect.spawn(sys.executable, command, env=environment, timeout=120)
    chat.expect("›".encode())
    seconds = time.perf_counter() - began
    chat.close(force=True)
    return seconds


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Wall seconds of a process, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout


def main() -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of a published tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "checkpoint").mkdir()
        nbytes = write_sparse_checkpoint(folder / "checkpoint", args.layers, args.tokenizer)
        environment = {**os.environ, "XDG_CACHE_HOME": name, "XDG_STATE_HOME": name}
        words = [str(folder / "checkpoint"), args.quant, str(args.threads)]
        _, out = timed([sys.executable, "-c", FIRST, *words], environment)
        first = json.loads(out)
        copy = sum(p.stat().st_size for p in (folder / "erniechat").rglob("weights.bin"))
        sys.stdout.write(
            f"checkpoint {nbytes / 1e9:.1f} GB, copy {copy / 1e9:.1f} GB, {args.threads} threads\n"
            f"quantize: {first['nbytes'] / first['seconds'] / 1e6:.0f} MB/s of bf16 "
            f"({first['seconds']:.1f} s), peak {first['peak'] / 1e6:.0f} MB "
            f"(imports {first['before'] / 1e6:.0f})\n"
        )
        chat = ["--model", words[0], "--quant", args.quant, "--threads", words[2]]
        chat_environment = {**environment, "TERM": "xterm", "LANG": "C.UTF-8"}
        second, after = [], []
        for _ in range(args.runs + 1):
            second.append(seconds_to_prompt(chat, chat_environment))
            after.append(float(timed([sys.executable, "-c", SECOND, *words], environment)[1]))
        prompt = statistics.median(second[1:])
        sys.stdout.write(
            f"second start: prompt after {prompt:.2f} s ({min(second[1:]):.2f} to "
            f"{max(second[1:]):.2f}), of which {statistics.median(after[1:]):.2f} s loading\n"
        )
        shot = ["-m", "erniechat", "-p", "What is 17 + 25?", "--no-stdin"]
        ours, torch = [], []
        for _ in range(args.runs + 1):
            ours.append(timed([sys.executable, *shot], environment)[0])
            torch.append(timed([sys.executable, "-c", "import torch"], environment)[0])
        one, two = statistics.median(ours[1:]), statistics.median(torch[1:])
        sys.stdout.write(
            f"one-shot of mini: {one:.2f} s, import torch: {two:.2f} s, ratio {one / two:.2f}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
