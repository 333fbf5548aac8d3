"""Hit rates of ways to choose the experts in fast memory, on the built-in model's real routing.

    python -m tests.bench.routing_policies [--limit 20] [--every 256]

The model answers its held-out sets greedily; the choices of every token are kept. The first half
of each set makes the profile, the second half is played set after set, as a user does who stays
with a topic. Shares are of the choices of decoded tokens; prompts only add to the counts.

  share      the share of experts that fits: what placement without counts gets
  frequency  the experts most used in the profile, unchanged
  shifted    the same from a profile of the other half of the sets only
  adaptive   from there: swaps between turns and every so many tokens, quant/experts/adaptation.py
  LRU        every miss takes the place of the expert used longest ago
  static     the best unchanged set, chosen in hindsight
  Belady     each miss may replace the expert that is used again last: the best there can be
"""

import argparse
import heapq
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erniechat.engine import Engine
from erniechat.loader import load_engine
from erniechat.mini.scoring import eval_names, load_eval
from erniechat.options import LoadOptions
from quant.experts.adaptation import AdaptationPolicy, MoveCosts, RecentCounts, plan_swaps
from quant.experts.placement import ExpertKey, Tier, plan_placement
from tests.bench.mini_quality import reply_to

# One expert of the 21B model over a bus of 25 GB/s, against reading it from RAM at 60 GB/s.
COSTS = MoveCosts(6_266_880, 25e9, 6_266_880 / 60e9, 0.0)

Choices = list[ExpertKey]


@dataclass(frozen=True, slots=True)
class Turn:
    """The choices of one reply's tokens, those of its prompt first."""

    prompt: list[Choices]
    decoded: list[Choices]

    @property
    def tokens(self) -> list[Choices]:
        """All of them in order."""
        return self.prompt + self.decoded


class Recorder:
    """Stands before a store and notes who is chosen. Args: store: The one that runs them."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.layers: list[tuple[int, Tensor]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def forward(self, layer_idx: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """See `ExpertStore.forward`."""
        self.layers.append((layer_idx, ids))
        return self._store.forward(layer_idx, x, ids, weights)  # type: ignore[attr-defined,no-any-return]


def record(engine: Engine, row: dict[str, object]) -> Turn:
    """Answer a row and give back each token's choices."""
    recorder = Recorder(engine.decoder.experts)
    engine.decoder.experts = recorder  # type: ignore[assignment]
    try:
        reply_to(engine, row)
    finally:
        engine.decoder.experts = recorder._store  # type: ignore[assignment]
    num_layers = len(engine.decoder.config.moe_layers)
    prompt: list[Choices] = []
    decoded: list[Choices] = []
    for at in range(0, len(recorder.layers), num_layers):
        step = recorder.layers[at : at + num_layers]
        num_tokens = len(step[0][1])
        rows: list[Choices] = [[] for _ in range(num_tokens)]
        for layer_idx, ids in step:
            for token, chosen in enumerate(ids.tolist()):
                rows[token] += [ExpertKey(layer_idx, expert_idx) for expert_idx in chosen]
        (decoded if num_tokens == 1 else prompt).extend(rows)
    return Turn(prompt, decoded)


def count(turns: Iterable[Turn], like: Sequence[ExpertKey]) -> dict[int, list[float]]:
    """Choices by layer and expert."""
    found = Counter(key for turn in turns for token in turn.tokens for key in token)
    layers: dict[int, list[float]] = {}
    for key in like:
        layers.setdefault(key.layer_idx, []).append(float(found[key]))
    return layers


def top(counts: dict[int, list[float]], num_slots: int) -> set[ExpertKey]:
    """The placement by frequency."""
    tiers = [Tier("fast", num_slots), Tier("slow", None)]
    return set(plan_placement(counts, 1, tiers).experts[0])


def fixed(turns: Sequence[Turn], hot: set[ExpertKey]) -> float:
    """Hit rate of an unchanged set."""
    chosen = [key for turn in turns for token in turn.decoded for key in token]
    return sum(key in hot for key in chosen) / len(chosen)


def adaptive(
    turns: Sequence[Turn], prior: dict[int, list[float]], num_prior: int, num_slots: int, every: int
) -> tuple[float, float]:
    """Hit rate with swaps, and swaps a token."""
    policy, hot = AdaptationPolicy(), top(prior, num_slots)
    recent = RecentCounts(prior, num_prior)
    totals = {layer_idx: [0.0] * len(row) for layer_idx, row in prior.items()}
    hits = chosen = swaps = tokens = 0
    for turn in turns:
        for at, token in enumerate(turn.tokens):
            for key in token:
                totals[key.layer_idx][key.expert_idx] += 1
                if at >= len(turn.prompt):
                    hits += key in hot
                    chosen += 1
            tokens += 1
            if at + 1 == len(turn.tokens) or not tokens % every:
                recent.update(totals, tokens)
                changes = plan_swaps(
                    recent.counts, recent.num_tokens, hot, num_slots, COSTS, policy
                )
                hot -= {swap.demote for swap in changes if swap.demote}
                hot |= {swap.promote for swap in changes if swap.promote}
                swaps += len(changes)
    return hits / chosen, swaps / tokens


