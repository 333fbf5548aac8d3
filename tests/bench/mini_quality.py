"""What each format costs the built-in model: accuracy on its held-out sets, and perplexity.

    python -m tests.bench.mini_quality [--limit 20] [--quant bf16 int8 nf4] [--sets add dates]

Every reply goes through the whole engine, greedily. Perplexity is over the held-out dictionary
entries in documents of eight lines, as the model card has it.
"""

import argparse
import sys
import time

import torch

from erniechat.engine import Engine
from erniechat.events import TextDelta
from erniechat.loader import load_engine
from erniechat.mini.scoring import (
    correct,
    eval_names,
    heldout_documents,
    heldout_perplexity,
    load_eval,
    render_prompt,
)
from erniechat.options import LoadOptions, SamplingOptions

GREEDY = SamplingOptions(temperature=0, max_tokens=400)


def reply_to(engine: Engine, row: dict[str, object]) -> str:
    """The whole reply as text, tags included."""
    prompt = render_prompt(row["messages"], row["tools"], row["thinking"])  # type: ignore[arg-type]
    events = engine.stream_completion(prompt, GREEDY)
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def negative_log_likelihood(engine: Engine, documents: list[list[int]]) -> float:
    """Summed over all tokens of all documents but each first."""
    total = 0.0
    for ids in documents:
        kv_cache = engine.decoder.new_kv_cache(len(ids))
        logits = engine.decoder.forward(ids[:-1], kv_cache, all_logits=True)
        logits = logits[:, : engine.prompts.tokenizer.num_tokens]
        target = torch.tensor(ids[1:])
        total += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
    return total


def main() -> None:
    """Print a row for each set and a column for each format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--quant", nargs="*", default=["bf16", "int8", "nf4"])
    parser.add_argument("--sets", nargs="*", default=eval_names())
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--lines", type=int, default=400, help="of heldout.txt; 0 is all")
    args = parser.parse_args()
    engines = {
        quant: load_engine(LoadOptions(quant=quant, kernels=args.kernels, dtype=args.dtype))
        for quant in args.quant
    }
    began = time.perf_counter()
    sys.stdout.write(f"{'set':<16}{'items':>6}" + "".join(f"{q:>9}" for q in engines) + "\n")
    right = dict.fromkeys(engines, 0)
    items = 0
    for name in args.sets:
        rows = load_eval(name)[: args.limit]
        found = {q: sum(correct(r, reply_to(e, r)) for r in rows) for q, e in engines.items()}
        items += len(rows)
        for quant, count in found.items():
            right[quant] += count
        shares = "".join(f"{100 * count / len(rows):>8.1f}%" for count in found.values())
        sys.stdout.write(f"{name:<16}{len(rows):>6}{shares}\n")
        sys.stdout.flush()
    shares = "".join(f"{100 * count / items:>8.2f}%" for count in right.values())
    sys.stdout.write(f"{'all':<16}{items:>6}{shares}\n")
    documents = heldout_documents(num_lines=args.lines)
    column = ""
    for engine in engines.values():
        perplexity = heldout_perplexity(
            documents,
            engine.prompts.tokenizer.encode,
            lambda ids, engine=engine: negative_log_likelihood(engine, ids),
        )
        column += f"{perplexity.value:>9.3f}"
    sys.stdout.write(f"{'perplexity':<16}{perplexity.num_tokens:>6}{column}\n")
    sys.stdout.write(f"{time.perf_counter() - began:.0f} s\n")


if __name__ == "__main__":
    main()
