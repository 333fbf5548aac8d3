"""One answer at the 21B shape on a CPU: from process start to the first character, part by part.

    python -m tests.bench.first_token [--layers 28] [--runs 5] [--folder DIR] [--tokenizer DIR]

Writes a sparse checkpoint and a random copy where a start looks for it (11.7 GB), then runs
``erniechat -p`` in turns with the copy in the page cache (as it was written, then as it was read
from the disk) and not there, and with ``python -c "import torch"``. Needs the copy's size in free
RAM. The published tokenizer, 11 MB, takes half a second; the built-in one nothing.
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

from quant.copy_names import DATA_FILE
from tests.bench.gpu_start import prepare
from tests.bench.random_copy import read_once

LABELS = ("from the disk", "read before", "import torch")
QUESTION = "What is the capital of France? Answer in one word."
HOW = ["--no-stdin", "--max-tokens", "4", "--seed", "7", "--temperature", "0", "-p", QUESTION]
PARTS = """
import json, sys, time
began = float(sys.argv.pop(1))
times = {"interpreter": time.time() - began}
last = time.time()
def part(name):
    global last
    now = time.time()
    times[name] = times.get(name, 0) + now - last
    last = now
from erniechat import cli
import erniechat.ui.jobs
part("command line")
def load(options, progress, warn):
    cli._prepare_process()
    with cli.imports_that_stay():
        from erniechat.early import find_early
        early = find_early(options)
        part("files, tokenizer")
        import torch
        part("import torch")
        from erniechat import loader
        part("other imports")
    def timed(name, label):
        call = getattr(loader, name)
        def run(*args, **how):
            part("rest of loading")
            try:
                return call(*args, **how)
            finally:
                part(label)
        setattr(loader, name, run)
    timed("make_plan", "plan")
    timed("finished_weights", "map")
    timed("assemble", "assembly")
    timed("read_prompt_tools", "tokenizer, not parsed in time")
    backend = loader.load_engine(options, progress, warn, early)
    part("rest of loading")
    answer = backend.stream_reply
    def stream_reply(*args, **how):
        part("to the request")
        for event in answer(*args, **how):
            kind = type(event).__name__
            if kind == "Progress" and event.done:
                part("prompt and its pages")
            elif kind == "TextDelta" and "first token" not in times:
                part("first token")
            yield event
    backend.stream_reply = stream_reply
    return backend
cli.main(sys.argv[1:], services=cli.Services(load_engine=load))
print(json.dumps(times), file=sys.stderr)
"""


def first_character(command: list[str]) -> float:
    """Seconds from the start of a process to the first byte of its answer."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        first = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - began
        if not first:
            raise SystemExit(process.stderr.read().decode())
        process.communicate()
    return seconds


def forget(file: Path) -> None:
    """Take a file out of the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def say(name: str, seconds: list[float]) -> None:
    """One line: the median and its range."""
    middle = statistics.median(seconds)
    sys.stdout.write(f"{name:34}{middle:6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})\n")


def main() -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of a published tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for kind in ("CACHE", "STATE", "CONFIG", "DATA"):
            os.environ[f"XDG_{kind}_HOME"] = name
        checkpoint = prepare(Path(name), args.layers, 64, "cpu", args.tokenizer)
        (file,) = Path(name).rglob(DATA_FILE)
        words = ["--model", str(checkpoint), "--quant", "nf4", *HOW]
        command = [sys.executable, "-m", "erniechat", *words]

        def warm() -> float:
            read_once(file.parent)  # some systems give cold pages back soon
            return first_character(command)

        def cold() -> float:
            forget(file)
            return first_character(command)

        def torch() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import torch"], check=True)
            return time.perf_counter() - began

        warm()
        say("as written", [warm() for _ in range(args.runs)])
        runs = [(cold(), warm(), torch()) for _ in range(args.runs + 1)][1:]
        for label, seconds in zip(LABELS, zip(*runs, strict=True), strict=True):
            say(label, list(seconds))

        parts = []
        for _ in range(args.runs):
            read_once(file.parent)
            child = [sys.executable, "-c", PARTS, str(time.time()), *words]
            done = subprocess.run(child, check=True, capture_output=True, text=True)
            parts.append(json.loads(done.stderr.splitlines()[-1]))
    for label in parts[0]:
        say(f"  {label}", [run.get(label, 0.0) for run in parts])
    return 0


if __name__ == "__main__":
    sys.exit(main())
