"""Evaluate a checkpoint with the training model: accuracy by skill, perplexity, expert load.

    python -m erniechat.mini.evaluate --out results.json
    python -m erniechat.mini.evaluate --skills add dates --limit 20
    python -m erniechat.mini.evaluate --transformers   # compare logits with transformers' class

Without --checkpoint and --eval it takes the built-in ones. What counts as right is in scoring.py.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from erniechat.mini import checkpoint_folder
from erniechat.mini.chat import render_prompt
from erniechat.mini.decoding import generate, negative_log_likelihood, new_loads, packed_logits
from erniechat.mini.hub import load_checkpoint
from erniechat.mini.model import Model
from erniechat.mini.output import report, say
from erniechat.mini.scoring import (
    EVAL_FOLDER,
    Perplexity,
    SetScore,
    correct,
    eval_names,
    expert_spread,
    heldout_documents,
    heldout_perplexity,
    load_eval,
    score_set,
)

Row = dict[str, Any]


def measure_perplexity(
    model: Model, tokenizer: Tokenizer, folder: Path | str = EVAL_FOLDER, num_lines: int = 0
) -> Perplexity:
    """The perplexity of the training model on heldout.txt."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    documents = heldout_documents(folder, num_lines)
    return heldout_perplexity(documents, encode, partial(negative_log_likelihood, model))


def compare_with_transformers(
    folder: Path | str, tokenizer: Tokenizer, rows: Sequence[Row]
) -> float:
    """Largest difference of float32 logits between the training model and transformers' class.

    Raises:
        ValueError: If transformers misses a tensor or finds one too many.
    """
    from transformers import Ernie4_5_MoeForCausalLM  # slow to import, and not always installed

    load: Any = Ernie4_5_MoeForCausalLM.from_pretrained
    theirs, info = load(folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(f"transformers and {folder} differ in their tensors: {info}")
    ours, worst = load_checkpoint(folder), 0.0
    for row in rows:
        prompt = render_prompt(row["messages"], row["tools"], row["thinking"])
        ids = tokenizer.encode(prompt + row["reference"], add_special_tokens=False).ids
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0]
        worst = max(worst, float((expected - packed_logits(ours, [ids])[0]).abs().max()))
    return worst


def _result(score: SetScore) -> dict[str, Any]:
    modes = zip(("thinking", "no_thinking"), score.num_correct, score.num_items, strict=True)
    return {
        "accuracy": score.accuracy,
        "items": sum(score.num_items),
        "exact": score.exact_share,
        **{name: [right, items] for name, right, items in modes if items},
    }


def _line(name: str, score: SetScore) -> str:
    modes = zip(("thinking", "no thinking"), score.num_correct, score.num_items, strict=True)
    shares = ", ".join(f"{mode} {right}/{items}" for mode, right, items in modes if items)
    return (
        f"{name:14s} {100 * score.accuracy:5.1f} %  ({shares}; "
        f"whole reply as the reference {100 * score.exact_share:.1f} %)"
    )


def _say_wrong(rows: Sequence[Row], replies: Sequence[str], most: int) -> None:
    wrong = [
        (row, reply) for row, reply in zip(rows, replies, strict=True) if not correct(row, reply)
    ]
    for row, reply in wrong[:most]:
        say(f"   Q: {[message['content'] for message in row['messages']][-3:]}")
        say(f"   want: {row['answer'] or row['tool_calls']}\n   got: {reply!r}")


def _load_results(loads: dict[str, Tensor]) -> dict[str, Any]:
    """Shares of the experts: over all sets by layer, and of each set over all layers."""
    total = torch.stack(list(loads.values())).sum(0)
    by_set = {
        name: (load / load.sum(1, keepdim=True)).mean(0).tolist() for name, load in loads.items()
    }
    return {"all": (total / total.sum(1, keepdim=True)).tolist(), **by_set}


def _evaluate(model: Model, tokenizer: Tokenizer, args: argparse.Namespace) -> dict[str, Any]:
    perplexity = measure_perplexity(model, tokenizer, args.eval, args.limit)
    say(f"heldout.txt: perplexity {perplexity.value:.2f} over {perplexity.num_tokens} tokens")
    results: dict[str, Any] = {
        "perplexity": perplexity.value,
        "perplexity_tokens": perplexity.num_tokens,
    }
    loads: dict[str, Tensor] = {}
    batch_size = 512 if model.embed.is_cuda else 150
    for name in args.skills or eval_names(args.eval):
        rows = load_eval(name, args.eval)[: args.limit or None]
        used = new_loads(model)
        replies = generate(model, tokenizer, rows, batch_size=batch_size, loads=used)
        score = score_set(rows, replies)
        loads[name], results[name] = used.cpu(), _result(score)
        say(_line(name, score))
        _say_wrong(rows, replies, args.wrong)
    results["load"] = _load_results(loads)
    spread = [
        f"{busiest:.2f}/{idlest:.2f}" for busiest, idlest in expert_spread(results["load"]["all"])
    ]
    say(f"expert load, busiest / idlest relative to the mean, by layer: {' '.join(spread)}")
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=str(checkpoint_folder()))
    parser.add_argument("--eval", default=str(EVAL_FOLDER))
    parser.add_argument("--out", default="", help="JSON file for the results")
    parser.add_argument("--skills", nargs="*", help="only these sets")
    parser.add_argument("--limit", type=int, default=0, help="at most so many items of each set")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong replies of each")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="default: bfloat16 on a GPU, else float32",
    )
    parser.add_argument("--transformers", action="store_true", help="only compare the logits")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = _parser().parse_args(arguments)
    tokenizer = Tokenizer.from_file(str(Path(args.checkpoint) / "tokenizer.json"))
    if args.transformers:
        names = args.skills or eval_names(args.eval)
        rows = [row for name in names for row in load_eval(name, args.eval)[:2]]
        worst = compare_with_transformers(args.checkpoint, tokenizer, rows)
        say(f"largest difference of logits: {worst}")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype or ("bfloat16" if device == "cuda" else "float32"))
    began = time.monotonic()
    results = _evaluate(load_checkpoint(args.checkpoint, dtype, device), tokenizer, args)
    report(f"{time.monotonic() - began:.0f} s")
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
