"""The built-in model on a GPU against the reference kernels: greedy text, margins, perplexity.

    python -m tests.bench.gpu_mini [--quant nf4 int8 bf16] [--limit 6]

Where a text parts from the reference's, a margin says by how much its logits preferred their own
token to ours. Perplexity is over held-out text, against the reference kernels in float32, and its
change has a standard error: near-ties of experts, which any rounding decides, make most of it.
"""

import argparse
import json
import math
import sys
from dataclasses import replace

import torch
from torch import Tensor

from erniechat.engine import Engine
from erniechat.loader import load_engine
from erniechat.mini.scoring import eval_names, heldout_documents, load_eval, render_prompt
from erniechat.options import LoadOptions

MAX_NEW_TOKENS = 120


def greedy(engine: Engine, ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    """Token ids after a prompt; the captured graphs serve where the engine has some."""
    num_tokens = engine.prompts.tokenizer.num_tokens
    kv_cache = engine.decoder.new_kv_cache(len(ids) + MAX_NEW_TOKENS)
    logits = engine.decoder.forward(ids, kv_cache)
    found: list[int] = []
    for _ in range(MAX_NEW_TOKENS):
        found.append(int(logits[0, :num_tokens].argmax()))
        if found[-1] in stop_ids:
            break
        logits = engine.decoder.forward([found[-1]], kv_cache)
    return found


def disagreement(engine: Engine, ids: list[int], found: list[int]) -> float | None:
    """By how much an engine's logits prefer another token where it first would have parted.

    One pass over prompt and reply: their greedy texts are the same if and only if the likeliest
    token is the found one everywhere. None if it is.
    """
    kv_cache = engine.decoder.new_kv_cache(len(ids) + len(found))
    logits = engine.decoder.forward(ids + found[:-1], kv_cache, all_logits=True)
    logits = logits[len(ids) - 1 :, : engine.prompts.tokenizer.num_tokens]
    chosen = logits.gather(1, torch.tensor(found, device=logits.device)[:, None])[:, 0]
    lost = (logits.amax(1) - chosen).tolist()
    return next((loss for loss in lost if loss > 0), None)


def losses(engine: Engine, documents: list[str], *, by_step: bool = False) -> Tensor:
    """Cross entropies of all tokens of all documents but each first; float64.

    By the captured step one token after the other, else layer by layer as all logits need, where
    the residual stream is of the engine's dtype.
    """
    found = []
    decoder = engine.decoder
    for document in documents:
        ids = engine.prompts.tokenizer.encode(document)
        kv_cache = decoder.new_kv_cache(len(ids))
        if by_step:
            rows = [decoder.forward([token_id], kv_cache).clone() for token_id in ids[:-1]]
            logits = torch.cat(rows)
        else:
            logits = decoder.forward(ids[:-1], kv_cache, all_logits=True)
        logits = logits[:, : engine.prompts.tokenizer.num_tokens].double()
        target = torch.tensor(ids[1:], device=logits.device)
        found.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    return torch.cat(found).cpu()


def compared(mine: Tensor, reference: Tensor) -> dict[str, float]:
    """Perplexity, and by how many percent it is another one, with the standard error."""
    difference = mine - reference
    error = float(difference.std()) / len(difference) ** 0.5
    return {
        "tokens": len(mine),
        "perplexity": round(float(mine.mean().exp()), 3),
        "percent": round(100 * math.expm1(float(difference.mean())), 3),
        "error": round(100 * error, 3),
    }


def replies(mine: Engine, reference: Engine, limit: int) -> tuple[list[float], int]:
    """Margins of the greedy replies that part from the reference's, and how many there are."""
    stop_ids = mine._stop_ids
    margins, total = [], 0
    for name in eval_names():
        for row in load_eval(name)[:limit]:
            prompt = render_prompt(row["messages"], row["tools"], row["thinking"])  # type: ignore[arg-type]
            ids = mine.prompts.tokenizer.encode(prompt)
            total += 1
            lost = disagreement(reference, ids, greedy(mine, ids, stop_ids))
            if lost is not None:
                margins.append(round(lost, 3))
    return margins, total


def report(**row: object) -> None:
    """One JSON object."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print JSON objects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", nargs="*", default=["nf4", "int8", "bf16"])
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--device", default="cuda", help="cpu only shows that this program works")
    parser.add_argument("--lines", type=int, default=0, help="of held-out text; 0: all")
    args = parser.parse_args()
    documents = heldout_documents(num_lines=args.lines)
    for quant in args.quant:
        options = LoadOptions(quant=quant, device=args.device, copy=False)
        mine = load_engine(replace(options, kernels="native" if args.device == "cpu" else "triton"))
        reference = load_engine(replace(options, kernels="reference"))
        margins, total = replies(mine, reference, args.limit)
        report(quant=quant, prompts=total, same=total - len(margins), margins=sorted(margins))
        exact = load_engine(replace(options, kernels="reference", dtype="float32"))
        base = losses(exact, documents)
        report(quant=quant, kernels="reference in float32", **compared(base, base))
        for name, found in (
            ("the step", losses(mine, documents, by_step=True)),
            ("layer by layer", losses(mine, documents)),
            ("reference", losses(reference, documents)),
        ):
            report(quant=quant, kernels=name, **compared(found, base))


if __name__ == "__main__":
    main()
