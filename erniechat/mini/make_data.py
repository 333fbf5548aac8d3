"""Write the tokenizer or the evaluation sets of the mini model, or show samples of its training.

python -m erniechat.mini.make_data tokenizer --facts facts.json --out checkpoint
python -m erniechat.mini.make_data eval --facts facts.json --out eval
python -m erniechat.mini.make_data show --facts facts.json
"""

import argparse
import random
from collections.abc import Sequence

from erniechat.mini.bpe import train_tokenizer
from erniechat.mini.chat import render_prompt, render_reply
from erniechat.mini.eval_sets import write_eval
from erniechat.mini.mixture import MIXTURE, messages_of, training_sample
from erniechat.mini.output import say
from erniechat.mini.skills.knowledge import load_facts
from erniechat.mini.skills.sample import Sample


def render_sample(sample: Sample) -> str:
    """A sample as the text of one training document."""
    if sample.plain:
        return sample.content
    reply = render_reply(sample.thoughts, sample.content, sample.tool_calls)
    return render_prompt(messages_of(sample), sample.tools) + reply


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tokenizer", "eval", "show"])
    parser.add_argument("--facts", default="facts.json")
    parser.add_argument("--out", default=".")
    parser.add_argument("--seed", type=int, help="of the samples to show; default: any")
    args = parser.parse_args(arguments)
    facts = load_facts(args.facts)
    if args.what == "tokenizer":
        num_tokens, num_merges = train_tokenizer(facts, args.out)
        say(f"{num_tokens} tokens, {num_merges} merges")
    elif args.what == "eval":
        for name, count in write_eval(facts, args.out).items():
            say(f"{name} {count}")
    else:
        rng = random.Random(args.seed)
        for name in MIXTURE:
            say(f"=== {name}\n{render_sample(training_sample(rng, facts, {name: 1}))}")


if __name__ == "__main__":
    main()
