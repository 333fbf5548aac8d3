"""A decoder from finished weights, wherever they lie."""

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.conversion import Formats
from erniechat.model.decoder import Decoder, DecoderWeights
from erniechat.model.device_step import CapturedStep
from erniechat.model.disk_assembly import Residency, cached_experts
from erniechat.model.expert_assembly import ExpertPlaces, pooled_experts, slots_for
from erniechat.model.expert_slots import ExpertSlots, expert_of
from erniechat.model.layers import causal_attention
from erniechat.model.native_step import build_native_step, prompt_attention
from erniechat.model.step_assembly import build_chunk, build_step, why_not_captured
from quant.copy import QuantizedCopy, Weight, WeightSource
from quant.errors import QuantError
from quant.experts.disk import DiskExpertStore
from quant.experts.store import ExpertStore, ResidentExpertStore
from quant.kernels.triton.backend import import_launchers
from quant.linear import QuantLinear
from quant.tensor import QuantTensor
from quant.upload import BackgroundUpload, Put


def assemble(
    config: ModelConfig,
    weights: WeightSource,
    formats: Formats,
    device: torch.device,
    dtype: torch.dtype,
    places: ExpertPlaces | None = None,
    residency: Residency | None = None,
) -> Decoder:
    """Join weights, kernels and the expert store to a decoder.

    Args:
        config: The model's shape.
        weights: Every weight by its name in the model, prepared for the backends of formats.
        formats: Whose backends run the weights.
        device: Where the model runs; weights that are elsewhere are copied there.
        dtype: Of activations.
        places: Which experts of a model on a GPU live elsewhere; by default none.
        residency: How many experts of a copy on disk are in RAM, on a GPU of those that live in
            no memory; None leaves that on a CPU to the page cache.

    Raises:
        QuantError: If a weight is not there or not of the expected kind, or the kernels cannot
            run experts that live elsewhere.
    """
    if device.type == "cuda" and formats.linear_backend.name == "triton":
        places = places or ExpertPlaces()
        return _assemble_pooled(config, weights, formats, device, dtype, places, residency)
    if places is not None and (places.ram or places.disk):
        raise QuantError(
            f"{formats.linear_backend.name} kernels on {device} cannot run experts outside the "
            "GPU's memory; use --kernels triton"
        )
    cached = cached_experts(config, weights, formats.linear_backend, residency)
    experts = {
        layer_idx: [
            expert_of(weights, layer_idx, expert_idx).to(device)
            for expert_idx in range(config.num_experts)
        ]
        for layer_idx in config.moe_layers
        if cached is None
    }
    tensors: dict[str, Tensor] = {}
    matrices: dict[str, QuantTensor] = {}
    for name in weights:
        if ".experts." in name:
            continue
        weight = weights[name]
        if isinstance(weight, QuantTensor):
            matrices[name] = weight.to(device)
        else:
            tensors[name] = weight.to(device)
    check = weights.check if isinstance(weights, QuantizedCopy) else None
    store: DiskExpertStore | ResidentExpertStore = cached or ResidentExpertStore(
        experts, config.num_hidden_layers, formats.linear_backend
    )
    found = _decoder_weights(matrices, tensors, formats)
    step = build_native_step(config, found.linears, tensors, found.embedding, experts, store, dtype)
    attention = prompt_attention(config, found.linears, dtype) or causal_attention
    return Decoder(config, found, store, dtype, step, attention, check)


def _decoder_weights(
    matrices: dict[str, QuantTensor], tensors: dict[str, Tensor], formats: Formats
) -> DecoderWeights:
    """Each matrix with the kernels that run it; a head of its own or the embedding's."""
    embedding = matrices.pop("embed_tokens")
    head = matrices.pop("lm_head", embedding)
    linears = {
        name: QuantLinear(weight, formats.linear_backend, tensors.get(name + ".bias"))
        for name, weight in matrices.items()
    }
    linears["lm_head"] = QuantLinear(head, formats.embedding_backend, tensors.get("lm_head.bias"))
    return DecoderWeights(linears, tensors, embedding)


def _assemble_pooled(
    config: ModelConfig,
    weights: WeightSource,
    formats: Formats,
    device: torch.device,
    dtype: torch.dtype,
    places: ExpertPlaces,
    residency: Residency | None,
) -> Decoder:
    """On a GPU: experts in one pool, weights on their way there, decode as launches to capture."""
    # A shared expert's bias would have to be added in the pool.
    num_shared = 0 if config.use_bias else config.num_shared_experts
    slots = None
    if config.moe_layers:
        slots = slots_for(config, weights, device, num_shared, places, dtype)
    fixed = _Fixed(device)
    for name in weights:
        if not (".experts." in name or (slots and num_shared and ".shared." in name)):
            fixed.add(name, weights[name])
    upload = _begin_upload(weights, fixed, slots, device)
    try:
        if formats.linear_backend.name == "triton":
            import_launchers()  # while weights are on their way
        pooled = None
        if slots is not None:
            pooled = pooled_experts(
                config, weights, formats, slots, upload, places, dtype, residency
            )
        store = None if pooled is None else pooled.store
        found = _decoder_weights(fixed.matrices, fixed.tensors, formats)
        step = None
        if dtype == torch.bfloat16 and not why_not_captured(config):
            launches = build_step(config, found.linears, fixed.tensors, found.embedding, store)
            step = CapturedStep(launches, build_chunk(launches, store), device, store)
    except BaseException:
        upload.stop()  # or it would hold on to memory that another try needs
        raise
    door: ExpertStore = store or ResidentExpertStore(
        {}, config.num_hidden_layers, formats.linear_backend
    )
    memory = None if pooled is None else pooled.cache_memory
    return Decoder(config, found, door, dtype, step, cache_memory=memory, upload=upload)


class _Fixed:
    """What every token uses, as it will be on a device: memory is taken, nothing is there yet."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sources: list[tuple[Tensor, Tensor]] = []
        self.tensors: dict[str, Tensor] = {}
        self.matrices: dict[str, QuantTensor] = {}

    def add(self, name: str, weight: Weight) -> None:
        """Take memory for a weight."""
        if isinstance(weight, QuantTensor):
            parts = {part: self._target(data) for part, data in weight.parts.items()}
            self.matrices[name] = QuantTensor(weight.format, weight.layout, weight.shape, parts)
        else:
            self.tensors[name] = self._target(weight)

    def _target(self, source: Tensor) -> Tensor:
        target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        self._sources.append((target, source))
        return target

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(target.nbytes for target, _ in self._sources)

    def fill(self, put: Put) -> None:
        """Bring all weights there, once."""
        for target, source in self._sources:
            put(target, source)
        self._sources.clear()


def _begin_upload(
    weights: WeightSource, fixed: _Fixed, slots: ExpertSlots | None, device: torch.device
) -> BackgroundUpload:
    """Send everything there for which memory was taken."""
    copy = weights if isinstance(weights, QuantizedCopy) else None

    def let_go() -> None:
        if copy is not None:  # or all of it would soon count as this process' memory
            copy.let_go()

    def fill(put: Put) -> None:
        fixed.fill(put)
        let_go()
        if slots is not None:
            slots.fill(weights, put, let_go)

    nbytes = fixed.nbytes + (0 if slots is None else slots.nbytes)
    return BackgroundUpload(device, fill, nbytes, copy.check if copy else lambda: None)
