"""From logits to one token: penalty, temperature, top-k, top-p and min-p, in this order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
        """
        logits = self._penalize(logits, seen_ids)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(0, logits.argmax(keepdim=True), 1.0)
        logits = logits / self.temperature
        if 0 < self.top_k < len(logits):
            least = logits.topk(self.top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            logits = self._keep_top_p(logits)
        probabilities = logits.softmax(-1)
        if self.min_p > 0:
            probabilities = probabilities.masked_fill(
                probabilities < self.min_p * probabilities.max(), 0.0
            )
            probabilities = probabilities / probabilities.sum()
        return probabilities

    def choose(self, logits: Tensor, seen_ids: Sequence[int], generator: torch.Generator) -> int:
        """Draw one token id; see `probabilities`."""
        if self.temperature == 0:
            return int(self._penalize(logits, seen_ids).argmax())
        probabilities = self.probabilities(logits, seen_ids)
        return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))

    def _penalize(self, logits: Tensor, seen_ids: Sequence[int]) -> Tensor:
        if self.repetition_penalty == 1 or not seen_ids:
            return logits
        ids = torch.tensor(sorted(set(seen_ids)), dtype=torch.int64, device=logits.device)
        ids = ids[ids < len(logits)]
        seen = logits[ids]
        penalty = self.repetition_penalty
        return logits.index_copy(0, ids, torch.where(seen > 0, seen / penalty, seen * penalty))

    def _keep_top_p(self, logits: Tensor) -> Tensor:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the likeliest is always kept
        dropped = order[before >= self.top_p]
        return logits.index_fill(0, dropped, -torch.inf)
