"""Kill -9 at random moments of a first start from a hub on loopback, again and again.

    python -m tests.bench.random_kills [--kills 40] [--seed 0] [--quant nf4] [--discard] [--staged]

The built-in model is served in shards of 1 MB, and each writing to the copy and its journal is torn
in two with a pause between, so that kills hit the middle of weights and lines. After each kill it
is told what was lost: weights that were in work, and bytes that had been sent but not kept. At the
end the copy must be, byte for byte, that of a start which nobody killed.
``--staged`` quantizes through the pipeline that a GPU uses, with the CPU as its device.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from erniechat.mini import checkpoint_folder
from quant.copy_names import DATA_FILE, INDEX_FILE
from tests.hub.loopback import Hub, environment_of

SHARD_NBYTES = 1_000_000
CLIENT = """
import os, sys, time
import torch
from erniechat import weights
from erniechat.loader import load_engine
from erniechat.model import delivery
from erniechat.options import LoadOptions
from quant import copy_writer
from quant.copy_writer import CopyWriter
from quant.staging import StagedQuantizer

def tell(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

def telling_begin(call, unit_at):
    def told(*arguments):
        tell("begin", *arguments[unit_at].targets)
        return call(*arguments)
    return told

def set_and_tell(self, name, weight, set_item=CopyWriter.__setitem__):
    set_item(self, name, weight)
    tell("end", name)

def write_torn(file, data, write_all=copy_writer._write_all):
    half = len(data) // 2
    write_all(file, data[:half])
    time.sleep(PAUSE)
    write_all(file, data[half:])

copy_writer._write_all = write_torn
delivery.make_unit = telling_begin(delivery.make_unit, 0)
delivery._start = telling_begin(delivery._start, 0)
CopyWriter.__setitem__ = set_and_tell
quant, discards, staged, pause = sys.argv[1:]
PAUSE = float(pause)
if staged == "1":
    weights._quantizer = lambda plan, is_kept=False: StagedQuantizer(torch.device("cpu"))
tell("ready")
load_engine(LoadOptions(model="owner/mini", quant=quant, discard_originals=discards == "1"))
"""


class Run:
    """First starts of one model with one cache folder.

    Args:
        hub: Serves it.
        home: Holds all that is kept.
        words: Of the client: format, whether to discard, whether to stage.
    """

    def __init__(self, hub: Hub, home: Path, words: list[str]) -> None:
        self._hub, self._home, self._words = hub, home, words

    def start(self, seconds: float | None) -> tuple[int, float, list[list[str]]]:
        """Start, and kill so long after the imports; None lets it end.

        Returns:
            The exit status, how long it ran after the imports, and what it told.
        """
        environment = {**os.environ, **environment_of(self._hub, self._home)}
        command = [sys.executable, "-c", CLIENT, *self._words]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        if seconds is not None:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        told = process.stdout.read()
        took = time.monotonic() - began
        return process.wait(), took, [line.split() for line in told.decode().splitlines()]

    @property
    def copies(self) -> Path:
        """Where copies are."""
        return self._home / "cache" / "erniechat" / "copies"

    @property
    def is_finished(self) -> bool:
        """Whether the copy has its name."""
        return any(self.copies.glob(f"[!.]*/{INDEX_FILE}"))

    def journaled(self) -> list[str]:
        """Names of the weights that are kept, as often as they are."""
        for index in self.copies.glob(f"[!.]*/{INDEX_FILE}"):
            return list(json.loads(index.read_text())["index"]["entries"])
        partial = [*self.copies.glob(".*.partial/journal")]
        names = []
        for raw in partial[0].read_bytes().splitlines(keepends=True) if partial else []:
            if raw.endswith(b"\n") and b'"name"' in raw:
                names.append(json.loads(raw[9:])["name"])
        return names

    def digests(self) -> list[str]:
        """Of the finished copy's two files."""
        (folder,) = (path for path in self.copies.iterdir() if not path.name.startswith("."))
        return [
            hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (DATA_FILE, INDEX_FILE)
        ]


def shard_small(folder: Path) -> Path:
    """The built-in model in many shards."""
    folder.mkdir()
    tensors = {}
    for path in sorted(checkpoint_folder().iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.name != "model.safetensors.index.json":
            shutil.copy(path, folder)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if sum(t.nbytes for t in shards[-1].values()) > SHARD_NBYTES:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, shard in enumerate(shards):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def lost(told: list[list[str]], before: list[str], kept: list[str]) -> tuple[int, int]:
    """Units that were begun and weights of them that are not kept.

    Raises:
        AssertionError: If a weight is lost whose writing had ended, is kept twice, or if one that
            was kept was made again.
    """
    ended = {words[1] for words in told if words[0] == "end"}
    begun = [words[1:] for words in told if words[0] == "begin"]
    assert ended <= set(kept), sorted(ended - set(kept))
    assert len(kept) == len(set(kept)), "a weight is kept twice"
    again = [unit for unit in begun if set(unit) <= set(before)]
    assert not again, f"made again: {again}"
    missing = [[name for name in unit if name not in kept] for unit in begun]
    return sum(map(bool, missing)), sum(map(len, missing))


def kill_until_done(run: Run, chance: random.Random, most_seconds: float, num_left: int) -> str:
    """One conversion, killed again and again; what was lost, in a line for each kill.

    Args:
        run: With an empty cache.
        chance: Says when.
        most_seconds: That a start lives.
        num_left: At most so many kills.
    """
    lines = []
    while len(lines) < num_left and not run.is_finished:
        before = run.journaled()
        status, took, told = run.start(chance.uniform(0, most_seconds))
        if status == 0:
            break
        if status != -signal.SIGKILL:
            raise SystemExit(f"a start ended with {status}")
        units, num_weights = lost(told, before, run.journaled())
        lines.append(
            f"killed after {took:.2f} s: kept {len(run.journaled())} weights, "
            f"lost {num_weights} of {units} units in work\n"
        )
    if run.start(None)[0]:
        raise SystemExit("the last start failed")
    return "".join(lines)


def main() -> int:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--discard", action="store_true")
    parser.add_argument("--staged", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a start lives at most")
    parser.add_argument("--bytes-per-second", type=float, default=8e6)
    parser.add_argument("--pause", type=float, default=0.002)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    flags = [args.quant, str(int(args.discard)), str(int(args.staged))]
    with tempfile.TemporaryDirectory() as name:
        folder = shard_small(Path(name) / "checkpoint")
        nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        with Hub({"owner/mini": folder}) as hub:
            whole = Run(hub, Path(name) / "whole", [*flags, "0"])
            whole.start(None)
            hub.bytes_per_second = args.bytes_per_second
            num_left = args.kills
            while num_left:
                hub.sent.clear()
                run = Run(hub, Path(name) / f"killed-{num_left}", [*flags, str(args.pause)])
                lines = kill_until_done(run, chance, args.seconds, num_left)
                if run.digests() != whole.digests():
                    raise SystemExit("the copy is another than that of a start nobody killed")
                num_left -= lines.count("\n")
                again = sum(hub.sent.values()) - nbytes
                sys.stdout.write(
                    f"{lines}the copy is the same; {again / 1e6:.1f} of {nbytes / 1e6:.1f} MB were "
                    "sent again, headers included\n"
                )
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
