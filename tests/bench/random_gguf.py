"""A GGUF file of the shape of ERNIE-4.5-21B-A3B with random weights, for llama.cpp's llama-bench.

    python -m tests.bench.random_gguf OUT.gguf [q4_0|q8_0]

It serves speed and memory comparisons only: the text that such a model produces means nothing.
Needs the ``gguf`` package.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np

from erniechat.model.config import ModelConfig
from erniechat.model.families import FAMILIES

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
# What a block's scale must be for weights with a standard deviation of 0.02.
SCALES = {"q4_0": 0.02 / 4.32, "q8_0": 0.02 / 73.3}
# Symmetric: with a mean, all tokens soon have the same state, and choose the same few experts.
CODES = {"q4_0": (1, 16), "q8_0": (-127, 128)}
FILE_TYPES = {"q4_0": 2, "q8_0": 7}


class RandomGguf:
    """Writes tensors made of random blocks."""

    def __init__(self, path: Path, kind: str, config: ModelConfig) -> None:
        self.writer = gguf.GGUFWriter(str(path), "ernie4_5-moe")
        self._kind, self._config = kind, config
        self._generator = np.random.default_rng(0)
        codes = self._generator.integers(*CODES[kind], size=1 << 26, dtype=np.int8)
        codes = codes.view(np.uint8)
        # In q4_0 two codes are a byte.
        self._pool = codes[::2] | codes[1::2] << 4 if kind == "q4_0" else codes

    def quantized(self, name: str, *shape: int) -> None:
        block, nbytes = gguf.GGML_QUANT_SIZES[TYPES[self._kind]]
        num_blocks = int(np.prod(shape)) // block
        offset = int(self._generator.integers(0, 1 << 20))
        raw = np.resize(self._pool[offset:], num_blocks * nbytes).reshape(num_blocks, nbytes).copy()
        scale = np.float16(SCALES[self._kind]).tobytes()
        raw[:, :2] = np.frombuffer(scale, np.uint8)
        data = raw.reshape(*shape[:-1], shape[-1] // block * nbytes)
        self.writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=TYPES[self._kind])

    def plain(self, name: str, data: np.ndarray) -> None:
        self.writer.add_tensor(name, data.astype(np.float32))

    def header(self) -> None:
        config, w = self._config, self.writer
        w.add_block_count(config.num_hidden_layers)
        w.add_context_length(config.max_position_embeddings)
        w.add_embedding_length(config.hidden_size)
        w.add_feed_forward_length(config.intermediate_size)
        w.add_head_count(config.num_attention_heads)
        w.add_head_count_kv(config.num_key_value_heads)
        w.add_layer_norm_rms_eps(config.rms_norm_eps)
        w.add_rope_freq_base(config.rope_theta)
        w.add_vocab_size(config.vocab_size)
        w.add_key_length(config.head_dim)
        w.add_value_length(config.head_dim)
        w.add_rope_dimension_count(config.head_dim)
        w.add_expert_count(config.num_experts)
        w.add_expert_used_count(config.num_experts_per_tok)
        w.add_expert_feed_forward_length(config.moe_intermediate_size)
        w.add_expert_shared_count(config.num_shared_experts)
        w.add_expert_shared_feed_forward_length(
            config.num_shared_experts * config.moe_intermediate_size
        )
        w.add_interleave_moe_layer_step(1)
        w.add_leading_dense_block_count(1)
        w.add_tokenizer_model("no_vocab")
        w.add_file_type(FILE_TYPES[self._kind])

    def layer(self, layer_idx: int) -> None:
        config, at = self._config, f"blk.{layer_idx}."
        hidden, width = config.hidden_size, config.moe_intermediate_size
        heads = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        self.plain(at + "attn_norm.weight", np.ones(hidden))
        self.plain(at + "ffn_norm.weight", np.ones(hidden))
        self.quantized(at + "attn_q.weight", heads, hidden)
        self.quantized(at + "attn_k.weight", kv, hidden)
        self.quantized(at + "attn_v.weight", kv, hidden)
        self.quantized(at + "attn_output.weight", hidden, heads)
        if layer_idx not in config.moe_layers:
            self.quantized(at + "ffn_gate.weight", config.intermediate_size, hidden)
            self.quantized(at + "ffn_up.weight", config.intermediate_size, hidden)
            self.quantized(at + "ffn_down.weight", hidden, config.intermediate_size)
            return
        experts, shared = config.num_experts, config.num_shared_experts * width
        router = self._generator.normal(size=(experts, hidden)) * 0.02
        self.plain(at + "ffn_gate_inp.weight", router)
        self.plain(at + "exp_probs_b.bias", np.zeros(experts))
        self.quantized(at + "ffn_gate_exps.weight", experts, width, hidden)
        self.quantized(at + "ffn_up_exps.weight", experts, width, hidden)
        self.quantized(at + "ffn_down_exps.weight", experts, hidden, width)
        self.quantized(at + "ffn_gate_shexp.weight", shared, hidden)
        self.quantized(at + "ffn_up_shexp.weight", shared, hidden)
        self.quantized(at + "ffn_down_shexp.weight", hidden, shared)


def write(path: Path, kind: str, config: ModelConfig) -> None:
    """Write the file.

    Args:
        path: Where.
        kind: A key of TYPES.
        config: The shape.
    """
    model = RandomGguf(path, kind, config)
    model.header()
    model.quantized("token_embd.weight", config.vocab_size, config.hidden_size)
    model.plain("output_norm.weight", np.ones(config.hidden_size))
    for layer_idx in range(config.num_hidden_layers):
        model.layer(layer_idx)
    model.writer.write_header_to_file()
    model.writer.write_kv_data_to_file()
    model.writer.write_tensors_to_file(progress=False)
    model.writer.close()


def main() -> None:
    """Write the file that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="12 GB, with q8_0 23")
    parser.add_argument("kind", nargs="?", choices=list(TYPES), default="q4_0")
    args = parser.parse_args()
    write(args.out, args.kind, FAMILIES["ernie4_5_moe"].parse_config({}))


if __name__ == "__main__":
    main()
