"""Decode and prefill on the CPU against llama.cpp on the same bits, in turns.

    python -m tests.bench.cpu_vs_llama --llama-bench PATH [--layers 14] [--experts 64] [--quant nf4]

Both run random weights of the 21B shape with that many layers, ours in nf4 (or int8), theirs in
Q4_0 (or Q8_0) from a GGUF that this script writes with the ``gguf`` package. They take turns, so
that a machine whose speed drifts treats both alike; the ratio is of medians. A plain read of memory
on the same threads stands beside each round. With fewer stored experts (``--experts 32``), still 6
of them for a token, all 28 layers fit twice into 24 GB: a decoded token reads as many bytes, but a
prompt's tokens share fewer experts, so quote prefill with all 64. llama.cpp's source is inside the
``llama-cpp-python`` source package; build its target llama-bench.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as cli.py does, before torch is imported

import torch

from erniechat.bench import _model, _run
from erniechat.model.config import ModelConfig
from erniechat.model.families import FAMILIES
from erniechat.model.synthetic import with_layers
from erniechat.options import BenchOptions, LoadOptions
from quant.kernels.native import read_probe, set_num_threads

PEER_TYPE = {"nf4": "Q4_0", "int8": "Q8_0"}
PROBE_NBYTES = 1 << 30
Shapes = Iterator[tuple[str, tuple[int, ...], bool]]


def gguf_tensors(config: ModelConfig) -> Shapes:
    """Name, shape and whether it is quantized, of every tensor in llama.cpp's spelling."""
    hidden, head = config.hidden_size, config.head_dim
    query, key = config.num_attention_heads * head, config.num_key_value_heads * head
    yield "token_embd.weight", (config.vocab_size, hidden), True
    yield "output_norm.weight", (hidden,), False
    for i in range(config.num_hidden_layers):
        at = f"blk.{i}."
        yield at + "attn_norm.weight", (hidden,), False
        yield at + "ffn_norm.weight", (hidden,), False
        yield at + "attn_q.weight", (query, hidden), True
        yield at + "attn_k.weight", (key, hidden), True
        yield at + "attn_v.weight", (key, hidden), True
        yield at + "attn_output.weight", (hidden, query), True
        if i not in config.moe_layers:
            yield from _mlp(at + "ffn_{}.weight", (config.intermediate_size, hidden))
            continue
        experts, width = config.num_experts, config.moe_intermediate_size
        yield at + "ffn_gate_inp.weight", (experts, hidden), False
        yield at + "exp_probs_b.bias", (experts,), False
        yield from _mlp(at + "ffn_{}_exps.weight", (experts, width, hidden))
        yield from _mlp(at + "ffn_{}_shexp.weight", (config.num_shared_experts * width, hidden))


def _mlp(name: str, shape: tuple[int, ...]) -> Shapes:
    *outer, width, hidden = shape
    for matrix in ("gate", "up"):
        yield name.format(matrix), (*outer, width, hidden), True
    yield name.format("down"), (*outer, hidden, width), True


def write_gguf(path: Path, config: ModelConfig, type_name: str) -> None:
    """A GGUF of random quantized weights."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "ernie4_5-moe")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.num_shared_experts)
    shared_width = config.num_shared_experts * config.moe_intermediate_size
    writer.add_expert_shared_feed_forward_length(shared_width)
    writer.add_interleave_moe_layer_step(1)
    writer.add_leading_dense_block_count(1)
    writer.add_tokenizer_model("no_vocab")
    kind = gguf.GGMLQuantizationType[type_name]
    block_size, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    largest_code = 7.5 if type_name == "Q4_0" else 127
    scale = np.frombuffer(np.float16(0.02 * 3**0.5 / largest_code).tobytes(), np.uint8)
    for name, shape, quantized in gguf_tensors(config):
        if not quantized:
            ones = np.ones(shape, np.float32)
            router = generator.normal(0, 0.02, shape).astype(np.float32)
            writer.add_tensor(name, router if "gate_inp" in name else ones * ("norm" in name))
            continue
        num_blocks = int(np.prod(shape)) // block_size
        raw = generator.integers(0, 256, (num_blocks, block_nbytes), dtype=np.uint8)
        raw[:, :2] = scale
        raw = raw.reshape(*shape[:-1], shape[-1] // block_size * block_nbytes)
        writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer(program: Path, model: Path, bench: BenchOptions, threads: int) -> dict[str, float]:
    """One run of llama-bench: tokens a second of prefill and decode."""
    sizes = ["-p", str(bench.prompt_tokens), "-n", str(bench.new_tokens)]
    command = [str(program), "-m", str(model), *sizes, "-t", str(threads), "-r", "1", "-o", "json"]
    out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    rows = json.loads(out)
    return {"prefill" if row["n_prompt"] else "decode": row["avg_ts"] for row in rows}


def probe(buffer: torch.Tensor) -> float:
    """Gigabytes a second of a plain read."""
    began = time.perf_counter()
    read_probe(buffer)
    return buffer.nbytes / (time.perf_counter() - began) / 1e9


def main() -> None:
    """Print both, round by round, and the ratios of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="written here if it is not there yet")
    parser.add_argument("--layers", type=int, default=14, help="28 is the whole model")
    parser.add_argument("--experts", type=int, default=64, help="stored; a token uses 6")
    parser.add_argument("--quant", choices=list(PEER_TYPE), default="nf4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=48)
    args = parser.parse_args()
    family = FAMILIES["ernie4_5_moe"]
    raw = {"model_type": "ernie4_5_moe", "num_hidden_layers": args.layers}
    raw["moe_num_experts"] = args.experts
    config = with_layers(family.parse_config(raw), args.layers)
    set_num_threads(args.threads)
    bench = BenchOptions(prompt_tokens=args.p, new_tokens=args.n)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.gguf or folder / "model.gguf"
        if not model.exists():
            write_gguf(model, config, PEER_TYPE[args.quant])
        (folder / "config.json").write_text(json.dumps(raw))
        load = LoadOptions(quant=args.quant, threads=args.threads)
        decoder, _, nbytes = _model(load, BenchOptions(synthetic=name))
        buffer = torch.ones(PROBE_NBYTES, dtype=torch.uint8)
        peer_name = PEER_TYPE[args.quant]
        sys.stdout.write(
            f"{args.layers} layers, {args.experts} experts, {args.threads} threads: "
            f"ours {args.quant} {nbytes / 1e9:.2f} GB, "
            f"llama.cpp {peer_name} {model.stat().st_size / 1e9:.2f} GB\n"
        )
        rounds = []
        for idx in range(args.rounds + 1):  # the first is not counted
            theirs = peer(args.llama_bench, model, bench, args.threads)
            bandwidth = probe(buffer)
            ours = _run(decoder, bench)
            if idx:
                rounds.append((ours, theirs))
                sys.stdout.write(
                    f"  read {bandwidth:5.1f} GB/s · decode {ours['decode']:6.2f} / "
                    f"{theirs['decode']:6.2f} · prefill {ours['prefill']:7.1f} / "
                    f"{theirs['prefill']:7.1f} tok/s\n"
                )
                sys.stdout.flush()
    for stage in ("decode", "prefill"):
        ours_median = statistics.median(o[stage] for o, _ in rounds)
        theirs_median = statistics.median(t[stage] for _, t in rounds)
        sys.stdout.write(
            f"{stage}: {ours_median:.2f} against {theirs_median:.2f} tok/s, "
            f"{ours_median / theirs_median:.2f}×\n"
        )


if __name__ == "__main__":
    main()
