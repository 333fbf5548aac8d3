"""A store whose experts are on disk, with as many in RAM as a budget allows.

Results do not depend on what is in RAM: experts are summed in the order of their ids.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.cache import ExpertCache
from quant.experts.heat import Heat
from quant.experts.placement import ExpertKey
from quant.experts.prompt_layer import CERTAIN_SHARE, run_layer
from quant.experts.store import TierUse
from quant.kernels.base import ExpertWeights, KernelBackend

HALF_LIFE_TOKENS = 2048
NUM_AHEAD = 1  # experts that are read on a guess, while a layer is multiplied

Predict = Callable[[int, Tensor], Tensor]


class DiskExpertStore:
    """Runs routed experts from a cache, reading what is not there.

    Args:
        cache: Holds them.
        layers: Indices of the layers with routed experts.
        num_experts: Of a layer.
        num_layers: Layers of the model, those without experts included.
        backend: Runs them; the copy was prepared for it.
        counts: Routing counts of earlier chats.
        by_use: Keep the most used; else the last used.
        predict: What the next layer will likely choose: from its index and the normed inputs
            ``[1, hidden_size]`` of the layer before, a score for each of its experts. None reads
            nothing before it is chosen.
        stage: Read a layer's experts while a prompt's chunk is still in the layer before, if it
            used nearly all of that one's.

    Attributes:
        layers: As given.
        num_slots: Experts that the cache holds.
        on_take: Told who is in RAM and taken to be run, now and until it leaves.
        on_leave: Told who leaves the cache.
        may_ask: Says which experts this store can be asked for; by default all.
        num_read: Executions whose expert was not there.

    Raises:
        QuantError: If the cache has fewer slots than a token needs at once.
    """

    def __init__(
        self,
        cache: ExpertCache,
        layers: Sequence[int],
        num_experts: int,
        num_layers: int,
        backend: KernelBackend,
        *,
        counts: Mapping[int, Sequence[float]] | None = None,
        by_use: bool = True,
        predict: Predict | None = None,
        stage: bool = True,
    ) -> None:
        known = counts or {}
        unknown = (0.0,) * num_experts
        self._heat = Heat({i: known.get(i, unknown) for i in layers}, HALF_LIFE_TOKENS, by_use)
        self._cache = cache
        self._backend = backend
        self.layers = tuple(layers)
        self._last_layer = max(layers)
        self._sorted_layers = sorted(layers)
        self._next_layer = dict(pairwise(layers))
        self._predict = predict
        self._ahead: set[ExpertKey] = set()
        self.num_ahead = self.num_ahead_used = 0
        self._num_experts = num_experts
        self._counts = torch.zeros(num_layers, num_experts, dtype=torch.int64)
        self._found = self.num_read = 0
        self.num_slots, self._stage = cache.num_slots, stage
        self._pass_layer = -1  # that a prompt's chunk has come to
        self.on_take: Callable[[ExpertKey, ExpertWeights], None] = lambda key, weights: None
        self.on_leave: Callable[[ExpertKey], None] = lambda key: None
        self.may_ask: Callable[[ExpertKey], bool] = lambda key: True

    @property
    def counts(self) -> Tensor:
        """See `ExpertStore.counts`."""
        return self._counts

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        return self._cache.nbytes

    @property
    def hit_rate(self) -> float:
        """Share of the executions whose expert was in RAM; 1 before the first."""
        total = self._found + self.num_read
        return self._found / total if total else 1.0

    @property
    def uses(self) -> tuple[TierUse, ...]:
        """See `ExpertStore.uses`."""
        each = self._cache.slot_nbytes
        return (
            TierUse("RAM", self._found, self._found * each),
            TierUse("disk", self.num_read, self._cache.nbytes_read),
        )

    @property
    def kernels(self) -> str:
        """See `ExpertStore.kernels`."""
        return self._backend.name

    @property
    def has_shared(self) -> bool:
        """See `ExpertStore.has_shared`; the model keeps them."""
        return False

    @property
    def guesses(self) -> bool:
        """Whether experts are read on a guess of what a token will choose."""
        return self._predict is not None

    def warm(self, keys: Sequence[ExpertKey]) -> None:
        """Read experts while there are free slots, without waiting for them."""
        for key in keys[: self._cache.num_slots - len(self._cache)]:
            self._fetch(key, ())

    def forward(
        self, layer_idx: int, hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Tensor:
        """See `ExpertStore.forward`.

        Raises:
            QuantError: If the disk cannot be read.
        """
        counts = torch.bincount(topk_ids.flatten(), minlength=self._num_experts)
        self._counts[layer_idx] += counts
        if len(topk_ids) == 1:
            out = self._token(layer_idx, hidden_states, topk_ids, topk_weights)
            if layer_idx == self._last_layer:
                self._heat.pass_token()
            return out
        return self._chunk(layer_idx, hidden_states, topk_ids, topk_weights)

    def _token(self, layer_idx: int, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        order = topk_ids[0].argsort()
        chosen: list[int] = topk_ids[0, order].tolist()
        self._heat.use(layer_idx, chosen)
        experts = self.ensure(layer_idx, chosen)
        self._read_ahead(layer_idx, x, chosen)
        places = torch.arange(len(chosen))[None]
        return self._backend.routed_experts(x, places, topk_weights[:, order], experts)

    def _read_ahead(self, layer_idx: int, x: Tensor, chosen: Sequence[int]) -> None:
        """Begin to read what the next layer will likely choose, while this one is multiplied."""
        next_layer = self._next_layer.get(layer_idx)
        kept = [ExpertKey(layer_idx, expert_idx) for expert_idx in chosen]
        room = self._cache.num_slots >= 2 * len(chosen) + NUM_AHEAD
        if self._predict is None or next_layer is None or not room:
            return
        likely = self._predict(next_layer, x).topk(len(chosen)).indices.tolist()
        keys = [key for i in likely if self.may_ask(key := ExpertKey(next_layer, i))]
        missing = [key for key in keys if key not in self._cache][:NUM_AHEAD]
        for key in missing:
            self._fetch(key, [*kept, *keys])
        self._ahead.update(missing)
        self.num_ahead += len(missing)

    @property
    def nbytes_read(self) -> int:
        """Bytes that came from the disk."""
        return self._cache.nbytes_read

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether an expert is in RAM, or on its way there."""
        return key in self._cache

    def learn(self, uses: Mapping[int, np.ndarray], num_tokens: float) -> None:
        """Count what tokens chose that others ran, by layer index and expert."""
        if self._pass_layer >= 0:  # a prompt that had nothing to ask for in its last layer
            self._end_pass()
        self._heat.add(uses)
        self._heat.pass_token(num_tokens)

    def drop(self, key: ExpertKey) -> None:
        """Free an expert's slot, if it has one."""
        self.on_leave(key)  # before its memory is another's; then nothing is lost by an interrupt
        if key in self._cache:
            self._cache.drop(key)
        self._heat.hold(key, False)

    def ensure(self, layer_idx: int, chosen: Sequence[int]) -> list[ExpertWeights]:
        """A token's experts, read if they are not here; valid until the next call."""
        self._count_uses([ExpertKey(layer_idx, expert_idx) for expert_idx in chosen])
        return self.bring(layer_idx, chosen)

    def bring(self, layer_idx: int, chosen: Sequence[int]) -> list[ExpertWeights]:
        """`ensure` without counting; see `count`.

        Raises:
            QuantError: If the disk cannot be read.
        """
        keys = [ExpertKey(layer_idx, expert_idx) for expert_idx in chosen]
        for key in keys:
            self._fetch(key, keys)
        return [self.take(key) for key in keys]

    def count(self, chosen: Tensor) -> None:
        """Add what a token chose in layers that a step runs, int64 ``[num_layers, num_experts]``.

        Who is in RAM now was found there: to be called before what is missing is brought.
        """
        uses = chosen.numpy() > 0
        total = int(uses.sum())
        if not total:
            return
        early = sum(bool(uses[key]) for key in self._ahead)
        self._ahead.clear()
        self.num_ahead_used += early
        found = self._heat.use_in_layers(uses[self._sorted_layers]) - early
        self._found += found
        self.num_read += total - found
        self._counts += chosen

    def end_token(self) -> None:
        """A token has been through a step: what older ones chose fades."""
        self._heat.pass_token()

    def _chunk(self, layer_idx: int, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Each used expert once over its tokens, the missing ones being read meanwhile.

        What a long prompt uses says little about the replies to come: a chunk counts, and fades,
        as one token does. It counts when it has been through all layers, or those it has yet to
        come to would be the coldest, and leave just before they are needed.
        """
        if layer_idx <= self._pass_layer:
            self._end_pass()
        used: list[int] = sorted(set(topk_ids.flatten().tolist()))
        self._count_uses([ExpertKey(layer_idx, expert_idx) for expert_idx in used])
        self._heat.note(layer_idx, used)
        self._pass_layer = layer_idx
        later = self._later(layer_idx, used) if self._stage else []
        arguments = (layer_idx, x, topk_ids, topk_weights, later)
        out, guessed = run_layer(self, self._backend, *arguments)
        self._ahead.update(guessed)
        self.num_ahead += len(guessed)
        if layer_idx == self._last_layer:
            self._end_pass()
        return out

    def _later(self, layer_idx: int, used: Sequence[int]) -> list[ExpertKey]:
        """Experts of the next layer that are on the disk, if it will need nearly all it has."""
        next_layer = self._next_layer.get(layer_idx)
        num_asked = len(self._askable(layer_idx))
        if next_layer is None or len(used) < CERTAIN_SHARE * num_asked:
            return []
        return [key for key in self._askable(next_layer) if key not in self._cache]

    def _askable(self, layer_idx: int) -> list[ExpertKey]:
        keys = [ExpertKey(layer_idx, expert_idx) for expert_idx in range(self._num_experts)]
        return [key for key in keys if self.may_ask(key)]

    def _end_pass(self) -> None:
        """A prompt's chunk has been through the layers."""
        self._heat.settle()
        self._heat.pass_token()
        self._pass_layer = -1

    def _count_uses(self, keys: Sequence[ExpertKey]) -> None:
        early = self._ahead.intersection(keys)
        self.num_ahead_used += len(early)
        self._ahead.clear()
        found = sum(key in self._cache and key not in early for key in keys)
        self._found += found
        self.num_read += len(keys) - found

    def is_here(self, key: ExpertKey) -> bool:
        """Whether an expert can be taken without waiting."""
        return self._cache.is_here(key)

    def fetch(self, key: ExpertKey, kept: Collection[ExpertKey]) -> bool:
        """Begin to read an expert that is not in RAM, in the place of the coldest not kept.

        Returns:
            Whether it is in RAM or on its way now; not if all that is there must be kept.
        """
        return self._begin(key, kept, math.inf)

    def fetch_guess(self, key: ExpertKey, kept: Collection[ExpertKey]) -> bool:
        """`fetch`, but nobody who is used more leaves for it."""
        return self._begin(key, kept, self._heat.of(key))

    def _begin(self, key: ExpertKey, kept: Collection[ExpertKey], most: float) -> bool:
        """Begin to read an expert unless all not kept are used more than most."""
        if key in self._cache:
            return True
        while len(self._cache) == self.num_slots:
            # Counted from the layer that is being computed: it comes again after all others.
            at = key.layer_idx if self._pass_layer < 0 else self._pass_layer
            victim = self._heat.coldest(at, kept)
            if victim is None or self._heat.of(victim) > most:
                return False
            self.drop(victim)
        self._cache.fetch(key)
        self._heat.hold(key, True)
        return True

    def _fetch(self, key: ExpertKey, kept: Collection[ExpertKey]) -> None:
        if not self.fetch(key, kept):
            raise QuantError("the cache of experts is too small for one layer's choice")

    def take(self, key: ExpertKey) -> ExpertWeights:
        """An expert that is in RAM, or on its way; valid until it leaves.

        Raises:
            QuantError: If the disk cannot be read.
        """
        try:
            weights = self._cache.take(key)
        except QuantError:
            for failed in self._cache.forget_failed():
                self.drop(failed)
            raise
        self.on_take(key, weights)
        return weights
