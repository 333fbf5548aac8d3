"""How much each expert is used, the older the lighter: who leaves a cache of experts.

Nothing here knows of memory or files, and nothing is random.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from quant.experts.placement import ExpertKey


class Heat:
    """How much each expert is used, for choosing who leaves a cache.

    Args:
        counts: Of a stored profile by layer index; zeros if there is none.
        half_life_tokens: After so many tokens a use weighs half.
        by_use: Else the least recently used leaves.
    """

    def __init__(
        self, counts: Mapping[int, Sequence[float]], half_life_tokens: float, by_use: bool = True
    ) -> None:
        self._rows = {layer_idx: row for row, layer_idx in enumerate(sorted(counts))}
        self._layers = sorted(counts)
        self._heat = np.array([counts[layer_idx] for layer_idx in self._layers], dtype=np.float64)
        total = self._heat[0].sum() if len(self._heat) else 0.0
        # The profile weighs as much as one half-life of new tokens at most.
        self._heat *= min(1.0, half_life_tokens / total) if total else 0.0
        self._held = np.zeros(self._heat.shape, dtype=bool)
        self._noted = np.zeros(self._heat.shape, dtype=bool)
        self._growth = 0.5 ** (-1.0 / half_life_tokens)
        self._unit = 1.0
        self._by_use = by_use
        self._clock = 0.0 if by_use else float(self._heat.max(initial=0.0))

    def hold(self, key: ExpertKey, held: bool) -> None:
        """Say that an expert entered or left."""
        self._held[self._rows[key.layer_idx], key.expert_idx] = held

    def use(self, layer_idx: int, expert_ids: Sequence[int]) -> None:
        """Count a token's choice."""
        row = self._heat[self._rows[layer_idx]]
        if self._by_use:
            row[list(expert_ids)] += self._unit
        else:
            self._clock += 1
            row[list(expert_ids)] = self._clock

    def note(self, layer_idx: int, expert_ids: Sequence[int]) -> None:
        """What a pass through all layers uses; it counts once `settle` is called."""
        self._noted[self._rows[layer_idx], list(expert_ids)] = True

    def use_in_layers(self, chosen: np.ndarray) -> int:
        """Count a token's choices in several layers, one after the other.

        Args:
            chosen: bool ``[num_layers, num_experts]``, the layers in ascending order.

        Returns:
            How many of the chosen are held.
        """
        if self._by_use:
            self._heat[chosen] += self._unit
        else:
            layers = chosen.any(1)
            times = self._clock + layers.cumsum()
            self._heat = np.where(chosen, times[:, None], self._heat)
            self._clock += float(layers.sum())
        return int((chosen & self._held).sum())

    def settle(self) -> None:
        """Count what was noted."""
        if self._by_use:
            self._heat[self._noted] += self._unit
        else:
            self._clock += 1
            self._heat[self._noted] = self._clock
        self._noted[:] = False

    def add(self, uses: Mapping[int, np.ndarray]) -> None:
        """Count what tokens chose elsewhere: by layer index how often each expert."""
        self._clock += 1
        for layer_idx, counts in uses.items():
            row = self._heat[self._rows[layer_idx]]
            if self._by_use:
                row += self._unit * counts
            else:
                row[counts > 0] = self._clock

    def pass_token(self, num_tokens: float = 1.0) -> None:
        """Let older uses fade: newer ones weigh more, and now and then all are scaled back."""
        if not self._by_use:
            return
        self._unit *= self._growth**num_tokens
        if self._unit > 1e100:
            self._heat /= self._unit
            self._unit = 1.0

    def of(self, key: ExpertKey) -> float:
        """How much an expert is used, in a unit of its own."""
        return float(self._heat[self._rows[key.layer_idx], key.expert_idx])

    def coldest(self, layer_idx: int, kept: Collection[ExpertKey]) -> ExpertKey | None:
        """Who leaves: the coldest that is held and not kept; None if all must be kept.

        Of equals it is one of the layer that comes again last after layer_idx, and of these one
        that was not noted.
        """
        allowed = self._held.copy()
        for key in kept:
            allowed[self._rows[key.layer_idx], key.expert_idx] = False
        row = self._rows[layer_idx]
        # Counted from the layer just done backwards: that one is needed again after all others.
        order = [(row - step) % len(self._layers) for step in range(len(self._layers))]
        heat = np.where(allowed, self._heat, np.inf)[order]
        least = heat.min(initial=np.inf)
        if not np.isfinite(least):
            return None
        equals = heat == least
        place = int(equals.any(1).argmax())
        expert_idx = int(np.where(equals[place], self._noted[order[place]], 2).argmin())
        return ExpertKey(self._layers[order[place]], expert_idx)
