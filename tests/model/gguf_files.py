"""GGUF files of checkpoints for tests, written as llama.cpp's converter writes ERNIE 4.5.

    python -m tests.model.gguf_files FOLDER OUT.gguf [F32|F16|BF16|Q8_0|Q4_0]

Follows llama.cpp, conversion/ernie.py and base.py, but for two things. The scores of pieces are
made from the order of tokenizer.json's merges: the converter takes them from tokenizer.model, where
they are minus that order. And ``expert_shared_feed_forward_length`` is the width of the shared
experts, where the converter writes intermediate_size divided by the key-value heads, which is the
same number for the published models only.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from erniechat.model.checkpoint import Checkpoint
from erniechat.model.gguf_checkpoint import BLOCK_NAMES, WHOLE_NAMES
from erniechat.model.stored import StoredTensor

ARCH = {"ernie4_5": "ernie4_5", "ernie4_5_moe": "ernie4_5-moe"}
HUB_TO_GGUF = {hub: name for name, hub in (WHOLE_NAMES | BLOCK_NAMES).items()}
TokenType = gguf.TokenType


def write_gguf(
    path: Path,
    folder: Path,
    kind: str = "F32",
    *,
    fused: bool = False,
    **changes: Any,
) -> Path:
    """A checkpoint folder as one GGUF file.

    Args:
        path: The file to write.
        folder: Of the checkpoint; without a tokenizer.json the tokens are t0, t1 and so on.
        kind: Type of its matrices; rows that do not fill a block are F32, as is what is no matrix.
        fused: Write queries, keys and values as one matrix, as the converter does when asked.
        changes: Metadata by key with "__" for ".", None for none: ``rope__freq_base=1e4``.
    """
    checkpoint = Checkpoint(folder)
    writer = gguf.GGUFWriter(str(path), ARCH[checkpoint.config["model_type"]])
    add_hyperparameters(writer, checkpoint.config)
    if (folder / "tokenizer.json").is_file():
        add_tokenizer(writer, folder)
    else:
        add_plain_tokenizer(writer, checkpoint.config["vocab_size"])
    for key, value in changes.items():
        _replace(writer, key.replace("__", "."), value)
    tensors = gguf_tensors(checkpoint)
    for layer_idx in range(checkpoint.config["num_hidden_layers"] if fused else 0):
        at = f"blk.{layer_idx}.attn_"
        parts = [tensors.pop(f"{at}{letter}.weight") for letter in "qkv"]
        tensors[f"{at}qkv.weight"] = np.concatenate(parts)
    for name, data in tensors.items():
        add_tensor(writer, name, data, kind)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_hyperparameters(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if config["model_type"] == "ernie4_5_moe":
        shared_width = config["moe_num_shared_experts"] * config["moe_intermediate_size"]
        writer.add_expert_count(config["moe_num_experts"])
        writer.add_expert_used_count(config["moe_k"])
        writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
        writer.add_leading_dense_block_count(config["moe_layer_start_index"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_count(config["moe_num_shared_experts"])
        writer.add_expert_shared_feed_forward_length(shared_width)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    """The vocabulary as "llama", with padding up to the embedding's rows, and the template."""
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    size = config["vocab_size"]
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores = [-10000.0] * size
    types = [TokenType.UNUSED] * size
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(raw["model"]["merges"]):
        ranks.setdefault(left + right, rank)
    for text, i in raw["model"]["vocab"].items():
        is_byte = len(text) == 6 and text.startswith("<0x")
        tokens[i], types[i] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
        scores[i] = -float(ranks.get(text, 1e6 + i))
    for token in raw["added_tokens"]:
        i, text = token["id"], token["content"]
        looks_special = token["special"] or (text.startswith("<|") and text.endswith("|>"))
        types[i] = TokenType.CONTROL if looks_special else TokenType.USER_DEFINED
        tokens[i], scores[i] = text, -1000.0
    normalizers = raw["normalizer"]["normalizers"]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_space_prefix(any(step["type"] == "Prepend" for step in normalizers))
    gguf.SpecialVocab(folder, n_vocab=size).add_to_gguf(writer, quiet=True)


def add_plain_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """Tokens t0, t1 and so on."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(size)])
    writer.add_token_scores([-float(i) for i in range(size)])


def gguf_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors in float32 by llama.cpp's names; the experts of a layer stacked."""
    out: dict[str, np.ndarray[Any, Any]] = {}
    stacks: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
    for stored in checkpoint:
        assert isinstance(stored, StoredTensor)
        data = stored.read().float().numpy()
        if ".experts." in stored.name:
            layer, expert, part = (stored.name.split(".")[i] for i in (2, 5, 6))
            name = f"blk.{layer}.ffn_{part.removesuffix('_proj')}_exps.weight"
            stacks.setdefault(name, {})[int(expert)] = data
        elif stored.name in HUB_TO_GGUF:
            out[HUB_TO_GGUF[stored.name]] = data
        elif "mtp" not in stored.name:
            layer, rest = stored.name.removeprefix("model.layers.").split(".", 1)
            name = f"blk.{layer}.{HUB_TO_GGUF[rest]}"
            out[name] = data.reshape(-1) if name.endswith(".bias") else data
    for name, experts in stacks.items():
        out[name] = np.stack([experts[i] for i in range(len(experts))])
    return out


def add_tensor(writer: gguf.GGUFWriter, name: str, data: np.ndarray[Any, Any], kind: str) -> None:
    """A matrix in a type where that type has it, everything else in F32."""
    known = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[known]
    plain = data.ndim == 1 or "ffn_gate_inp" in name or data.shape[-1] % block
    if plain or kind == "F32":
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, gguf.quantize(data, known), raw_dtype=known)


def _replace(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Change a value of the metadata or take it away."""
    values = writer.kv_data[0]
    key = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{writer.arch}.{key}"
    found = values.pop(key, None)
    if value is not None:
        kind = found.type if found else gguf.GGUFValueType.get_type(value)
        values[key] = gguf.GGUFValue(value, kind, found.sub_type if found else None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_gguf(Path(sys.argv[2]), Path(sys.argv[1]), *sys.argv[3:4])
