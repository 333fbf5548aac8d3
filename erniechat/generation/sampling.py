"""From logits to one token: penalty, temperature, top-k, top-p and min-p, in this order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantError

LEAST_TEMPERATURE = 1e-30  # a smaller one is 0 in float32
SHORTLISTS = (256, 4096)  # tokens among which top-p is looked for before it is among all


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a token is chosen. The defaults change nothing: plain sampling at temperature 1.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Keep the K likeliest; 0 keeps all.
        top_p: Keep the likeliest tokens up to the first whose running sum reaches P.
        min_p: Drop tokens less likely than this share of the likeliest.
        repetition_penalty: Logits of tokens seen are divided by it if positive, else multiplied.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def probabilities(self, logits: Tensor, seen_ids: Sequence[int] = ()) -> Tensor:
        """The distribution that a token is drawn from.

        The order is that of transformers: penalty, temperature, top-k, top-p, min-p.

        Args:
            logits: float32 ``[num_tokens]``, one for each token that may be sampled.
            seen_ids: The prompt and the reply so far, for the penalty.

        Returns:
            float32 ``[num_tokens]``, summing to 1.

        Raises:
            QuantError: If the largest logit is no finite number.
        """
        ids, probabilities = self._candidates(self._penalize(logits, seen_ids))
        return torch.zeros_like(logits).index_copy(0, ids, probabilities)

    def choose(self, logits: Tensor, seen_ids: Sequence[int], generator: torch.Generator) -> int:
        """Draw one token id; see `probabilities`."""
        ids, probabilities = self._candidates(self._penalize(logits, seen_ids))
        if len(ids) == 1:
            return int(ids)
        return int(ids[_draw(probabilities.cpu(), generator)])

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that may be drawn, and the probability of each."""
        top, likeliest = logits.max(0)
        if not math.isfinite(top):
            raise QuantError(
                f"the largest of the model's outputs is {float(top)}; the weights may be damaged"
            )
        if self.temperature == 0:
            return likeliest[None], torch.ones_like(top)[None]
        logits = (logits - top) / max(self.temperature, LEAST_TEMPERATURE)
        ids = torch.arange(len(logits), device=logits.device)
        if 0 < self.top_k < len(logits):
            ids = (logits >= logits.topk(self.top_k).values[-1]).nonzero().flatten()
            logits = logits[ids]
        if self.top_p < 1:
            kept = _nucleus(logits, self.top_p)
            ids, logits = ids[kept], logits[kept]
        probabilities = logits.softmax(-1)
        if self.min_p > 0:
            probabilities = probabilities.masked_fill(
                probabilities < self.min_p * probabilities.max(), 0.0
            )
            probabilities = probabilities / probabilities.sum()
        return ids, probabilities

    def _penalize(self, logits: Tensor, seen_ids: Sequence[int]) -> Tensor:
        if self.repetition_penalty == 1 or not seen_ids:
            return logits
        ids = torch.tensor(sorted(set(seen_ids)), dtype=torch.int64, device=logits.device)
        ids = ids[ids < len(logits)]
        seen = logits[ids]
        penalty = self.repetition_penalty
        return logits.index_copy(0, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def _draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """Index of one of them, by where a random number falls in their running sum.

    torch.multinomial draws a number for each of them, which takes 2 ms over a vocabulary.
    """
    sums = probabilities.double().cumsum(0)
    point = torch.rand(1, dtype=torch.float64, generator=generator) * sums[-1]
    index = int(torch.searchsorted(sums, point, right=True))
    return index if index < len(sums) else int(probabilities.argmax())  # if rounded up


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Ids of the likeliest tokens up to the first whose running sum reaches top_p.

    Of equal ones the lower id comes first.
    """
    probabilities = logits.softmax(-1)
    ids = _shortlist(logits, probabilities, top_p)
    ids = ids[logits[ids].sort(descending=True, stable=True).indices]
    before = probabilities[ids].cumsum(-1) - probabilities[ids]
    return ids[: max(int((before < top_p).sum()), 1)]


def _shortlist(logits: Tensor, probabilities: Tensor, top_p: float) -> Tensor:
    """Ids of the likeliest tokens, in ascending order, at least as many as sum to top_p.

    To sort all 101,304 takes 8 ms. Those as likely as a list's last are not on it: some of them
    may have been left out.
    """
    for most in SHORTLISTS:
        if most < len(logits):
            ids = (logits > logits.topk(most).values[-1]).nonzero().flatten()
            if probabilities[ids].sum() >= top_p:
                return ids
    return torch.arange(len(logits), device=logits.device)
