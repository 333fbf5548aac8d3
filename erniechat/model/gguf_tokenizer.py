"""The tokenizer inside a GGUF file, built so that it splits text as its tokenizer.json does.

Three ways of storing one are read: a whole tokenizer.json; "llama", pieces with scores as
SentencePiece has them, which is what ERNIE 4.5 files hold; "gpt2", byte-level pieces with merges.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import tokenizers

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.family import shown
from erniechat.model.gguf_file import Value

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
SPECIAL = (UNKNOWN, CONTROL)
WHOLE = "tokenizer.huggingface.json"
AT = "tokenizer.ggml."
SPACE = "▁"
# The published vocabularies: 32 letters in the longest token, 0.5 million in all, 182,926 merges.
MAX_TOKEN_CHARS = 128  # every split of a token is looked at
MAX_VOCABULARY_CHARS = 4 << 20
MAX_MERGES = 1 << 20
DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # of "llama", where the file has none
# Names of special tokens in chat templates, and in the metadata (with ggml's spelling).
SPECIAL_NAMES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "cls": "cls", "mask": "mask",
}  # fmt: skip  # a list to read


class GgufVocabulary:
    """The part of a file's metadata that is about text.

    Args:
        name: The file's, for messages.
        metadata: The file's.

    Attributes:
        tokens: The text of each id.

    Raises:
        CheckpointError: If what belongs to it is missing or contradicts itself.
    """

    def __init__(self, name: str, metadata: Mapping[str, Value]) -> None:
        self._name = name
        self._metadata = metadata
        self.kind = metadata.get(AT + "model")
        self.tokens: list[str] = self._list("tokens", str)
        self._types: list[int] = self._list("token_type", int) or [NORMAL] * len(self.tokens)
        if not self.tokens:
            self._refuse(f"{AT}tokens is missing")
        lengths = [len(token) for token in self.tokens]
        if max(lengths) > MAX_TOKEN_CHARS or sum(lengths) > MAX_VOCABULARY_CHARS:
            self._refuse(
                f"tokens may have {MAX_TOKEN_CHARS} letters and {MAX_VOCABULARY_CHARS:,} together, "
                f"these have up to {max(lengths):,} and {sum(lengths):,}"
            )
        if len(self._types) != len(self.tokens):
            self._refuse(f"{len(self.tokens)} tokens have {len(self._types)} types")

    def special_tokens(self) -> dict[str, str]:
        """The text of bos_token, eos_token and so on, as chat templates name them."""
        ids = {name: self.token_id(stored) for name, stored in SPECIAL_NAMES.items()}
        return {f"{name}_token": self.tokens[i] for name, i in ids.items() if i is not None}

    def token_id(self, name: str) -> int | None:
        """The id that the metadata gives for eos, eot, …; None if it has none.

        Raises:
            CheckpointError: If there is no such token.
        """
        default = DEFAULT_IDS.get(name) if self.kind == "llama" else None
        found = self._metadata.get(f"{AT}{name}_token_id", default)
        if found is None:
            return None
        if type(found) is not int or not 0 <= found < len(self.tokens):
            self._refuse(f"{AT}{name}_token_id is {shown(found)} of {len(self.tokens)} tokens")
        return found

    def build(self) -> tokenizers.Tokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: If the metadata makes none.
            UnsupportedModelError: If it is of a kind that is not read here.
        """
        whole = self._metadata.get(WHOLE)
        text = whole if isinstance(whole, str) else json.dumps(self._as_json())
        try:
            return tokenizers.Tokenizer.from_str(text)
        except Exception as exc:  # the library raises bare Exception, for damage of any kind
            self._refuse(" ".join(str(exc).split())[:200])

    def _as_json(self) -> dict[str, Any]:
        vocab = {
            text: i
            for i, (text, kind) in enumerate(zip(self.tokens, self._types, strict=True))
            if kind != UNUSED  # [PAD7] and the like, rows of the embedding that mean nothing
        }
        if len(vocab) + self._types.count(UNUSED) != len(self.tokens):
            self._refuse("two tokens have one text")
        if self.kind == "llama":
            steps = self._sentencepiece_steps()
            merges = self._stored_merges(vocab) or self._merges_by_score(vocab)
        elif self.kind == "gpt2":
            steps, merges = self._byte_level_steps(), self._stored_merges(vocab)
        else:
            raise UnsupportedModelError(
                f"{self._name}: {AT}model {shown(self.kind)} is not supported",
                "llama and gpt2 are, and ERNIE 4.5 has llama",
            )
        unknown = self.token_id("unknown")
        model = {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "unk_token": None if unknown is None else self.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": self.kind == "llama",
        }
        return {"version": "1.0", "added_tokens": self._added(), "model": model, **steps}

    def _added(self) -> list[dict[str, Any]]:
        """The tokens that cut a text before anything else looks at it."""
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [
            {"id": i, "content": text, "special": kind in SPECIAL, **plain}
            for i, (text, kind) in enumerate(zip(self.tokens, self._types, strict=True))
            if kind in (*SPECIAL, USER_DEFINED) and text
        ]

    def _sentencepiece_steps(self) -> dict[str, Any]:
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
        normalizers = [replace]
        if self._metadata.get(AT + "add_space_prefix", True):
            normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "decoder": {"type": "Sequence", "decoders": decoders},
        }

    def _byte_level_steps(self) -> dict[str, Any]:
        split = self._metadata.get(AT + "pre")
        if split != "gpt-2":
            raise UnsupportedModelError(
                f"{self._name}: {AT}pre {shown(split)} is not supported, only gpt-2 is",
                "convert the model with llama.cpp's own converter, which gives ERNIE 4.5 llama",
            )
        step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        return {"pre_tokenizer": step | {"use_regex": True}, "decoder": step}

    def _stored_merges(self, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
        """The merges of the file in their order; none if it has none."""
        merges = []
        for text in self._list("merges", str):
            left, _, right = text.partition(" ")
            if left not in vocab or right not in vocab or left + right not in vocab:
                self._refuse(f"the merge {shown(text)} is not of its tokens")
            merges.append((left, right))
        return merges

    def _merges_by_score(self, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
        """Every way to make a piece of two others, by descending score of the piece.

        Source: transformers, convert_slow_tokenizer.generate_merges, which made the tokenizer.json
        of the published models from the same scores.
        """
        scores: list[float] = self._list("scores", float)
        if len(scores) != len(self.tokens):
            self._refuse(f"{len(self.tokens)} tokens have {len(scores)} scores")
        merges = []
        for text, i in vocab.items():
            if self._types[i] != NORMAL:
                continue
            merges += [
                (scores[i], at, len(text) - at, text[:at], text[at:])
                for at in range(1, len(text))
                if text[:at] in vocab and text[at:] in vocab
            ]
            if len(merges) > MAX_MERGES:
                self._refuse(f"its pieces make more than {MAX_MERGES:,} merges")
        merges.sort(key=lambda merge: merge[:3], reverse=True)
        return [merge[3:] for merge in merges]

    def _list(self, key: str, kind: type) -> list[Any]:
        """A list of the metadata, empty if it is not there."""
        value = self._metadata.get(AT + key, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            self._refuse(f"{AT}{key} must be a list of {kind.__name__}")
        return value

    def _refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(
            f"{self._name} has no sound tokenizer ({reason})", "fetch the file again"
        )


def chat_templates(name: str, metadata: Mapping[str, Value]) -> dict[str, str]:
    """The chat templates of a file by name, "default" first; empty if it has none.

    Raises:
        CheckpointError: If one is not text.
    """
    out: dict[str, Value] = {}
    if "tokenizer.chat_template" in metadata:
        out["default"] = metadata["tokenizer.chat_template"]
    prefix = "tokenizer.chat_template."
    out |= {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    texts = {key: value for key, value in out.items() if isinstance(value, str)}
    if len(texts) < len(out):
        raise CheckpointError(f"{name}: a chat template is not text", "fetch the file again")
    return texts


def generation_config(metadata: Mapping[str, Value], eos_ids: Sequence[int]) -> dict[str, Any]:
    """What a file says about sampling and stopping, spelled as generation_config.json has it."""
    spelled = {
        "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
        "penalty_repeat": "repetition_penalty",
    }  # fmt: skip  # a list to read
    at = "general.sampling."
    found = {ours: metadata[at + key] for key, ours in spelled.items() if at + key in metadata}
    return {**found, "eos_token_id": list(eos_ids)}
