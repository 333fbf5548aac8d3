"""A second start on the GPU at the 21B shape: from process to prompt to first token, by part.

    python -m tests.bench.gpu_start [--layers 28] [--experts 64] [--runs 3] [--folder DIR]

Writes a sparse checkpoint and a random copy where a start looks for it (11.7 GB), then starts
processes. The first has an empty Triton cache and compiles, which a machine does once; the median
of the others is printed. Weights go on arriving behind the prompt: their end, and the first token
of a reply that was asked for at once, are counted from the process' start, too. ``--device cpu``
only shows that this program works.
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

from erniechat.options import LoadOptions
from tests.bench.first_start import write_sparse_checkpoint

PROMISED_SECONDS = 6
CHILD = """
import json, sys, threading, time
began = float(sys.argv[1])
times = {}
def part(name, since):
    now = time.time()
    times[name] = now - since
    return now
from erniechat.options import LoadOptions, SamplingOptions
from erniechat.ui.process import imports_that_stay
options = LoadOptions(model=sys.argv[2], quant="nf4", device=sys.argv[3], ctx=4096)
now = part("interpreter", began)
with imports_that_stay():  # as cli.py does it
    from erniechat.early import find_early
    early = find_early(options)
    import torch
    now = part("import torch", now)
    if sys.argv[3] != "cpu":
        from quant.waking import wake_gpu
        wake_gpu()
    from erniechat import loader
    from erniechat.model import assembly
now = part("other imports", now)
def timed(module, attribute, name):
    call = getattr(module, attribute)
    def run(*args, **how):
        start = time.time()
        try:
            return call(*args, **how)
        finally:
            times[name] = times.get(name, 0) + time.time() - start
    setattr(module, attribute, run)
timed(loader, "make_plan", "plan")
timed(loader, "check_memory", "memory plan")
timed(loader, "finished_weights", "open copy")
timed(loader, "_assembled", "assembly")
timed(loader, "read_prompt_tools", "tokenizer and template")
timed(loader, "Engine", "KV cache")
timed(assembly, "slots_for", "assembly: memory for experts")
timed(assembly, "import_launchers", "assembly: import Triton")
timed(assembly, "pooled_experts", "assembly: expert store")
timed(assembly, "build_step", "assembly: launches")
begin = assembly.BackgroundUpload
def timed_begin(*args):
    times["UPLOAD BEGINS"] = time.time() - began
    return begin(*args)
assembly.BackgroundUpload = timed_begin
from erniechat.events import TextDelta
engine = loader.load_engine(options, None, lambda text: print(text, file=sys.stderr), early)
times["PROMPT"] = time.time() - began
def wait():
    engine.decoder.wait()
    times["UPLOAD FINISHED"] = time.time() - began
waiting = threading.Thread(target=wait)
waiting.start()
sampling = SamplingOptions(temperature=0.7, top_p=0.9, max_tokens=4)
if sys.argv[4] == "warm up":
    start = time.time()
    engine.warm_up(sampling, lambda: False)
    times["warm-up while the user types"] = time.time() - start
first_at = []
def first_token(text):
    start = time.time()
    reply = engine.stream_completion(text, sampling)
    for event in reply:
        if isinstance(event, TextDelta):
            break
    first_at.append(time.time())
    first = time.time() - start
    for event in reply:
        pass
    return first
times["first reply, first token"] = first_token("17 + 25 = " * 4)
times["FIRST TOKEN"] = first_at[0] - began
times["second reply, first token"] = first_token("What is a house? " * 4)
times["512 tokens more, first token"] = first_token("17 + 25 = 42, " * 60)
times["the same again, first token"] = first_token("House is a noun " * 70)
memory = engine.memory()
times["GPU peak GB"] = memory.gpu_peak_nbytes / 1e9
times["RSS GB"] = memory.host_nbytes / 1e9
times["RSS peak GB"] = memory.host_peak_nbytes / 1e9
waiting.join()
print(json.dumps(times))
"""
CONTEXT = """
import time, torch
began = time.time()
torch.zeros(1, device="cuda")
torch.cuda.synchronize()
print(time.time() - began)
"""


def prepare(
    folder: Path, num_layers: int, num_experts: int, device: str, texts: Path | None = None
) -> Path:
    """A checkpoint and its copy; the checkpoint's folder.

    Args:
        folder: Where both go.
        num_layers: Of 28.
        num_experts: Of 64.
        device: That the copy is for.
        texts: The folder of its tokenizer and template; the built-in model's if None.
    """
    from erniechat.loader import make_plan
    from erniechat.planning import copy_folder
    from erniechat.resolve import locate
    from erniechat.weights import copy_meta
    from tests.bench.random_copy import read_once, write_copy

    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    write_sparse_checkpoint(checkpoint, num_layers, texts, moe_num_experts=num_experts)
    options = LoadOptions(model=str(checkpoint), quant="nf4", device=device, ctx=4096)
    plan = make_plan(locate(options), options)
    target = copy_folder(plan, options.model)
    write_copy(target, plan.config, plan.formats, copy_meta(plan, options))
    read_once(target)
    return checkpoint


def start(
    checkpoint: Path, device: str, environment: dict[str, str], *, warms_up: bool = False
) -> dict[str, float]:
    """One process; the seconds of its parts."""
    how = "warm up" if warms_up else "answer"
    command = [sys.executable, "-c", CHILD, str(time.time()), str(checkpoint), device, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    done.check_returncode()
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def main() -> int:
    """Print a table; 1 if the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for kind in ("CACHE", "STATE", "CONFIG", "DATA"):
            os.environ[f"XDG_{kind}_HOME"] = name
        os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        checkpoint = prepare(folder, args.layers, args.experts, args.device)
        environment = dict(os.environ)
        if args.device != "cpu":
            command = [sys.executable, "-c", CONTEXT]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            sys.stdout.write(f"a CUDA context alone: {float(done.stdout):.2f} s\n")
        cold = start(checkpoint, args.device, environment)
        warm = [start(checkpoint, args.device, environment) for _ in range(args.runs)]
        ready = start(checkpoint, args.device, environment, warms_up=True)
    sys.stdout.write(f"{'seconds':32}{'cold':>8}{'warm':>8}{'least':>8}\n")
    for part, seconds in cold.items():
        values = [run[part] for run in warm]
        sys.stdout.write(
            f"{part:32}{seconds:8.2f}{statistics.median(values):8.2f}{min(values):8.2f}\n"
        )
    for part in [part for part in ready if "warm-up" in part or "first token" in part]:
        sys.stdout.write(f"{part + ', warmed up':48}{ready[part]:8.2f}\n")
    for part in ("UPLOAD FINISHED", "FIRST TOKEN"):
        seconds = statistics.median(run[part] for run in warm)
        sys.stdout.write(f"{part.lower()} after {seconds:.2f} s\n")
    prompt = statistics.median(run["PROMPT"] for run in warm)
    sys.stdout.write(f"prompt after {prompt:.2f} s (promised {PROMISED_SECONDS})\n")
    return 0 if prompt < PROMISED_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
