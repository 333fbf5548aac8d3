"""How many bytes a model has once it is quantized, from its tensors' shapes alone."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from erniechat.errors import UsageError
from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.family import Dense, Routed, Slot
from quant.errors import QuantError
from quant.experts.pool import ALIGNMENT
from quant.formats.base import Format
from quant.kernels import library_nbytes, unpacked_nbytes


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model's bytes once it is quantized.

    Attributes:
        config: Its shape.
        fixed_nbytes: All but the routed experts.
        fixed_read_nbytes: What of these one token reads; an embedding that is not also the head
            is looked up, not read.
        expert_nbytes: One routed expert in its slot; 0 for a dense model.
        unpacked_nbytes: What the largest product unpacks; 0 for kernels that read packed weights.
        library_nbytes: What the libraries behind the kernels come to hold.
    """

    config: ModelConfig
    fixed_nbytes: int
    fixed_read_nbytes: int
    expert_nbytes: int
    unpacked_nbytes: int = 0
    library_nbytes: int = 0

    @property
    def num_experts(self) -> int:
        """Routed experts of all layers."""
        return len(self.config.moe_layers) * self.config.num_experts

    @property
    def num_chosen(self) -> int:
        """Routed experts that one token uses in all layers."""
        return len(self.config.moe_layers) * self.config.num_experts_per_tok


def model_sizes(
    config: ModelConfig,
    slots: Iterable[Slot],
    formats: Formats,
    dtype: torch.dtype = torch.bfloat16,
) -> ModelSizes:
    """The bytes of a model from its tensors' slots, none of which is read.

    Args:
        config: Its shape.
        slots: Of every tensor that it has; of an optional one only if it is there.
        formats: How weights are held.
        dtype: Of activations.

    Raises:
        UsageError: If the model's shape does not suit the format.
    """
    fixed, embedding, expert, unpacked = 0, 0, 0, 0
    has_head = False
    first_expert = (config.moe_layers[0], 0) if config.moe_layers else None
    for slot in slots:
        shape = slot.shape
        unpacked = max(unpacked, _unpacked_nbytes(slot, formats, dtype))
        if isinstance(slot, Routed):
            if (slot.layer_idx, slot.expert_idx) == first_expert:
                expert += _nbytes(formats.linear, shape, ALIGNMENT)
            continue
        if slot.role == "linear":
            fixed += _nbytes(formats.linear, shape)
        elif slot.role == "embedding":
            fixed += _nbytes(formats.embedding, shape)
            if slot.target == "embed_tokens":
                embedding = _nbytes(formats.embedding, shape)
            has_head |= slot.target == "lm_head"
        else:
            fixed += 4 * math.prod(shape)
    backends = (formats.linear_backend, formats.embedding_backend)
    libraries = max(library_nbytes(backend.name) for backend in backends)
    read = fixed - (embedding if has_head else 0)
    return ModelSizes(config, fixed, read, expert, unpacked, libraries)


def _unpacked_nbytes(slot: Slot, formats: Formats, dtype: torch.dtype) -> int:
    """What a product with a slot's matrix unpacks; its pieces are joined to one."""
    numel = math.prod(slot.shape)
    if isinstance(slot, Dense) and slot.role == "embedding":
        return unpacked_nbytes(formats.embedding_backend.name, formats.embedding.name, numel, dtype)
    if isinstance(slot, Dense) and slot.role != "linear":
        return 0
    pieces = slot.num_pieces if isinstance(slot, Dense) else 1 + (slot.part != "down")
    return unpacked_nbytes(formats.linear_backend.name, formats.linear.name, pieces * numel, dtype)


def _nbytes(weight_format: Format, shape: tuple[int, ...], alignment: int = 1) -> int:
    rows, cols = shape
    try:
        specs = weight_format.part_specs((rows, cols)).values()
    except QuantError as exc:
        raise UsageError(str(exc)) from exc
    return sum(-(-spec.nbytes // alignment) * alignment for spec in specs)
