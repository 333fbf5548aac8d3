"""A GGUF file of ERNIE 4.5 as a checkpoint: config and tensors in the hub's names.

Nothing is permuted: llama.cpp turns neighbouring pairs (its rope type NORM) of ERNIE's queries and
keys, as the hub's weights have them. Source: llama.cpp, conversion/ernie.py and
src/models/ernie4-5.cpp.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from erniechat.errors import CheckpointError, ErnieChatError, UnsupportedModelError
from erniechat.model.checkpoint import Checkpoint, Stored
from erniechat.model.families import family_of
from erniechat.model.family import shown
from erniechat.model.gguf_file import GgufEntry, GgufFile, Scalar, Value, read_gguf
from erniechat.model.gguf_tensor import PLAIN, stored
from erniechat.model.gguf_tokenizer import GgufVocabulary, chat_templates, generation_config
from erniechat.model.stored import ShardHeader

ARCHITECTURES = {"ernie4_5": "ernie4_5", "ernie4_5-moe": "ernie4_5_moe"}
SOFTMAX = 1  # llama.cpp's number of the gating function
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
MAX_PARTS = 1000
WHOLE_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(.+)")
BLOCK_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias",
    "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
}
EXPERTS = {
    "ffn_gate_exps.weight": "gate_proj",
    "ffn_up_exps.weight": "up_proj",
    "ffn_down_exps.weight": "down_proj",
}


class GgufCheckpoint(Checkpoint):
    """The config, tensors and tokenizer of a GGUF file, or of several parts of one.

    Args:
        path: The file, the first of its parts.
        heads: The beginnings of files that are not here yet, or no more, by name.

    Attributes:
        vocabulary: Its tokenizer.
        kinds: The types of its tensors that are quantized already.

    Raises:
        CheckpointError: If a file is missing, damaged or contradicts another.
        UnsupportedModelError: If it holds what this program does not run.
        UsageError: If the gguf package is not installed.
    """

    def __init__(self, path: Path, heads: Mapping[str, ShardHeader] | None = None) -> None:
        self.folder = path
        files = _read_parts(path, heads or {})
        self._metadata = files[0].metadata
        self.shards = [file.path for file in files]
        self.vocabulary = GgufVocabulary(path.name, self._metadata)
        self.config = _Hyperparameters(path.name, self._metadata).config(self.vocabulary)
        entries = [entry for file in files for entry in file.entries]
        self.kinds = {entry.kind_name for entry in entries} - set(PLAIN)
        self.tensors: list[Stored] = [
            stored(part, name) for entry in entries for name, part in self._parts(entry)
        ]

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """See `gguf_tokenizer.chat_templates`."""
        return chat_templates(self.folder.name, self._metadata)

    @property
    def generation_config(self) -> dict[str, Any]:
        """See `gguf_tokenizer.generation_config`."""
        return generation_config(self._metadata, self.config["eos_token_id"])

    def _parts(self, entry: GgufEntry) -> Iterator[tuple[str, GgufEntry]]:
        """The tensors of the hub that one of the file holds: itself, experts, or q, k and v."""
        if entry.name in WHOLE_NAMES:
            yield WHOLE_NAMES[entry.name], entry
            return
        found = BLOCK_NAME.fullmatch(entry.name)
        in_model = found and int(found[1]) < self.config["num_hidden_layers"]
        layer, name = found.groups() if found and in_model else ("", "")
        at = f"model.layers.{layer}."
        if name in BLOCK_NAMES:
            yield at + BLOCK_NAMES[name], entry
        elif name in EXPERTS and len(entry.shape) == 3:
            num_experts = self.config.get("moe_num_experts", 0)
            if entry.shape[0] != num_experts:
                raise CheckpointError(
                    f"{entry.path.name}: {entry.name} holds {entry.shape[0]} experts, the metadata "
                    f"says {num_experts}",
                    "fetch the file again",
                )
            for expert_idx in range(entry.shape[0]):
                part = entry.part(expert_idx, expert_idx + 1)
                matrix = replace(part, shape=entry.shape[1:])
                yield f"{at}mlp.experts.{expert_idx}.{EXPERTS[name]}.weight", matrix
        elif name == "attn_qkv.weight" and entry.shape[0] == sum(self._qkv_rows()):
            start = 0
            for letter, rows in zip("qkv", self._qkv_rows(), strict=True):
                yield f"{at}self_attn.{letter}_proj.weight", entry.part(start, start + rows)
                start += rows
        else:
            yield entry.name, entry  # reported as unexpected with all the others

    def _qkv_rows(self) -> tuple[int, int, int]:
        config = self.config
        key_value = config["num_key_value_heads"] * config["head_dim"]
        return config["num_attention_heads"] * config["head_dim"], key_value, key_value


def loss_of(checkpoint: Checkpoint, quant: str) -> str:
    """One line if quantizing a checkpoint's weights means to quantize them twice, else nothing."""
    if not isinstance(checkpoint, GgufCheckpoint) or not checkpoint.kinds or quant == "bf16":
        return ""
    return (
        f"{checkpoint.folder.name} is quantized already ({', '.join(sorted(checkpoint.kinds))}); "
        f"packing it again as {quant} loses a little more than the original checkpoint would"
    )


