"""Tokens a second against GPU memory, ours and llama.cpp's, as JSON lines and as a picture.

    python -m tests.bench.gpu_memory_curve --llama-bench PATH --gguf Q4_0.gguf > curve.jsonl
    python -m tests.bench.gpu_memory_curve --draw curve.jsonl curve.svg

At the 21B shape with random weights and uniform routing, the worst case for a hot set: ours with
so many experts on the GPU, llama.cpp with the experts of so many layers left on the CPU. Memory is
what torch holds, or the weights that llama.cpp puts there; both without the driver's context.
"""

import argparse
import gc
import json
import sys
from pathlib import Path

OURS = (0, 216, 432, 648, 864, 1080, 1296, 1512)
LLAMA = (27, 23, 19, 15, 11, 7, 3, 0)
# Bytes that llama.cpp puts on the GPU of a layer's experts and of everything else, in Q4_0.
LLAMA_LAYER_NBYTES = 64 * 3 * 1536 * 2560 * 18 // 32
LLAMA_FIXED_NBYTES = 12_292_548_672 - 27 * LLAMA_LAYER_NBYTES


def measure(llama_bench: str, gguf: str) -> None:
    """One JSON object a point."""
    import torch

    from tests.bench.gpu_step import build as build_resident
    from tests.bench.gpu_step import prefill_seconds
    from tests.bench.gpu_step import time_decode as time_resident
    from tests.bench.gpu_tiers import build, time_decode
    from tests.bench.tiers_vs_llama import llama

    def point(**row: object) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    for num_resident in OURS:
        gc.collect()  # graphs and what they hold refer to each other
        before = torch.cuda.memory_allocated()
        decoder = build("nf4", num_resident)
        time_decode(decoder, 5)
        speed = 1e3 / time_decode(decoder, 50)
        prefill = 512 / prefill_seconds(decoder, 512)
        held = (torch.cuda.memory_allocated() - before) / 1e9
        point(engine="erniechat", experts=num_resident, GB=held, decode=speed, prefill=prefill)
        decoder.experts.close()
        del decoder
    gc.collect()
    before = torch.cuda.memory_allocated()
    decoder = build_resident("nf4")
    speed = 1e3 / time_resident(decoder, 512)
    held = (torch.cuda.memory_allocated() - before) / 1e9
    point(engine="erniechat", experts=1728, GB=held, decode=speed)
    del decoder
    torch.cuda.empty_cache()
    for num_cpu_layers in LLAMA:
        found = llama(llama_bench, gguf, num_cpu_layers, 16)
        on_gpu = 27 - max(0, num_cpu_layers - 1)  # the first layer is dense
        held = (LLAMA_FIXED_NBYTES + on_gpu * LLAMA_LAYER_NBYTES) / 1e9
        point(engine="llama.cpp", ncmoe=num_cpu_layers, GB=held, **found)


def draw(source: Path, target: Path) -> None:
    """A picture of decode speeds, from the lines of `measure`."""
    rows = [json.loads(line) for line in source.read_text().splitlines() if "engine" in line]
    width, height, left, bottom, top = 720, 420, 64, 52, 24
    most = 900.0

    def x(gigabytes: float) -> float:
        return left + gigabytes / 14 * (width - left - 20)

    def y(speed: float) -> float:
        return height - bottom - speed / most * (height - bottom - top)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for speed in range(0, int(most) + 1, 100):
        out.append(
            f'<line x1="{left}" x2="{width - 20}" y1="{y(speed):.1f}" y2="{y(speed):.1f}" '
            f'stroke="#ddd"/><text x="{left - 8}" y="{y(speed) + 4:.1f}" '
            f'text-anchor="end">{speed}</text>'
        )
    for gigabytes in range(0, 15, 2):
        out.append(
            f'<text x="{x(gigabytes):.1f}" y="{height - bottom + 20}" '
            f'text-anchor="middle">{gigabytes}</text>'
        )
    out.append(
        f'<text x="{(left + width) / 2}" y="{height - 12}" text-anchor="middle">'
        "GPU memory of the weights, GB</text>"
        f'<text x="16" y="{height / 2}" transform="rotate(-90 16 {height / 2})" '
        'text-anchor="middle">decode, tok/s</text>'
    )
    for engine, color, at in (("erniechat", "#0a58ca", 0), ("llama.cpp", "#b02a37", 1)):
        points = sorted((row["GB"], row["decode"]) for row in rows if row["engine"] == engine)
        line = " ".join(f"{x(gb):.1f},{y(speed):.1f}" for gb, speed in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        for gb, speed in points:
            out.append(
                f'<circle cx="{x(gb):.1f}" cy="{y(speed):.1f}" r="3.5" fill="{color}">'
                f"<title>{engine}: {gb:.1f} GB, {speed:.0f} tok/s</title></circle>"
            )
        out.append(f'<text x="{left + 24}" y="{48 + 22 * at}" fill="{color}">{engine}</text>')
    target.write_text("\n".join([*out, "</svg>", ""]))


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench")
    parser.add_argument("--gguf")
    parser.add_argument("--draw", nargs=2, metavar=("LINES", "PICTURE"))
    args = parser.parse_args()
    if args.draw:
        draw(Path(args.draw[0]), Path(args.draw[1]))
    elif not (args.llama_bench and args.gguf):  # or its part would fail after all of ours
        parser.error("measuring needs --llama-bench and --gguf")
    else:
        measure(args.llama_bench, args.gguf)


if __name__ == "__main__":
    main()
