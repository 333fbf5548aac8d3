"""A first start from a hub on loopback: MB/s of each stage, peak of memory and of the disk.

    python -m tests.bench.hub_start [--layers 2] [--shard-mb 250] [--quant nf4] [--threads 2]

The checkpoint has the 21B shape, cut, in sparse files; hub and client share the machine, so that
the download is as fast as both together, hashing included. Runs with originals kept and discarded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.bench import first_start
from tests.hub.loopback import Hub, environment_of

CLIENT = """
import json, sys, time
from erniechat.loader import load_engine
from erniechat.options import LoadOptions
from quant.memory import process_memory
stages = {}
def report(progress):
    now = time.perf_counter()
    first = stages.setdefault(progress.stage, [now, progress.done, now, progress.done])
    first[2:] = now, progress.done
name, quant, threads, discards = sys.argv[1:]
options = LoadOptions(model=name, quant=quant, threads=int(threads), ctx=4096,
    discard_originals=discards == "yes")
before, began = process_memory().rss_nbytes, time.perf_counter()
load_engine(options, report)
print(json.dumps({"seconds": time.perf_counter() - began, "before": before, "stages": stages,
    "peak": process_memory().peak_rss_nbytes}))
"""


def disk_nbytes(folder: Path) -> int:
    """Bytes that a folder takes on the disk; a file that goes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_symlink() else path.stat().st_blocks * 512
        except OSError:
            continue
    return total


def measure(hub: Hub, home: Path, args: argparse.Namespace, discards: str) -> str:
    """One first start; what it took, as a row."""
    environment = {**os.environ, **environment_of(hub, home)}
    words = ["owner/large", args.quant, str(args.threads), discards]
    command = [sys.executable, "-c", CLIENT, *words]
    client = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak, ended = 0, threading.Event()
    output: list[str] = []

    def read() -> None:
        output.append(client.communicate()[0])
        ended.set()

    threading.Thread(target=read).start()
    while not ended.wait(0.05):
        peak = max(peak, disk_nbytes(home))
    found = json.loads(output[0])
    speeds = []
    for stage in ("download", "quantize"):
        begin, first, end, last = found["stages"][stage]
        speeds.append(f"{(last - first) / (end - begin) / 1e6:,.0f}")
    return (
        f"| {discards} | {speeds[0]} | {speeds[1]} | {found['seconds']:.1f} | "
        f"{peak / 1e6:,.0f} | {disk_nbytes(home) / 1e6:,.0f} | {found['peak'] / 1e6:,.0f} "
        f"({found['before'] / 1e6:,.0f}) |\n"
    )


def main() -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--shard-mb", type=int, default=250)
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    first_start.SHARD_NBYTES = args.shard_mb * 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        folder.mkdir()
        nbytes = first_start.write_sparse_checkpoint(folder, args.layers)
        num_shards = len(list(folder.glob("*.safetensors")))
        sys.stdout.write(
            f"{nbytes / 1e6:,.0f} MB in {num_shards} shards, {args.threads} threads\n"
            "| originals discarded | download MB/s | quantize MB/s | s | peak disk MB | kept MB | "
            "peak RAM MB (imports) |\n|---|---:|---:|---:|---:|---:|---:|\n"
        )
        with Hub({"owner/large": folder}) as hub:
            for path in folder.iterdir():
                hub.hash_of(path)
            for discards in ("no", "yes"):
                sys.stdout.write(measure(hub, Path(name) / discards, args, discards))
    return 0


if __name__ == "__main__":
    sys.exit(main())