def lru(turns: Sequence[Turn], start: set[ExpertKey], num_slots: int) -> tuple[float, float]:
    """Hit rate, and copies a token."""
    held = OrderedDict.fromkeys(sorted(start))
    hits = chosen = tokens = 0
    for turn in turns:
        for token in turn.decoded:
            tokens += 1
            for key in token:
                chosen += 1
                hits += key in held
                held[key] = None
                held.move_to_end(key)
                if len(held) > num_slots:
                    held.popitem(last=False)
    return hits / chosen, (chosen - hits) / tokens


def belady(turns: Sequence[Turn], start: set[ExpertKey], num_slots: int) -> tuple[float, float]:
    """Hit rate and copies a token if the future is known and a miss need not be kept."""
    uses = [key for turn in turns for token in turn.decoded for key in token]
    tokens = sum(len(turn.decoded) for turn in turns)
    next_use = [len(uses)] * len(uses)
    last: dict[ExpertKey, int] = {}
    for at in range(len(uses) - 1, -1, -1):
        next_use[at] = last.get(uses[at], len(uses))
        last[uses[at]] = at
    held = {key: last.get(key, len(uses)) for key in start}
    heap = [(-at, key) for key, at in held.items()]
    heapq.heapify(heap)
    hits = copies = 0
    for at, key in enumerate(uses):
        if key in held:
            hits += 1
        else:
            while heap and held.get(heap[0][1]) != -heap[0][0]:
                heapq.heappop(heap)
            if len(held) >= num_slots:
                if -heap[0][0] <= next_use[at]:
                    continue
                del held[heapq.heappop(heap)[1]]
            copies += 1
        held[key] = next_use[at]
        heapq.heappush(heap, (-next_use[at], key))
    return hits / len(uses), copies / tokens


def rows(
    profile: Sequence[Turn], half: Sequence[Turn], played: Sequence[Turn], every: int, num_all: int
) -> list[str]:
    """A line for each budget."""
    keys = sorted({key for turn in (*profile, *played) for token in turn.tokens for key in token})
    layers = {key.layer_idx for key in keys}
    per_layer = num_all // len(layers)
    keys = [ExpertKey(layer_idx, i) for layer_idx in sorted(layers) for i in range(per_layer)]
    prior, shifted, truth = count(profile, keys), count(half, keys), Counter[ExpertKey]()
    truth.update(key for turn in played for token in turn.decoded for key in token)
    hindsight = {i: [float(truth[k]) for k in keys if k.layer_idx == i] for i in sorted(layers)}
    lines = []
    for percent in (25, 50, 75):
        slots = num_all * percent // 100
        moved, swaps = adaptive(played, prior, sum(len(t.tokens) for t in profile), slots, every)
        back, back_swaps = adaptive(played, shifted, sum(len(t.tokens) for t in half), slots, every)
        recent, copies = lru(played, top(prior, slots), slots)
        best, best_copies = belady(played, top(prior, slots), slots)
        values = [
            *(fixed(played, top(prior, slots)), moved),
            *(fixed(played, top(shifted, slots)), back),
            *(recent, fixed(played, top(hindsight, slots)), best),
        ]
        shares = "".join(f"{100 * value:>11.1f}" for value in values)
        lines.append(
            f"{percent:>5} %{shares}   moves a token: {swaps:.2f} {back_swaps:.2f} {copies:.1f} "
            f"{best_copies:.1f}"
        )
    return lines


def main() -> None:
    """Print a row for each budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=20, help="items of each set")
    parser.add_argument("--every", type=int, default=64, help="tokens between looks in a turn")
    args = parser.parse_args()
    torch.manual_seed(0)
    engine = load_engine(LoadOptions(quant="nf4"))
    engine.decoder.step = None  # the native step does not tell who was chosen
    sets = [[record(engine, row) for row in load_eval(name)[: args.limit]] for name in eval_names()]
    config = engine.decoder.config
    num_all = len(config.moe_layers) * config.num_experts
    profile = [turn for turns in sets for turn in turns[::2]]
    half = [turn for turns in sets[: len(sets) // 2] for turn in turns[::2]]
    by_topic = [turn for turns in sets[len(sets) // 2 :] for turn in turns[1::2]]
    names = ("frequency", "adaptive", "shifted", "adaptive", "LRU", "static", "Belady")
    tokens = sum(len(turn.decoded) for turn in by_topic)
    sys.stdout.write(f"{tokens:,} decoded tokens of {len(by_topic)} replies\n")
    sys.stdout.write(f"{'share':>7}" + "".join(f"{name:>11}" for name in names) + "\n")
    sys.stdout.write("\n".join(rows(profile, half, by_topic, args.every, num_all)) + "\n")


if __name__ == "__main__":
    main()
