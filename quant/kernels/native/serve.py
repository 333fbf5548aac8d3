"""The CPU's side of a GPU's token: a native thread that runs the experts which the GPU asks for."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.kernels.base import ExpertWeights
from quant.kernels.native.backend import NativeBackend
from quant.kernels.native.buffers import matrix
from quant.kernels.native.library import FETCH, Expert, Service, ServiceUse, check_status

Fetch = Callable[[int, Sequence[int]], None]
MAX_ASKED = 16  # experts in a request for one token
MAX_ROWS = 1024  # rows in a request for many
VECTOR_OFFSET = 256  # bytes before the vector of a request or an answer


def _block(hidden_size: int, pinned: bool) -> Tensor:
    return torch.zeros(VECTOR_OFFSET + 4 * hidden_size, dtype=torch.uint8, pin_memory=pinned)


class ServerUse(NamedTuple):
    """What a server has done since its start.

    Attributes:
        num_requests: Layers of single tokens.
        num_experts: Experts run for them.
        seconds: That this took.
        num_rows: Rows of prompts.
        row_seconds: That these took.
    """

    num_requests: int
    num_experts: int
    seconds: float
    num_rows: int
    row_seconds: float


class RowBlocks:
    """Pinned memory for requests of many rows.

    Attributes:
        rows: bfloat16 ``[MAX_ROWS, hidden_size]``, written by the GPU.
        answers: The same shape, the weighted results.
        ids: int64 ``[MAX_ROWS]``, each row's expert.
        weights: float32 ``[MAX_ROWS]``.
    """

    def __init__(self, hidden_size: int, pinned: bool) -> None:
        shape = (MAX_ROWS, hidden_size)
        self.rows = torch.zeros(shape, dtype=torch.bfloat16, pin_memory=pinned)
        self.answers = torch.zeros(shape, dtype=torch.bfloat16, pin_memory=pinned)
        self.ids = torch.zeros(MAX_ROWS, dtype=torch.int64, pin_memory=pinned)
        self.weights = torch.zeros(MAX_ROWS, pin_memory=pinned)


class ExpertServer:
    """Answers requests in pinned memory until it is closed; see src/serve.cpp.

    Args:
        experts: By layer index and id; None for those that it will never be asked for.
        num_layers: Layers of the model.
        hidden_size: Width of a request's vector.
        backend: Its library and instruction set are used.
        pinned: Whether a GPU reads and writes the blocks.
        fetch: Called on the thread with a layer and all experts of a request of which one is not
            there; it places what it can, and what it raises is raised by `check`.

    Attributes:
        uses: int64 ``[num_layers, num_experts]``, how often tokens asked for each.
        request: uint8, written by the GPU.
        answer: uint8, read by the GPU.
        blocks: For requests of many rows.

    Raises:
        QuantError: If an expert is not what the kernels serve, or no thread can be had.
    """

    def __init__(
        self,
        experts: Mapping[int, Sequence[ExpertWeights | None]],
        num_layers: int,
        hidden_size: int,
        backend: NativeBackend,
        *,
        pinned: bool,
        fetch: Fetch | None = None,
    ) -> None:
        self._fetch = fetch
        self._failure: BaseException | None = None
        self.request, self.answer = _block(hidden_size, pinned), _block(hidden_size, pinned)
        self.blocks = blocks = RowBlocks(hidden_size, pinned)
        self._native, path = backend.chosen()
        num_experts = max((len(layer) for layer in experts.values()), default=0)
        self.uses = torch.zeros(num_layers, max(num_experts, 1), dtype=torch.int64)
        self._callback = FETCH() if fetch is None else FETCH(self._bring)
        self._views: dict[tuple[int, int], Expert] = {}
        self._kept: dict[tuple[int, int], ExpertWeights] = {}
        self._tables = {i: (ctypes.c_void_p * num_experts)() for i in experts}
        self._layers = (ctypes.c_void_p * num_layers)()
        for layer_idx, layer in experts.items():
            self._layers[layer_idx] = ctypes.addressof(self._tables[layer_idx])
            for expert_idx, expert in enumerate(layer):
                if expert is not None:
                    self.place(layer_idx, expert_idx, expert)
        service = Service(
            *(self.request.data_ptr(), self.answer.data_ptr(), ctypes.addressof(self._layers)),
            *(blocks.rows.data_ptr(), blocks.answers.data_ptr()),
            *(blocks.ids.data_ptr(), blocks.weights.data_ptr()),
            *(self.uses.data_ptr(), self._callback),
            *(num_layers, hidden_size, num_experts, MAX_ROWS, path),
        )
        self._handle = self._native.handle.native_serve(service)
        if not self._handle:
            raise QuantError(
                "no thread can be started for the experts on the CPU; free some memory"
            )

    def place(self, layer_idx: int, expert_idx: int, expert: ExpertWeights) -> None:
        """Say where an expert is. The caller sees to it that nobody asks for it meanwhile."""
        view = Expert(matrix(expert.gate_up), matrix(expert.down))
        key = (layer_idx, expert_idx)
        self._tables[layer_idx][expert_idx] = ctypes.addressof(view)
        self._views[key], self._kept[key] = view, expert

    def knows(self, layer_idx: int, expert_idx: int) -> bool:
        """Whether it was said where an expert is."""
        return (layer_idx, expert_idx) in self._kept

    def forget(self, layer_idx: int, expert_idx: int) -> None:
        """Let go of an expert. The caller sees to it that nobody asks for it any more."""
        self._tables[layer_idx][expert_idx] = None
        key = (layer_idx, expert_idx)
        self._views.pop(key, None)
        self._kept.pop(key, None)

    def _bring(self, layer_idx: int, ids: Any, num_ids: int) -> int:
        """Ask for experts; what goes wrong must not pass through the native thread."""
        try:
            if self._fetch is not None:
                self._fetch(layer_idx, ids[:num_ids])
        except BaseException as exc:
            self._failure = exc
            return 1
        return 0

    def wake(self) -> None:
        """Say that requests may come soon; without it the first waits for some milliseconds."""
        self._native.handle.native_serve_wake(self._handle)

    def check(self) -> None:
        """Raise what a request has failed with.

        Raises:
            QuantError: Once for each failure seen.
        """
        status = self.answer[4:8].view(torch.int32)
        failed = int(status)
        if failed:
            status.zero_()
            failure, self._failure = self._failure, None
            if failure is not None:
                raise QuantError(str(failure)) from failure
            check_status(failed)

    @property
    def use(self) -> ServerUse:
        """What it has done."""
        found = ServiceUse()
        self._native.handle.native_serve_use(self._handle, found)
        return ServerUse(
            *(found.num_requests, found.num_experts, found.busy_ns * 1e-9),
            *(found.num_rows, found.rows_ns * 1e-9),
        )

    def close(self) -> None:
        """Stop the thread. No request may be under way."""
        if self._handle:
            self._native.handle.native_serve_stop(self._handle)
            self._handle = None

    def __del__(self) -> None:
        """The thread uses this object's memory: it ends first."""
        if getattr(self, "_handle", None):
            self.close()
