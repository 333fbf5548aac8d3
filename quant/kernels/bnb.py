"""bitsandbytes' kernels. The only file that imports it, which takes 3 s, and only when used."""

import logging
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.errors import QuantError
from quant.formats import FORMATS
from quant.formats.codebook import BLOCK_SIZE, Codebook4
from quant.kernels.base import MatmulBackend
from quant.tensor import QuantTensor

# Two layouts beside x16. bnb-rows: uint8 [N, K/2], the even k in the high nibble, absmax float32
# [N, K/64], what bitsandbytes itself makes. bnb-x32: the same bytes with 32 rows interleaved and
# absmax bfloat16 [K/64, N], what its AVX-512 kernel reads.
ROWS = "bnb-rows"
X32 = "bnb-x32"
NUM_X32_ROWS = 32
# Above this many rows, dequantizing once and multiplying in bf16 beats the packed kernel.
MAX_PACKED_ROWS = 64


@cache
def library() -> ModuleType:
    """bitsandbytes.functional, without its remark on kernels that it would like to download."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes.functional as functional

    return functional


def _codebook(format_name: str) -> Codebook4:
    found = FORMATS[format_name]
    if not isinstance(found, Codebook4):
        raise QuantError(f"bitsandbytes packs 4-bit formats only, got {format_name}")
    return found


def to_bnb_rows(tensor: QuantTensor) -> tuple[Tensor, Tensor]:
    """A 4-bit tensor in x16 as bitsandbytes packs it: uint8 ``[N, K/2]`` and float32 absmax."""
    codes, absmax = _codebook(tensor.format).to_rows(tensor)
    high, low = codes.view(len(codes), -1, 2).unbind(-1)
    return (high << 4) | low, absmax


def from_bnb_rows(
    format_name: str, packed: Tensor, absmax: Tensor, shape: tuple[int, int]
) -> QuantTensor:
    """A QuantTensor of bitsandbytes' own packing; the codes stay as they are.

    Args:
        format_name: ``nf4`` or ``fp4``.
        packed: uint8, N·K/2 bytes in any shape, the even k in the high nibble.
        absmax: Float, one value a block of 64, in any shape.
        shape: ``(N, K)``.
    """
    packed = packed.view(torch.uint8).reshape(shape[0], shape[1] // 2)
    codes = torch.stack((packed >> 4, packed & 15), -1).view(shape)
    return _codebook(format_name).from_rows(codes, absmax.reshape(shape[0], -1))


class BnbBackend(MatmulBackend):
    """nf4 and fp4 through ``gemv_4bit``, int8 through ``int8_linear_matmul``."""

    name = "bnb"

    def why_not(self, format_name: str, device: torch.device) -> str:
        """It serves the quantized formats."""
        if format_name in ("nf4", "fp4", "int8"):
            return ""
        return f"bitsandbytes has no kernel for {format_name} weights"

    def _interleaves(self, tensor: QuantTensor) -> bool:
        aligned = tensor.shape[0] % NUM_X32_ROWS == 0
        return aligned and tensor.device.type == "cpu" and bool(library().has_avx512bf16())

    def prepare(self, tensor: QuantTensor) -> QuantTensor:
        """4-bit weights in rows, or 32 rows interleaved where its AVX-512 kernel runs."""
        if tensor.format == "int8":
            return tensor
        packed, absmax = to_bnb_rows(tensor)
        if not self._interleaves(tensor):
            parts = {"codes": packed, "absmax": absmax}
            return QuantTensor(tensor.format, ROWS, tensor.shape, parts)
        functional = library()
        state = functional.QuantState(
            absmax=absmax,
            shape=torch.Size(tensor.shape),
            code=_codebook(tensor.format).codebook,
            blocksize=BLOCK_SIZE,
            quant_type=tensor.format,
            dtype=torch.bfloat16,
        )
        codes, state = functional._convert_weight_packed_for_cpu(packed, state)
        return QuantTensor(
            tensor.format, X32, tensor.shape, {"codes": codes, "absmax": state.absmax}
        )

    def matmul(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        """See `KernelBackend.matmul`."""
        if weight.format == "int8":
            return self._matmul_int8(hidden_states, weight)
        library()
        packed = weight.layout == X32 and hidden_states.dtype == torch.bfloat16
        if not packed or len(hidden_states) > MAX_PACKED_ROWS:
            return F.linear(hidden_states, self.dequantize(weight, hidden_states.dtype))
        codebook = _codebook(weight.format).codebook.to(hidden_states.device)
        out: Tensor = torch.ops.bitsandbytes.gemv_4bit(
            hidden_states.contiguous(),  # it reads a column stride other than 1 as if it were 1
            weight.parts["codes"],
            weight.shape,
            weight.parts["absmax"],
            codebook,
            BLOCK_SIZE,
        )
        return out

    def dequantize(self, weight: QuantTensor, dtype: torch.dtype) -> Tensor:
        """A prepared 4-bit weight as floats ``[N, K]``."""
        codes, absmax = weight.parts["codes"], weight.parts["absmax"]
        if weight.layout == ROWS:
            dense: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
                codes, absmax.flatten(), BLOCK_SIZE, weight.format, weight.shape, dtype
            )
            return dense
        out_features, in_features = weight.shape
        nibbles = codes.view(-1, NUM_X32_ROWS)
        unpacked = torch.cat((nibbles & 15, nibbles >> 4), -1)  # [N·K/64, 64]: 32 rows × 2 k
        unpacked = unpacked.view(-1, in_features // 2, NUM_X32_ROWS, 2).transpose(1, 2)
        table = _codebook(weight.format).codebook.to(dtype)
        values = table[unpacked.reshape(weight.shape).int()]
        scaled = values.view(out_features, -1, BLOCK_SIZE) * absmax.T.to(dtype)[..., None]
        return scaled.view(weight.shape)

    def _matmul_int8(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        library()
        # Its own vector-wise quantization and its scaled product take and make only float16 on
        # CUDA, too narrow for bfloat16 activations; so only the integer product is its.
        absmax = hidden_states.abs().amax(-1, keepdim=True).float()
        scaled = hidden_states.float() * (127.0 / absmax.clamp(min=1e-36))
        codes = scaled.round_().to(torch.int8)
        sums: Tensor = torch.ops.bitsandbytes.int8_linear_matmul(codes, weight.parts["codes"])
        return (sums * (absmax / 127.0) * (weight.parts["absmax"] / 127.0)).to(hidden_states.dtype)
