"""4-bit formats by codebook: 64 weights share an absmax, each code names one of 16 values.

The layout ``x16`` interleaves 16 output rows, so that one 64-byte load holds 8 weights of each of
16 rows. ``codes`` is int32 ``[N/16, K/64, 8, 16]``: word (t, r) of a block holds the codes
k = 8t … 8t+7 of row r, code 8t+j in its nibble j. ``absmax`` is float16 ``[N/16, K/64, 16]``.
N is out_features, K in_features.
"""

import functools
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.formats.base import PartSpec, check_finite, largest_of
from quant.tensor import QuantTensor

BLOCK_SIZE = 64
NUM_INTERLEAVED_ROWS = 16


def pack_x16(codes: Tensor) -> Tensor:
    """Codes in rows to the x16 layout.

    Args:
        codes: uint8 ``[N, K]``, values 0 to 15.

    Returns:
        int32 ``[N/16, K/64, 8, 16]``.
    """
    out_features, in_features = codes.shape
    low, high = codes.view(out_features, in_features // 2, 2).unbind(-1)
    packed = low | (high << 4)  # [N, K/2], byte i holds codes 2i and 2i+1
    if sys.byteorder != "little":
        raise QuantError("the 4-bit layout is defined for little-endian machines")
    words = packed.view(torch.int32)  # [N, K/8]
    words = words.view(-1, NUM_INTERLEAVED_ROWS, in_features // BLOCK_SIZE, 8)
    return words.permute(0, 2, 3, 1).contiguous()


def unpack_x16(words: Tensor) -> Tensor:
    """The inverse of pack_x16: int32 ``[N/16, K/64, 8, 16]`` to uint8 ``[N, K]``."""
    groups, blocks = words.shape[:2]
    rows = words.permute(0, 3, 1, 2).contiguous().view(groups * NUM_INTERLEAVED_ROWS, blocks * 8)
    packed = rows.view(torch.uint8)  # [N, K/2]
    codes = torch.stack((packed & 15, packed >> 4), -1)
    return codes.view(groups * NUM_INTERLEAVED_ROWS, blocks * BLOCK_SIZE)


def absmax_to_x16(absmax: Tensor) -> Tensor:
    """Scales ``[N, K/64]`` of any float dtype to float16 ``[N/16, K/64, 16]``.

    Raises:
        QuantError: If a scale is too large for float16, or not a number.
    """
    check_scale(float(absmax.max()))
    return _interleaved(absmax)


def check_scale(largest: float) -> None:
    """Refuse scales of which the largest does not fit float16.

    Raises:
        QuantError: If it is too large, or not a number.
    """
    if not largest <= torch.finfo(torch.float16).max:  # NaN fails too
        raise QuantError(
            f"a block's largest weight is {largest:g}, and a 4-bit scale holds at most 65504; "
            "keep this model in bf16 or int8"
        )


def _interleaved(absmax: Tensor) -> Tensor:
    grouped = absmax.view(-1, NUM_INTERLEAVED_ROWS, absmax.shape[1])
    return grouped.permute(0, 2, 1).to(torch.float16).contiguous()


def absmax_from_x16(absmax: Tensor) -> Tensor:
    """The inverse of absmax_to_x16: float16 ``[N/16, K/64, 16]`` to float32 ``[N, K/64]``."""
    return absmax.permute(0, 2, 1).reshape(-1, absmax.shape[1]).float()


class Codebook4:
    """A 4-bit format with its own codebook; ``nf4`` and ``fp4`` are its two instances.

    Args:
        name: Key in ``FORMATS`` and bitsandbytes' ``quant_type``.
        codebook: 16 values between -1 and 1, by code.
    """

    layout = "x16"

    def __init__(self, name: str, codebook: Sequence[float]) -> None:
        self.name = name
        self.codebook = torch.tensor(codebook, dtype=torch.float32)
        values, order = self.codebook.sort()
        # bitsandbytes' rule: a weight takes the nearer value, at a tie the lower one.
        bounds = (values[:-1] + values[1:]) / 2
        self._rule = {torch.device("cpu"): (bounds, order.to(torch.uint8))}

    def check(self, shape: tuple[int, int]) -> None:
        """Blocks of 64 along the input, groups of 16 rows."""
        out_features, in_features = shape
        if in_features % BLOCK_SIZE:
            raise QuantError(
                f"in_features {in_features} is not a multiple of block_size {BLOCK_SIZE}; "
                "use int8 or bf16 for this model"
            )
        if out_features % NUM_INTERLEAVED_ROWS:
            raise QuantError(
                f"out_features {out_features} is not a multiple of {NUM_INTERLEAVED_ROWS}, the "
                "rows that a 4-bit layout interleaves; use int8 or bf16 for this model"
            )

    def part_specs(self, shape: tuple[int, int]) -> Mapping[str, PartSpec]:
        """Packed codes and one absmax a block."""
        self.check(shape)
        groups, blocks = shape[0] // NUM_INTERLEAVED_ROWS, shape[1] // BLOCK_SIZE
        return {
            "codes": PartSpec((groups, blocks, 8, NUM_INTERLEAVED_ROWS), torch.int32),
            "absmax": PartSpec((groups, blocks, NUM_INTERLEAVED_ROWS), torch.float16),
        }

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales in plain rows, bit for bit those of bitsandbytes.

        Args:
            weight: Float ``[N, K]``; where it is not finite, codes mean nothing.

        Returns:
            uint8 codes ``[N, K]`` and float32 absmax ``[N, K/64]``.
        """
        out_features, in_features = weight.shape
        self.check((out_features, in_features))
        blocks = weight.float().contiguous().view(out_features, -1, BLOCK_SIZE)
        absmax = largest_of(blocks, -1)
        scaled = blocks * absmax.clamp(min=1e-38).reciprocal()[..., None]
        bounds, code_of_rank = self._rule_on(weight.device)
        ranks = torch.bucketize(scaled.clamp_(-1, 1), bounds, out_int32=True)
        return code_of_rank[ranks].view(out_features, in_features), absmax

    def _rule_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Bounds between values, and the code by rank; to send them would wait for the device."""
        if device not in self._rule:
            bounds, code_of_rank = self._rule[torch.device("cpu")]
            self._rule[device] = bounds.to(device), code_of_rank.to(device)
        return self._rule[device]

    def from_rows(self, codes: Tensor, absmax: Tensor) -> QuantTensor:
        """A QuantTensor of codes uint8 ``[N, K]`` and scales ``[N, K/64]``."""
        out_features, in_features = codes.shape
        self.check((out_features, in_features))
        parts = {"codes": pack_x16(codes), "absmax": absmax_to_x16(absmax)}
        return QuantTensor(self.name, self.layout, (out_features, in_features), parts)

    def to_rows(self, tensor: QuantTensor) -> tuple[Tensor, Tensor]:
        """Codes uint8 ``[N, K]`` and scales float32 ``[N, K/64]`` of a tensor in x16."""
        if tensor.layout != self.layout:
            raise QuantError(f"expected the layout {self.layout}, got {tensor.layout}")
        return unpack_x16(tensor.parts["codes"]), absmax_from_x16(tensor.parts["absmax"])

    def quantize(self, weight: Tensor) -> QuantTensor:
        """Pack a weight into 4-bit codes with one float16 absmax a block: 4.25 bits a weight."""
        tensor, largest = self.quantize_unchecked(weight)
        self.check_largest(float(largest))
        return tensor

    def quantize_unchecked(self, weight: Tensor) -> tuple[QuantTensor, Tensor]:
        """See `Format.quantize_unchecked`."""
        out_features, in_features = weight.shape
        codes, absmax = self.encode(weight)
        parts = {"codes": pack_x16(codes), "absmax": _interleaved(absmax)}
        tensor = QuantTensor(self.name, self.layout, (out_features, in_features), parts)
        return tensor, absmax.max()

    def check_largest(self, largest: float) -> None:
        """It must be finite, and fit float16."""
        check_finite(largest)
        check_scale(largest)

    def dequantize(self, tensor: QuantTensor, dtype: torch.dtype) -> Tensor:
        """Codebook value times absmax, computed in float32."""
        codes, absmax = self.to_rows(tensor)
        values = self.codebook.to(codes.device)[codes.int()].view(*absmax.shape, BLOCK_SIZE)
        return (values * absmax[..., None]).view(tensor.shape).to(dtype)

    def random(self, shape: tuple[int, int], generator: torch.Generator) -> QuantTensor:
        """Nearly uniform codes; the scale gives them a standard deviation of 0.02.

        Their mean is 0. Weights with a mean push all tokens the same way: after a few layers all
        would choose the same experts.
        """
        specs = self.part_specs(shape)
        words, deviation = self._random_words
        num_pieces = specs["codes"].nbytes // (8 * words.shape[1])
        pieces = torch.randint(len(words), (num_pieces,), generator=generator)
        codes = words[pieces].view(torch.int32).view(specs["codes"].shape)
        absmax = torch.full(specs["absmax"].shape, 0.02 / deviation).half()
        return QuantTensor(self.name, self.layout, shape, {"codes": codes, "absmax": absmax})

    @functools.cached_property
    def _random_words(self) -> tuple[Tensor, float]:
        """Packed codes in pieces of 32 bytes, int64 ``[16384, 4]``, and their deviation."""
        tilt = torch.zeros(())
        for _ in range(8):  # Newton's steps to the exponent that makes the mean 0
            chances = torch.softmax(-tilt * self.codebook, 0)
            square = chances @ self.codebook.square()
            tilt = tilt + chances @ self.codebook / square
        generator = torch.Generator().manual_seed(0)
        codes = torch.multinomial(chances, 1 << 20, replacement=True, generator=generator)
        packed = codes[::2] | codes[1::2] << 4
        return packed.to(torch.uint8).view(torch.int64).view(-1, 4), float(square.sqrt())
