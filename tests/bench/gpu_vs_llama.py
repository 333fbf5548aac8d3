"""Decode and prefill on a GPU against llama.cpp's llama-bench, in turn, at the 21B-A3B shape.

    python -m tests.bench.gpu_vs_llama --llama-bench PATH --gguf OUT.gguf [--quant nf4]

llama-bench is built from llama.cpp's source, which the ``llama-cpp-python`` source package holds:

    cmake -B build -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native && \
        cmake --build build --target llama-bench

and the GGUF file by ``python -m tests.bench.random_gguf``: q4_0 for nf4, q8_0 for int8. Prints
medians of the runs and their ratios.
"""

import argparse
import json
import statistics
import subprocess
import time

import torch

from tests.bench.gpu_step import (
    SHAPE_21B,
    build,
    filled_cache,
    greedy_graph,
    report,
)

NEW_TOKENS = 128
PROMPT_TOKENS = 512


def llama(binary: str, gguf: str) -> dict[str, float]:
    """Tokens a second of one run of llama-bench, all layers on the GPU."""
    command = [binary, "-m", gguf, "-p", str(PROMPT_TOKENS), "-n", str(NEW_TOKENS)]
    command += ["-ngl", "99", "-fa", "1", "-r", "3", "-o", "json"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        "decode" if row["n_gen"] else "prefill": row["avg_ts"] for row in json.loads(found.stdout)
    }


def ours(decoder, ids: list[int]) -> dict[str, float]:
    """The same of one run of ours: a prompt from nothing, then greedy tokens after it."""
    kv_cache = decoder.new_kv_cache(PROMPT_TOKENS + NEW_TOKENS + 8)
    torch.cuda.synchronize()
    began = time.perf_counter()
    logits = decoder.forward(ids, kv_cache)
    token_id = int(logits.argmax())
    read = time.perf_counter()
    graph = greedy_graph(decoder.step, SHAPE_21B.vocab_size)
    decoder.step.place(kv_cache, len(kv_cache))
    decoder.step.step.token.fill_(token_id)
    torch.cuda.synchronize()
    decode_began = time.perf_counter()
    for _ in range(NEW_TOKENS):
        graph.replay()
    torch.cuda.synchronize()
    ended = time.perf_counter()
    return {
        "prefill": len(ids) / (read - began),
        "decode": NEW_TOKENS / (ended - decode_began),
    }


def first_token_ms(decoder, num_tokens: int) -> float:
    """Milliseconds from a prompt's ids to the id of the first token, a median of 7."""
    times = []
    for _ in range(7):
        ids = torch.randint(0, SHAPE_21B.vocab_size, (num_tokens,)).tolist()
        kv_cache = decoder.new_kv_cache(num_tokens + 8)
        torch.cuda.synchronize()
        began = time.perf_counter()
        int(decoder.forward(ids, kv_cache).argmax())
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    decoder = build(args.quant)
    ids = torch.randint(0, SHAPE_21B.vocab_size, (PROMPT_TOKENS,)).tolist()
    filled_cache(decoder, 8)
    ours(decoder, ids)
    runs = []
    for _ in range(args.runs):
        runs.append((llama(args.llama_bench, args.gguf), ours(decoder, ids)))
        report(event="run", llama=runs[-1][0], ours=runs[-1][1])
    for what in ("prefill", "decode"):
        theirs = statistics.median(run[0][what] for run in runs)
        mine = statistics.median(run[1][what] for run in runs)
        report(
            event=what, llama=round(theirs, 1), ours=round(mine, 1), ratio=round(mine / theirs, 3)
        )
    report(event="first token", ms=round(first_token_ms(decoder, 32), 2))
    report(event="peak", GB=round(torch.cuda.max_memory_allocated() / 1e9, 3))


if __name__ == "__main__":
    main()
