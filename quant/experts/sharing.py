"""Who runs the experts outside a GPU's memory: the CPU where they are, or the GPU over the bus."""

from dataclasses import dataclass

from quant.errors import QuantError

REST_SECONDS = 4e-4  # of the CPU in a layer of a prompt's chunk; measured, as is the next
CROWDED = 1.15  # how much longer CPU and bus take while both read the same memory


@dataclass(frozen=True, slots=True)
class SharingCosts:
    """What it takes to run experts that lie in the host's memory.

    Attributes:
        ram: Bytes a second that the CPU's kernels read.
        bus: Bytes a second that the GPU reads through the bus.
        handoff_seconds: What asking the CPU takes beyond the reading.
    """

    ram: float
    bus: float
    handoff_seconds: float = 20e-6

    def __post_init__(self) -> None:
        if not (self.ram > 0 and self.bus > 0 and self.handoff_seconds >= 0):
            raise QuantError(f"speeds must be positive, got {self}")


def cpu_shares(num_experts_per_tok: int, expert_nbytes: int, costs: SharingCosts) -> list[int]:
    """How many experts the CPU runs, by how many of a token's lie outside the GPU's memory.

    Both work at the same time, so the slower of them should end as early as possible; of equals
    the CPU gets fewer.

    Args:
        num_experts_per_tok: Most that can lie outside.
        expert_nbytes: Of one.
        costs: Of this machine.

    Returns:
        ``num_experts_per_tok + 1`` numbers.
    """

    def seconds(outside: int, on_cpu: int) -> float:
        cpu = on_cpu * expert_nbytes / costs.ram + costs.handoff_seconds * bool(on_cpu)
        return max(cpu, (outside - on_cpu) * expert_nbytes / costs.bus)

    return [
        min(range(outside + 1), key=lambda on_cpu: seconds(outside, on_cpu))
        for outside in range(num_experts_per_tok + 1)
    ]


def row_share(num_experts: float, expert_nbytes: int, bus: float, expert_seconds: float) -> float:
    """Which share of a layer's experts in the host's memory the CPU should run for a prompt.

    All of them are used by some of its tokens; CPU and bus should end at the same time. The bus
    works through the whole layer, since experts are brought ahead of time; the CPU rests while
    the GPU attends and routes. Beside each other both are slower than alone.

    Args:
        num_experts: That lie there, of a layer.
        expert_nbytes: That the GPU reads of one.
        bus: Bytes a second that it reads, alone.
        expert_seconds: What the CPU takes for one and its rows, alone.
    """
    bus_seconds = CROWDED * expert_nbytes / bus
    cpu_seconds = CROWDED * expert_seconds
    ahead = num_experts * bus_seconds - REST_SECONDS
    return max(0.0, ahead / (num_experts * (bus_seconds + cpu_seconds)))