def _read_parts(path: Path, heads: Mapping[str, ShardHeader]) -> list[GgufFile]:
    """The headers of a file and of the parts that belong to it."""
    first = read_gguf(path, heads.get(path.name))
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return [first]
    named = PART.fullmatch(path.name)
    if type(count) is not int or not named or int(named[3]) != count or count > MAX_PARTS:
        raise CheckpointError(
            f"{path.name} is one of {shown(count)} parts and is not named so",
            "give the parts their names back, NAME-00001-of-00002.gguf",
        )
    if int(named[2]) != 1:
        raise CheckpointError(
            f"{path.name} is not the first of its {count} parts",
            f"name {named[1]}-00001-of-{named[3]}.gguf",
        )
    others = [path.with_name(f"{named[1]}-{i:05}-of-{named[3]}.gguf") for i in range(2, count + 1)]
    missing = [other.name for other in others if other.name not in heads and not other.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {count} parts are missing: {', '.join(missing[:3])}",
            "fetch the model again",
        )
    files = [first, *(read_gguf(other, heads.get(other.name)) for other in others)]
    names = [entry.name for file in files for entry in file.entries]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path.name}: a tensor is in two parts", "fetch the model again")
    return files


class _Hyperparameters:
    """Reads the numbers of a model's shape.

    Args:
        name: The file's, for messages.
        metadata: The file's.
    """

    def __init__(self, name: str, metadata: Mapping[str, Value]) -> None:
        self._name = name
        self._metadata = metadata
        self._arch = metadata.get("general.architecture")

    def config(self, vocabulary: GgufVocabulary) -> dict[str, Any]:
        """The config in the hub's spelling, checked as a config.json is."""
        if not isinstance(self._arch, str) or self._arch not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{self._name}: architecture {shown(self._arch)} is not supported; this program "
                f"runs {', '.join(ARCHITECTURES)}",
                "use a file of ERNIE 4.5",
            )
        num_heads = self._number("attention.head_count")
        hidden_size = self._number("embedding_length")
        per_head = hidden_size // num_heads if num_heads else 0
        eos_ids = [vocabulary.token_id(name) for name in ("eos", "eot")]
        config: dict[str, Any] = {
            "model_type": ARCHITECTURES[self._arch],
            "vocab_size": self._number("vocab_size", len(vocabulary.tokens)),
            "hidden_size": hidden_size,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._number("attention.head_count_kv", num_heads),
            "head_dim": self._number("attention.key_length", per_head),
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": self._value("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._value("rope.freq_base"),
            "eos_token_id": [i for i in eos_ids if i is not None],
        }
        if self._arch == "ernie4_5-moe":
            config |= self._moe()
        self._check(config["head_dim"])
        try:
            family_of(config).parse_config(config)
        except ErnieChatError as exc:
            text = exc.message.replace("config.json", self._name)
            raise type(exc)(text, exc.hint) from exc
        return config

    def _moe(self) -> dict[str, Any]:
        width = self._number("expert_feed_forward_length")
        shared_width = self._number("expert_shared_feed_forward_length", 0)
        return {
            "moe_num_experts": self._number("expert_count"),
            "moe_k": self._number("expert_used_count"),
            "moe_intermediate_size": width,
            "moe_num_shared_experts": self._number(
                "expert_shared_count", shared_width // width if width else 0
            ),
            "moe_layer_start_index": self._number("leading_dense_block_count", 0),
            "moe_layer_interval": self._number("interleave_moe_layer_step"),
        }

    def _check(self, head_dim: int) -> None:
        """Refuse what the metadata asks for and this program would not do."""
        wanted: dict[str, tuple[Scalar, ...]] = {
            "attention.value_length": (head_dim,),
            "rope.dimension_count": (head_dim,),
            "rope.scaling.type": ("none",),
            "expert_gating_func": (SOFTMAX,),
            "expert_weights_scale": (0.0, 1.0),
            "attention.sliding_window": (0,),
        }
        for key, values in wanted.items():
            found = self._value(key, values[0])
            if found not in values:
                raise UnsupportedModelError(
                    f"{self._name}: {self._arch}.{key} {shown(found)} is not supported, only "
                    f"{shown(values[-1])} is",
                    "use a file made by llama.cpp's converter from a published ERNIE 4.5",
                )

    def _number(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if type(value) is not int:
            self._refuse(f"{self._arch}.{key} must be a whole number, got {shown(value)}")
        return value

    def _value(self, key: str, default: Value | None = None) -> Any:
        """A value; a list of one value for all layers is that value."""
        value = self._metadata.get(f"{self._arch}.{key}", default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if value is None:
            self._refuse(f"{self._arch}.{key} is missing")
        return value

    def _refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self._name}: {reason}", "fetch the file again")
