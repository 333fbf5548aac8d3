"""Who is to be in which slot of a GPU's pool, and bringing everybody there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from erniechat.model.family import routed_name
from quant.copy import WeightSource
from quant.errors import QuantError
from quant.experts.pool import NO_SLOT, ExpertPool, split_gated
from quant.kernels.base import ExpertWeights
from quant.tensor import QuantTensor
from quant.upload import Put


@dataclass(frozen=True, slots=True)
class ExpertSlots:
    """A pool of a GPU, and who is to be in which of its slots; nobody is there yet.

    Attributes:
        pool: With slots that stay free if experts may live elsewhere.
        of: By layer index the slots of its routed and then its shared experts; NO_SLOT for those
            who live elsewhere.
        num_shared: Shared experts of a layer among them.
    """

    pool: ExpertPool
    of: dict[int, list[int]]
    num_shared: int

    @property
    def nbytes(self) -> int:
        """Bytes of all that are somebody's."""
        taken = sum(slot != NO_SLOT for slots in self.of.values() for slot in slots)
        return taken * self.pool.slot_nbytes

    def fill(
        self, weights: WeightSource, put: Put, let_go: Callable[[], None] = lambda: None
    ) -> None:
        """Bring everybody to the slots.

        Args:
            weights: Every weight by its name.
            put: Brings a part there.
            let_go: Called after each layer, when nothing of it is read any more.

        Raises:
            QuantError: If an expert is not there or of another format.
        """
        for layer_idx, slots in self.of.items():
            num_routed = len(slots) - self.num_shared
            shared = _shared_of(weights, layer_idx, self.num_shared) if self.num_shared else []
            for slot, expert in zip(slots[num_routed:], shared, strict=True):
                self.pool.write(slot, expert, put)
            for expert_idx, slot in enumerate(slots[:num_routed]):
                if slot != NO_SLOT:
                    self.pool.write(slot, expert_of(weights, layer_idx, expert_idx), put)
            let_go()


def expert_of(weights: WeightSource, layer_idx: int, expert_idx: int) -> ExpertWeights:
    """One routed expert.

    Raises:
        QuantError: If a weight of it is not quantized.
    """

    def matrix(part: Literal["gate_up", "down"]) -> QuantTensor:
        name = routed_name(layer_idx, expert_idx, part)
        weight = weights[name]
        if not isinstance(weight, QuantTensor):
            raise QuantError(f"{name} is not a quantized matrix; delete the quantized copy")
        return weight

    return ExpertWeights(matrix("gate_up"), matrix("down"))


def _shared_of(weights: WeightSource, layer_idx: int, num_shared: int) -> list[ExpertWeights]:
    """The shared experts of a layer, one by one."""
    gate_up, down = (weights[f"layers.{layer_idx}.shared.{name}"] for name in ("gate_up", "down"))
    if not isinstance(gate_up, QuantTensor) or not isinstance(down, QuantTensor):
        raise QuantError("a shared expert is not quantized; delete the quantized copy")
    return split_gated(gate_up, down, num_shared)
