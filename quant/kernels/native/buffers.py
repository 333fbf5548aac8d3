"""Checks of every buffer before C++ sees its address."""

import ctypes
import weakref
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.formats import FORMATS
from quant.formats.codebook import Codebook4
from quant.kernels.base import ExpertWeights
from quant.kernels.native.library import BFLOAT16, CODEBOOK, FLOAT32, INT8, Expert, Matrix
from quant.tensor import QuantTensor

DTYPES: Mapping[torch.dtype, int] = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
MAX_LEVEL = 127


@cache
def codebook_levels(format_name: str) -> tuple[tuple[int, ...], float]:
    """A codebook as int8 levels and their unit: code's value ≈ level · unit.

    The unit is the one whose rounded levels are nearest the codebook: for nf4 1/124, where the
    levels are off by 0.5 % of a weight, against 0.6 % with 1/127.
    """
    found = FORMATS[format_name]
    if not isinstance(found, Codebook4):
        raise QuantError(f"the native kernels know 4-bit codebooks and int8, got {format_name}")
    codebook = found.codebook.double()
    steps = torch.arange(1000, 10 * MAX_LEVEL + 1).double() / 10
    levels = (codebook * steps[:, None]).round()
    errors = (levels / steps[:, None] - codebook).square().sum(-1)
    best = int(errors.argmin())
    return tuple(int(level) for level in levels[best]), 1.0 / float(steps[best])


def address(tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The address of a CPU tensor of exactly this shape and dtype, dense and aligned.

    Raises:
        QuantError: If it is anything else.
    """
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
        raise QuantError(
            f"{name} must be {dtype} {list(shape)} on the CPU, "
            f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device.type}"
        )
    if not tensor.is_contiguous():
        raise QuantError(f"{name} must be contiguous, got strides {tensor.stride()}")
    end = tensor.storage_offset() * tensor.itemsize + tensor.nbytes
    if tensor.untyped_storage().nbytes() < end:
        raise QuantError(
            f"{name} needs {end} bytes of storage, and it has {tensor.untyped_storage().nbytes()}"
        )
    pointer = tensor.data_ptr()
    if pointer % tensor.itemsize:
        raise QuantError(
            f"{name} is at address {pointer:#x}, not a multiple of {tensor.itemsize} bytes"
        )
    return pointer


def matrix(weight: QuantTensor) -> Matrix:
    """A checked weight as C++ sees it. Keep the weight's tensors alive as long as it is used.

    Raises:
        QuantError: If a part is missing or not what its format says, or the format is not served.
    """
    weight_format = FORMATS.get(weight.format)
    is_int8 = weight.format == "int8"
    if weight_format is None or not (is_int8 or isinstance(weight_format, Codebook4)):
        raise QuantError(f"the native kernels do not serve {weight.format} weights")
    if weight.layout != weight_format.layout:
        raise QuantError(
            f"the native kernels read {weight.format} in layout {weight_format.layout}, "
            f"got {weight.layout}"
        )
    pointers = {}
    for name, spec in weight_format.part_specs(weight.shape).items():
        if name not in weight.parts:
            raise QuantError(f"a {weight.format} weight has no part {name}")
        pointers[name] = address(weight.parts[name], name, spec.shape, spec.dtype)
    levels, unit = ((0,) * 16, 1 / MAX_LEVEL) if is_int8 else codebook_levels(weight.format)
    kind = INT8 if is_int8 else CODEBOOK
    rows, cols = weight.shape
    codes, absmax = pointers["codes"], pointers["absmax"]
    return Matrix(codes, absmax, rows, cols, kind, unit, (ctypes.c_int8 * 16)(*levels))


def check_activations(hidden_states: Tensor, num_cols: int) -> None:
    """Refuse activations that are not ``[num_tokens, num_cols]`` of a known dtype on the CPU.

    Raises:
        QuantError: With what they are.
    """
    if hidden_states.dtype not in DTYPES:
        raise QuantError(f"activations must be float32 or bfloat16, got {hidden_states.dtype}")
    if hidden_states.dim() != 2 or hidden_states.shape[1] != num_cols:
        raise QuantError(
            f"activations must be [num_tokens, {num_cols}], got {list(hidden_states.shape)}"
        )
    if hidden_states.device.type != "cpu":
        raise QuantError(f"activations must be on the CPU, got {hidden_states.device}")


class Descriptors:
    """Checked C++ views of weights, made once a weight: decoding asks for the same ones again.

    Entries hold no reference to a weight's memory and vanish with its codes.
    """

    def __init__(self) -> None:
        self._matrices: dict[int, tuple[weakref.ref[Tensor], Matrix]] = {}
        self._experts: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], Expert]] = {}

    def matrix(self, weight: QuantTensor) -> Matrix:
        """The view of one weight."""
        codes = weight.parts.get("codes")
        found = self._matrices.get(id(codes))
        if found is not None and found[0]() is codes:
            return found[1]
        view = matrix(weight)
        if codes is not None:
            key = id(codes)
            owner = weakref.ref(codes, lambda _: self._matrices.pop(key, None))
            self._matrices[key] = (owner, view)
        return view

    def expert(self, expert: ExpertWeights, hidden_size: int) -> Expert:
        """The view of one expert.

        Raises:
            QuantError: If its matrices do not fit together.
        """
        gate_up, down = expert.gate_up.parts.get("codes"), expert.down.parts.get("codes")
        found = self._experts.get(id(gate_up))
        if found is not None and found[0]() is gate_up and found[1]() is down:
            return found[2]
        width = expert.down.shape[1]
        if expert.gate_up.shape != (2 * width, hidden_size) or expert.down.shape[0] != hidden_size:
            raise QuantError(
                f"an expert on {hidden_size} features needs gate_up [2·I, {hidden_size}] and down "
                f"[{hidden_size}, I], got {expert.gate_up.shape} and {expert.down.shape}"
            )
        view = Expert(matrix(expert.gate_up), matrix(expert.down))
        if gate_up is not None and down is not None:
            key = id(gate_up)
            owner = weakref.ref(gate_up, lambda _: self._experts.pop(key, None))
            self._experts[key] = (owner, weakref.ref(down), view)
        return view
