"""What running experts outside a GPU's memory costs on this machine: figures kept or measured."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from quant.experts.sharing import SharingCosts, row_share
from quant.figures import KeptFigures, is_doubted
from quant.formats.base import Format
from quant.kernels.base import ExpertWeights
from quant.kernels.native import NativeBackend
from quant.speeds import measure_bus, measure_expert_seconds, measure_ram

BUCKETS = (32, 128, 512)  # sizes of a prompt's captured chunks; each compiles kernels of its own
NUM_MEASURED = 8  # experts that the CPU runs to learn how fast it is
LEAST_PROBE_NBYTES = 32 << 20  # of a copy that tells a bus's speed
LEAST_RAM_NBYTES = 1 << 30  # of experts whose first ones no cache holds any more
PROBE_NBYTES = 128 << 20


def sharing_costs(figures: KeptFigures, host: Tensor, free: Tensor) -> SharingCosts:
    """The speeds of RAM and bus; kept ones are held to a quick probe, which takes milliseconds.

    A probe that is faster shows that the kept figures come from a busy machine: then nothing is
    believed any more. A slower one shows only that the machine is busy now.

    Args:
        figures: What is known; gets what is measured.
        host: uint8 ``[num_experts, slot_nbytes]``, the experts in pinned memory.
        free: The same, slots on the GPU in which nothing is yet.
    """
    if _is_doubted(figures, host, free):
        figures.forget()
    return SharingCosts(
        ram=figures.measured("ram", measure_ram),
        bus=figures.measured("bus", lambda: measure_bus(free.device)),
    )


def _is_doubted(figures: KeptFigures, host: Tensor, free: Tensor) -> bool:
    ram, bus = figures.get("ram"), figures.get("bus")
    some = host[: max(1, PROBE_NBYTES // host.shape[1])]
    if ram and host.nbytes >= LEAST_RAM_NBYTES and is_doubted(ram, measure_ram(some, 1)):
        return True
    count = min(len(host), len(free))
    if not bus or count * host.shape[1] < LEAST_PROBE_NBYTES:
        return False
    return is_doubted(bus, measure_bus(free.device, host[:count], free[:count], 1))


def row_shares(
    config: ModelConfig,
    figures: KeptFigures,
    experts: Sequence[ExpertWeights],
    num_pinned: int,
    costs: SharingCosts,
) -> Mapping[int, float]:
    """By the size of a prompt's chunk, which share of a layer's experts in RAM the CPU runs.

    Args:
        config: The model's shape.
        figures: What is known; gets what is measured.
        experts: Some of those in RAM, to measure with.
        num_pinned: Experts in RAM of all layers.
        costs: Of this machine.
    """
    if not experts:
        return {}
    native = NativeBackend()
    per_layer = num_pinned / len(config.moe_layers)
    shares = dict.fromkeys(BUCKETS, 0.0)
    for size in BUCKETS if num_pinned else ():
        seconds = expert_seconds(config, figures, native, experts, size)
        shares[size] = row_share(per_layer, experts[0].nbytes, costs.bus, seconds)
    return shares


def expert_seconds(
    config: ModelConfig,
    figures: KeptFigures,
    native: NativeBackend,
    experts: Sequence[ExpertWeights],
    chunk_size: int,
) -> float:
    """What the CPU takes for an expert and its rows of a chunk, as known or measured now."""
    rows_each = max(1, chunk_size * config.num_experts_per_tok // config.num_experts)
    weight = experts[0].gate_up
    name = f"expert {weight.format} {weight.shape[0]}x{weight.shape[1]}, {rows_each} rows"
    return figures.measured(name, lambda: measure_expert_seconds(native, experts, rows_each))


def random_experts(
    config: ModelConfig, weight_format: Format, native: NativeBackend
) -> list[ExpertWeights]:
    """Experts of a model's shape to measure with, where there are none yet."""
    generator = torch.Generator().manual_seed(0)
    width, hidden = config.moe_intermediate_size, config.hidden_size
    return [
        ExpertWeights(
            native.prepare(weight_format.random((2 * width, hidden), generator)),
            native.prepare(weight_format.random((hidden, width), generator)),
        )
        for _ in range(NUM_MEASURED)
    ]
