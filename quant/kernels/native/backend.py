"""The native backend: checks its arguments, then one call into C++ for a product or a layer."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import ExpertWeights
from quant.kernels.native.buffers import DTYPES, Descriptors, check_activations
from quant.kernels.native.library import Layer, Library, check_status, find_library, library
from quant.tensor import QuantTensor

SERVED = ("nf4", "fp4", "int8")
# Scratch grows with the tokens of a call; beyond this many, one more unpacking costs nothing.
MAX_TOKENS_PER_CALL = 2048


class NativeBackend:
    """nf4, fp4 and int8 on CPUs, with activations quantized to int8 per block of 64.

    The relative error of a product stays under 1 % (rounding of activations 0.6 %, of the 4-bit
    levels 0.5 %), for float32 as for bfloat16 activations. Weights stay in their format's layout.

    Args:
        path: Instruction set, one of ``paths()``; by default the fastest.
        native: A loaded library; by default the installed one.
    """

    name = "native"

    def __init__(self, path: str = "auto", native: Library | None = None) -> None:
        self._path = path
        self._given = native
        self._views = Descriptors()

    def _library(self) -> Library:
        return library() if self._given is None else self._given

    def paths(self) -> tuple[str, ...]:
        """Instruction sets that can be chosen on this machine, fastest first."""
        return self._library().paths

    def chosen(self) -> tuple[Library, int]:
        """The library, and the index of the instruction set in its calls."""
        native = self._library()
        return native, self._path_idx(native)

    def _path_idx(self, native: Library) -> int:
        if self._path == "auto":
            return -1
        if self._path not in native.paths:
            raise QuantError(
                f'no instruction set "{self._path}" here; there are auto, {", ".join(native.paths)}'
            )
        return native.paths.index(self._path)

    def why_not(self, format_name: str, device: torch.device) -> str:
        """It serves the quantized formats on CPUs, where a compiler was there at install."""
        if device.type != "cpu":
            return "the native kernels run on the CPU"
        if format_name not in SERVED:
            return f"the native kernels do not serve {format_name} weights"
        found = find_library() if self._given is None else self._given
        return found if isinstance(found, str) else ""

    def prepare(self, tensor: QuantTensor) -> QuantTensor:
        """The layouts of the formats are what these kernels read."""
        codes = tensor.parts.get("codes")
        if tensor.format == "int8" and codes is not None and bool((codes == -128).any()):
            raise QuantError("an int8 weight has the code -128; codes go from -127 to 127")
        return tensor

    def matmul(self, hidden_states: Tensor, weight: QuantTensor) -> Tensor:
        """See `KernelBackend.matmul`.

        Raises:
            QuantError: If a buffer is not what it should be or an activation is not finite.
        """
        native = self._library()
        view = self._views.matrix(weight)
        check_activations(hidden_states, weight.shape[1])
        rows = hidden_states.contiguous()
        out = torch.empty((len(rows), weight.shape[0]), dtype=rows.dtype)
        path, dtype = self._path_idx(native), DTYPES[rows.dtype]
        for begin in range(0, len(rows), MAX_TOKENS_PER_CALL):
            some, to = rows[begin:], out[begin:]
            num_tokens = min(len(some), MAX_TOKENS_PER_CALL)
            check_status(
                native.handle.native_matmul(
                    path, view, some.data_ptr(), dtype, num_tokens, to.data_ptr()
                )
            )
        return out

    def routed_experts(
        self,
        hidden_states: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: Sequence[ExpertWeights],
        shared: Sequence[ExpertWeights] = (),
    ) -> Tensor:
        """See `KernelBackend.routed_experts`.

        Args:
            hidden_states: ``[num_tokens, hidden_size]``.
            topk_ids: int64 ``[num_tokens, num_experts_per_tok]``, distinct in a row.
            topk_weights: float32 ``[num_tokens, num_experts_per_tok]``.
            experts: The layer's experts by id.
            shared: Experts that every token goes through, with weight 1, in the same call.

        Raises:
            QuantError: If a buffer is not what it should be, an id names no expert, or an
                activation is not finite.
        """
        native = self._library()
        if not experts:
            raise QuantError("a layer of no experts cannot route tokens")
        hidden_size = experts[0].down.shape[0]
        check_activations(hidden_states, hidden_size)
        rows = hidden_states.contiguous()
        ids, weights = _check_routing(len(rows), topk_ids, topk_weights)
        table, views = self._expert_table(ids, experts, hidden_size)
        shared_views = [self._views.expert(expert, hidden_size) for expert in shared]
        shared_table = (ctypes.c_void_p * len(shared))(*map(ctypes.addressof, shared_views))
        out = torch.empty_like(rows)
        for begin in range(0, len(rows), MAX_TOKENS_PER_CALL):
            layer = Layer(
                *(rows[begin:].data_ptr(), out[begin:].data_ptr()),
                *(ids[begin:].data_ptr(), weights[begin:].data_ptr()),
                *(ctypes.addressof(table), ctypes.addressof(shared_table)),
                *(min(len(rows) - begin, MAX_TOKENS_PER_CALL), hidden_size, ids.shape[1]),
                *(len(experts), len(shared), DTYPES[rows.dtype], self._path_idx(native)),
            )
            check_status(native.handle.native_layer(layer))
        del views, shared_views  # alive until here: the tables hold bare addresses
        return out

    def _expert_table(
        self, ids: Tensor, experts: Sequence[ExpertWeights], hidden_size: int
    ) -> tuple[ctypes.Array[ctypes.c_void_p], list[object]]:
        table = (ctypes.c_void_p * len(experts))()
        views: list[object] = []
        for idx in set(ids.flatten().tolist()):
            if not 0 <= idx < len(experts):
                raise QuantError(f"topk_ids has {idx}, and there are {len(experts)} experts")
            view = self._views.expert(experts[idx], hidden_size)
            views.append(view)
            table[idx] = ctypes.addressof(view)
        return table, views


def _check_routing(
    num_tokens: int, topk_ids: Tensor, topk_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Routing in the dtypes that C++ reads, contiguous."""
    if topk_ids.dim() != 2 or len(topk_ids) != num_tokens or topk_ids.shape != topk_weights.shape:
        raise QuantError(
            f"topk_ids and topk_weights must both be [{num_tokens}, num_experts_per_tok], "
            f"got {list(topk_ids.shape)} and {list(topk_weights.shape)}"
        )
    if topk_ids.dtype != torch.int64 or topk_weights.dtype != torch.float32:
        raise QuantError(
            f"topk_ids must be int64 and topk_weights float32, "
            f"got {topk_ids.dtype} and {topk_weights.dtype}"
        )
    return topk_ids.cpu().contiguous(), topk_weights.cpu().contiguous()


def set_num_threads(num_threads: int) -> None:
    """Use so many threads in native calls from now on, the caller's included.

    Where the system starts no more, it is as many as there are; see `num_threads`.

    Raises:
        QuantError: If the number is below 1 or there is no library.
    """
    if num_threads < 1:
        raise QuantError(f"num_threads must be at least 1, got {num_threads}")
    library().handle.native_set_num_threads(num_threads)


def num_threads() -> int:
    """Threads that native calls use."""
    return int(library().handle.native_num_threads())


def read_probe(buffer: Tensor) -> int:
    """Read a contiguous CPU tensor once on all threads; returns a checksum.

    What it takes is the least that any kernel reading the same bytes can take.
    """
    if not buffer.is_contiguous() or buffer.device.type != "cpu":
        raise QuantError("the probe reads a contiguous tensor on the CPU")
    return int(library().handle.native_read(buffer.data_ptr(), buffer.nbytes))
