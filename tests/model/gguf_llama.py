"""Greedy replies of llama.cpp to a GGUF file of the built-in model, and how ours compare.

    python -m tests.model.gguf_llama FILE.gguf [--limit 2] [--quant bf16] [--write gguf_golden.json]

Needs the ``llama-cpp-python`` package (LLAMA_CPP_LIB_PATH names another build of its library). Both
read the same file; llama.cpp in float32 with a float32 cache and without flash attention, ours with
--quant and float32 activations. `test_gguf_golden.py` holds ours to what --write wrote.
"""

import argparse
import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

import erniechat.mini
from erniechat.chat.conversation import Message
from erniechat.loader import load_engine
from erniechat.options import LoadOptions
from tests.model.gguf_replies import reply_ids

MAX_NEW_TOKENS = 64
CONTEXT = 2048


class Llama:
    """A model in llama.cpp, one sequence, one thread, all in float32."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp does not open {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_threads = CONTEXT, CONTEXT, 1
        settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self.num_tokens = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def encode(self, text: str) -> list[int]:
        """The ids of a text whose markup is tokens; none is added."""
        raw = text.encode("utf-8")
        ids = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, True)
        return list(ids[:count])

    def reply(self, input_ids: list[int], stop_ids: set[int]) -> list[int]:
        """The likeliest token again and again, a stop token included."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        out: list[int] = []
        ids = input_ids
        while len(out) < MAX_NEW_TOKENS and not (out and out[-1] in stop_ids):
            array = (llama_cpp.llama_token * len(ids))(*ids)
            batch = llama_cpp.llama_batch_get_one(array, len(ids))
            if llama_cpp.llama_decode(self._context, batch):
                raise SystemExit("llama.cpp does not decode")
            logits = llama_cpp.llama_get_logits_ith(self._context, -1)
            ids = [int(np.ctypeslib.as_array(logits, (self.num_tokens,)).argmax())]
            out += ids
        return out


def conversations(limit: int) -> Iterator[tuple[list[Message], list[dict[str, Any]]]]:
    """The first of every evaluation set of the built-in model that hold text alone."""
    folder = Path(erniechat.mini.__file__).parent / "eval"
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines()[:limit]:
            row = json.loads(line)
            if all(message.keys() == {"role", "content"} for message in row["messages"]):
                turns = [Message(m["role"], m["content"]) for m in row["messages"]]
                yield turns, row["tools"]


def main() -> None:
    """Print how many replies are the same token for token."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int, default=2, help="conversations of each set")
    parser.add_argument("--quant", default="bf16")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    llama_cpp.llama_log_set(_ignore, ctypes.c_void_p())
    llama = Llama(args.file)
    options = LoadOptions(model=str(args.file), quant=args.quant, dtype="float32", copy=False)
    engine = load_engine(options, warn=lambda text: sys.stderr.write(f"{text}\n"))
    stop_ids = set(engine.prompts.tokenizer.turn_end_ids.values())
    rows, same_prompts, same_replies, same_tokens, num_tokens = [], 0, 0, 0, 0
    for messages, tools in conversations(args.limit):
        text = engine.render_prompt(messages, tools=tools)
        ids = llama.encode(text)
        same_prompts += ids == engine.prompts.tokenizer.encode(text)
        theirs = llama.reply(ids, stop_ids)
        ours = reply_ids(engine, ids, MAX_NEW_TOKENS, stop_ids)
        same_replies += ours == theirs
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
        same_tokens += len(theirs) if first < 0 else first
        num_tokens += len(theirs)
        rows.append({"prompt": text, "prompt_ids": ids, "reply_ids": theirs})
    sys.stdout.write(
        f"{len(rows)} conversations: {same_prompts} prompts and {same_replies} replies the same; "
        f"{same_tokens} of {num_tokens} tokens before the first difference\n"
    )
    if args.write:
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        args.write.write_text(f"[\n{lines}\n]\n", "utf-8")


@llama_cpp.llama_log_callback
def _ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None: ...


if __name__ == "__main__":
    main()
