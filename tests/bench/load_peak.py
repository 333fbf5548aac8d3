"""Peak memory of loading a synthetic checkpoint of the 21B shape, against the promise.

    python -m tests.bench.load_peak [--layers 3] [--quant nf4] [--folder DIR]

Writes a bf16 checkpoint of that many layers (1.6 GB each, embedding 0.5 GB), loads it in a process
of its own, first quantizing, then from the copy, and prints peak memory and time of both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from erniechat.mini import checkpoint_folder
from erniechat.model.families import FAMILIES

LIMIT_SLACK_NBYTES = 500_000_000

LOAD = """
import json, sys, time
from erniechat.loader import load_engine
from erniechat.options import LoadOptions
from quant.memory import process_memory
before = process_memory().rss_nbytes
began = time.perf_counter()
engine = load_engine(LoadOptions(model=sys.argv[1], quant=sys.argv[2]))
print(json.dumps({"seconds": time.perf_counter() - began, "before": before,
    "weights": engine.memory().weights_nbytes, "peak": process_memory().peak_rss_nbytes}))
"""


def write_checkpoint(folder: Path, num_layers: int) -> int:
    """A checkpoint of the 21B shape with normal weights, one shard a layer.

    Returns:
        Bytes of its largest tensor.
    """
    raw = {"model_type": "ernie4_5_moe", "num_hidden_layers": num_layers}
    family = FAMILIES["ernie4_5_moe"]
    slots = family.tensors(family.parse_config(raw))
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, slot in slots.items():
        if name != "lm_head.weight":
            key = name.split(".")[2] if ".layers." in name else "rest"
            shards.setdefault(key, {})[name] = torch.Size(slot.shape)
    weight_map, largest = {}, 0
    for key, shapes in shards.items():
        tensors = {}
        for name, shape in shapes.items():
            dtype = torch.float32 if "gate.weight" in name or "bias" in name else torch.bfloat16
            tensors[name] = torch.empty(shape, dtype=dtype).normal_(0, 0.02)
            largest = max(largest, tensors[name].nbytes)
            weight_map[name] = f"model-{key}.safetensors"
        save_file(tensors, folder / f"model-{key}.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((checkpoint_folder() / name).read_bytes())
    return largest


def main() -> int:
    """Print the table; 1 if the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "checkpoint").mkdir()
        largest = write_checkpoint(folder / "checkpoint", args.layers)
        command = [sys.executable, "-c", LOAD, str(folder / "checkpoint"), args.quant]
        environment = {"XDG_CACHE_HOME": str(folder), "XDG_STATE_HOME": str(folder)}
        ok = True
        for start in ("first start, quantizing", "second start, mapped"):
            out = subprocess.run(
                ["/usr/bin/env", *(f"{k}={v}" for k, v in environment.items()), *command],
                check=True,
                capture_output=True,
                text=True,
            )
            found = json.loads(out.stdout)
            limit = found["weights"] + largest + LIMIT_SLACK_NBYTES
            ok &= found["peak"] <= limit
            sys.stdout.write(
                f"{start}: {found['seconds']:.2f} s, peak {found['peak'] / 1e6:.0f} MB "
                f"(imports {found['before'] / 1e6:.0f}), limit {limit / 1e6:.0f} MB = finished "
                f"{found['weights'] / 1e6:.0f} + largest {largest / 1e6:.0f} + 500\n"
            )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
