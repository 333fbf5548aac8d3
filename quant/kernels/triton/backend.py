"""The Triton backend for CUDA devices. Imports Triton when a product is first asked for."""

import importlib.util
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import ExpertWeights
from quant.kernels.triton.tables import BITS
from quant.tensor import QuantTensor

CODES_A_WORD = 4
MIN_CAPABILITY = (7, 5)
LAYOUTS = {4: "x16", 8: "rows", 16: "rows"}


@cache
def products() -> ModuleType:
    """The module that launches the tile kernel; it imports Triton."""
    import quant.kernels.triton.products as module

    return module


@cache
def decode_launchers() -> ModuleType:
    """The module that launches the kernels of a captured step; it imports Triton."""
    import quant.kernels.triton.step as module

    return module


@cache
def chunk_launchers() -> ModuleType:
    """The module that launches the kernels of a captured chunk; it imports Triton."""
    import quant.kernels.triton.chunk as module

    return module


def import_launchers() -> None:
    """Import Triton and all kernels now; better while the GPU wakes than while weights arrive."""
    for launchers in (products, decode_launchers, chunk_launchers):
        launchers()


class ExpertTable(Sequence[ExpertWeights]):
    """A layer's experts whose addresses are on the device already.

    Args:
        experts: By id.
        gate_up_at: Addresses int64 ``[2, num_experts]`` of codes and scales.
        down_at: As gate_up_at.
    """

    def __init__(
        self, experts: Sequence[ExpertWeights], gate_up_at: Tensor, down_at: Tensor
    ) -> None:
        self._experts = experts
        self.gate_up_at = gate_up_at
        self.down_at = down_at

    def __getitem__(self, idx):  # type: ignore[no-untyped-def]  # as the sequence it wraps
        return self._experts[idx]

    def __len__(self) -> int:
        return len(self._experts)


class TritonBackend:
    """All formats on NVIDIA GPUs: dequantized in the kernel, multiplied on the tensor cores."""

    name = "triton"

    def __init__(self) -> None:
        self._addresses: dict[tuple[int, int], Tensor] = {}

    def why_not(self, format_name: str, device: torch.device) -> str:
        """It needs a CUDA device of capability 7.5 and Triton."""
        if format_name not in BITS:
            return f"there is no Triton kernel for {format_name} weights"
        if device.type != "cuda":
            return f"Triton kernels run on cuda, not on {device.type}"
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if not torch.cuda.is_available():
            return "there is no CUDA device"
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            return f"Triton kernels need compute capability 7.5, this device has {capability}"
        return ""

    def prepare(self, tensor: QuantTensor) -> QuantTensor:
        """The formats' own layouts are what the kernels read."""
        wanted = LAYOUTS[BITS[tensor.format]]
        if tensor.layout != wanted:
            raise QuantError(f"expected the layout {wanted}, got {tensor.layout}")
        if tensor.format == "int8" and tensor.shape[1] % CODES_A_WORD:
            raise QuantError(
                f"{tensor.shape[1]} inputs are not a multiple of {CODES_A_WORD}, in which Triton's "
                "kernels read int8; use --kernels reference"
            )
        return tensor

    def matmul(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        """See `KernelBackend.matmul`."""
        out: Tensor = products().matmul(hidden_states, weight, self._address(weight))
        return out

    def _address(self, weight: QuantTensor) -> Tensor:
        """Addresses of one weight on the device, sent there once.

        They are what is looked up by, so an entry is right whichever weight is there.
        """
        parts = list(weight.parts.values())
        key = (parts[0].data_ptr(), parts[-1].data_ptr())
        if key not in self._addresses:
            self._addresses[key] = products().address_table([weight])
        return self._addresses[key]

    def routed_experts(
        self,
        hidden_states: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: Sequence[ExpertWeights],
    ) -> Tensor:
        """See `KernelBackend.routed_experts`."""
        if not isinstance(experts, ExpertTable):
            gate_up_at = products().address_table([expert.gate_up for expert in experts])
            down_at = products().address_table([expert.down for expert in experts])
            experts = ExpertTable(experts, gate_up_at, down_at)
        out: Tensor = products().routed_experts(
            hidden_states,
            topk_ids,
            topk_weights,
            experts[0],
            experts.gate_up_at,
            experts.down_at,
        )
        return out
