"""A prompt's chunk through one layer whose experts are partly on disk.

What is in RAM runs first while the rest is read, and while the last ones run the next layer's are
on their way, so that neither the disk nor the CPU waits for the other. In whatever order experts
run, a token's results are added in the order of their ids: they are the same bit for bit.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from quant.experts.placement import ExpertKey
from quant.kernels.base import ExpertWeights, KernelBackend

MAX_STAGED = 16  # experts read and not yet run: what a disk brings while a layer attends
MAX_GROUP = 8  # experts of one call; between two calls what has run makes place for the next
MAX_ROWS = 1024  # of one call: where a chunk's tokens all choose alike, its rows take their place
CERTAIN_SHARE = 0.9  # of a layer's experts used: then the next layer's are taken to be used too


class Shelf(Protocol):
    """Experts in RAM, and the way there from the disk."""

    num_slots: int

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether an expert is in RAM or on its way."""
        ...

    def is_here(self, key: ExpertKey) -> bool:
        """Whether an expert can be taken without waiting."""
        ...

    def fetch(self, key: ExpertKey, kept: Collection[ExpertKey]) -> bool:
        """Begin to read an expert in the place of one not kept; False if there is none."""
        ...

    def fetch_guess(self, key: ExpertKey, kept: Collection[ExpertKey]) -> bool:
        """`fetch`, but nobody who is used more leaves for it."""
        ...

    def take(self, key: ExpertKey) -> ExpertWeights:
        """An expert that was fetched, once it is here."""
        ...


def run_layer(
    shelf: Shelf,
    backend: KernelBackend,
    layer_idx: int,
    hidden_states: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    later: Sequence[ExpertKey],
) -> tuple[Tensor, list[ExpertKey]]:
    """The weighted sum of each token's experts; see `ExpertStore.forward`.

    Beside the activations it holds float32 ``[num_tokens, num_experts_per_tok, hidden_size]``,
    and inputs and results of MAX_ROWS rows, or of one expert's tokens if these are more.

    Args:
        shelf: Has the experts.
        backend: Runs them.
        layer_idx: Index of the layer.
        hidden_states: ``[num_tokens, hidden_size]``.
        topk_ids: int64 ``[num_tokens, num_experts_per_tok]``.
        topk_weights: float32 of that shape.
        later: Experts of the next layer to read once all of this one are on their way.

    Returns:
        The sum in the dtype of hidden_states, and those of later that are on their way.

    Raises:
        QuantError: If the disk cannot be read.
    """
    rows = hidden_states.float()
    pairs = _Pairs(topk_ids, topk_weights)
    results = torch.empty(*topk_ids.shape, rows.shape[1])
    reads = _Reads(shelf, [ExpertKey(layer_idx, expert_idx) for expert_idx in pairs.used], later)
    while reads.waiting:
        group = _together(reads.next_group(), pairs)
        experts = [shelf.take(key) for key in group]
        reads.top_up(group)
        pairs.run(backend, rows, [key.expert_idx for key in group], experts, results)
        reads.done(group)
    out = results[:, 0].clone()
    for place in range(1, topk_ids.shape[1]):
        out += results[:, place]
    return out.to(hidden_states.dtype), reads.guessed


def _together(group: Sequence[ExpertKey], pairs: "_Pairs") -> list[ExpertKey]:
    """The first experts of a group, as many as may run in one call."""
    some, num_rows = [group[0]], pairs.num_rows(group[0].expert_idx)
    for key in group[1:]:
        num_rows += pairs.num_rows(key.expert_idx)
        if num_rows > MAX_ROWS:
            break
        some.append(key)
    return some


class _Reads:
    """Which of a layer's experts are still to run, and which are on their way.

    Args:
        shelf: Has the experts.
        used: That must run.
        later: That may be read once all of these are on their way.

    Attributes:
        waiting: Those of used that have not run.
        guessed: Those of later that are on their way.
    """

    def __init__(self, shelf: Shelf, used: Sequence[ExpertKey], later: Sequence[ExpertKey]) -> None:
        self._shelf = shelf
        self.waiting = list(used)
        self.guessed: list[ExpertKey] = []
        self._unread = deque(key for key in used if key not in shelf)
        self._later = deque(later)
        self._staged = [key for key in used if key in shelf and not shelf.is_here(key)]

    def next_group(self) -> list[ExpertKey]:
        """Experts to run next: some that are here, else one to wait for."""
        self.top_up(())
        here = [key for key in self.waiting if self._shelf.is_here(key)]
        return here[:MAX_GROUP] or [next(key for key in self.waiting if key in self._shelf)]

    def top_up(self, taken: Collection[ExpertKey]) -> None:
        """Have as many on their way as may be, those about to run not counted.

        A cache that is full of experts to run gives no slot away: then some must run first.
        """
        num_staged = sum(key not in taken for key in self._staged)
        most = min(MAX_STAGED, self._shelf.num_slots // 2)
        while self._unread and num_staged < max(1, most):
            if not self._shelf.fetch(self._unread[0], [*self.waiting, *self.guessed]):
                return
            self._staged.append(self._unread.popleft())
            num_staged += 1
        most = min(MAX_STAGED, self._shelf.num_slots // 4)
        while self._later and not self._unread and num_staged + len(self.guessed) < most:
            if not self._shelf.fetch_guess(self._later[0], [*self.waiting, *self.guessed]):
                return
            self.guessed.append(self._later.popleft())

    def done(self, group: Collection[ExpertKey]) -> None:
        """These have run."""
        self.waiting = [key for key in self.waiting if key not in group]
        self._staged = [key for key in self._staged if key not in group]


class _Pairs:
    """The tokens of each expert, and where their results go.

    Attributes:
        used: Experts that have tokens, ascending.
    """

    def __init__(self, topk_ids: Tensor, topk_weights: Tensor) -> None:
        ids, order = topk_ids.flatten().sort(stable=True)
        sizes = torch.bincount(ids)
        self.used: list[int] = sizes.nonzero()[:, 0].tolist()
        width = topk_ids.shape[1]
        ranks = topk_ids.argsort(1).argsort(1)  # a token's results lie as their ids ascend
        tokens = order // width
        places = tokens * width + ranks.flatten()[order]
        weights = topk_weights.flatten()[order]
        begins = sizes[self.used].cumsum(0)[:-1]
        split = (part.tensor_split(begins) for part in (tokens, places, weights))
        self._of = dict(zip(self.used, zip(*split, strict=True), strict=True))

    def num_rows(self, expert_idx: int) -> int:
        """Tokens of an expert that is used."""
        return len(self._of[expert_idx][0])

    def run(
        self,
        backend: KernelBackend,
        rows: Tensor,
        expert_ids: Sequence[int],
        experts: Sequence[ExpertWeights],
        results: Tensor,
    ) -> None:
        """Write the weighted results of some experts."""
        of = [self._of[expert_idx] for expert_idx in expert_ids]
        tokens, places, weights = (torch.cat(parts) for parts in zip(*of, strict=True))
        sizes = torch.tensor([len(part[0]) for part in of])
        ids = torch.arange(len(of)).repeat_interleave(sizes)
        out = backend.routed_experts(rows[tokens], ids[:, None], weights[:, None], experts)
        results.view(-1, rows.shape[1])[places] = out
