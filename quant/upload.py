"""From mapped files to a GPU: threads fill pinned buffers, each one while its other is sent."""

import queue
import threading
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

STAGE_NBYTES = 16 << 20
NUM_THREADS = 4  # one copies 8 to 17 GB/s from the page cache, and each has two stages
MAX_WAITING = 32  # pieces; what they are of stays in memory until they are copied
ALIGNMENT = 256  # of pieces in a stage

Read = Callable[[memoryview, Tensor], bool]
Piece = tuple[Tensor, Tensor, "torch.cuda.Event | None"]  # where to, what, and not before


class Uploader:
    """Copies host tensors to a CUDA device. Use as a context manager; at its end all have arrived.

    Sources must not change and targets must be kept until then.

    Args:
        device: A CUDA device, or the CPU, where a copy is just a copy.
        read: Reads a piece of a mapped file into a stage and says so, see
            `quant.copy.QuantizedCopy.read_into`. Copying what is mapped would cost a fault every
            few pages.
        is_staged: Whether threads and stages are used; on the CPU only tests do.
    """

    def __init__(
        self, device: torch.device, read: Read | None = None, *, is_staged: bool | None = None
    ) -> None:
        self._device = device
        self._read = read
        self._is_staged = device.type == "cuda" if is_staged is None else is_staged
        self._pieces: queue.Queue[Piece | None] = queue.Queue(MAX_WAITING)
        self._lanes: list[_Lane] = []

    def __enter__(self) -> "Uploader":
        if self._is_staged:
            num_threads = max(1, min(NUM_THREADS, torch.get_num_threads()))
            self._lanes = [
                _Lane(self._device, self._pieces, self._read) for _ in range(num_threads)
            ]
            for lane in self._lanes:
                lane.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for lane in self._lanes:
                lane.is_stopped = True
        for _lane in self._lanes:
            self._pieces.put(None)
        for lane in self._lanes:
            lane.join()
        errors = [lane.error for lane in self._lanes if lane.error is not None]
        self._lanes.clear()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if errors and kind is None:
            raise errors[0]

    def __call__(self, target: Tensor, source: Tensor) -> None:
        """Copy source into target, a contiguous tensor of its size on the device.

        Raises:
            Exception: What went wrong with an earlier one.
        """
        if not self._lanes or source.device.type != "cpu":
            target.copy_(source)
            return
        self._check()
        ready = None
        if target.is_cuda:  # its memory may have been another tensor's that is still being read
            ready = torch.cuda.current_stream(self._device).record_event()
        to = target.view(-1).view(torch.uint8)
        data = source.contiguous().view(-1).view(torch.uint8)
        for first in range(0, len(data), STAGE_NBYTES):
            last = first + STAGE_NBYTES
            self._pieces.put((to[first:last], data[first:last], ready))

    def wait(self) -> None:
        """Return once all that was given has arrived, and the bus is free.

        Raises:
            Exception: What went wrong.
        """
        if self._lanes:
            self._pieces.join()
            self._check()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _check(self) -> None:
        for lane in self._lanes:
            if lane.error is not None:
                raise lane.error

    def move(self, tensor: Tensor) -> Tensor:
        """A tensor on the device that is a copy once the uploader is left."""
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        self(target, tensor)
        return target


class _Lane(threading.Thread):
    """A thread that copies pieces through two stages of its own.

    Args:
        device: Where to.
        pieces: What, until a None.
        read: See `Uploader`.

    Attributes:
        error: What has gone wrong; pieces after it are dropped.
        is_stopped: Set to drop all that is to come.
    """

    def __init__(
        self, device: torch.device, pieces: "queue.Queue[Piece | None]", read: Read | None
    ) -> None:
        super().__init__(name="upload", daemon=True)
        self.error: BaseException | None = None
        self.is_stopped = False
        self._device = device
        self._pieces = pieces
        self._read = read
        self._stages: list[Tensor] = []
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._stream: torch.cuda.Stream | None = None
        self._turn = self._used = 0

    def run(self) -> None:
        """Copy pieces until there are no more."""
        try:
            self._open()
        except BaseException as exc:
            self.error = exc
        while (piece := self._pieces.get()) is not None:
            try:
                if self.error is None and not self.is_stopped:
                    self._copy(*piece)
            except BaseException as exc:
                self.error = exc
            finally:
                self._pieces.task_done()

    def _open(self) -> None:
        """Get the stages; to pin them takes some milliseconds each."""
        is_cuda = self._device.type == "cuda"
        if is_cuda:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stages = [
            torch.empty(STAGE_NBYTES, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(2)
        ]

    def _copy(self, target: Tensor, source: Tensor, ready: "torch.cuda.Event | None") -> None:
        if self._used + len(source) > STAGE_NBYTES:
            self._next_stage()
        stage = self._stages[self._turn][self._used : self._used + len(source)]
        self._used += -(-len(source) // ALIGNMENT) * ALIGNMENT
        if self._read is None or not self._read(stage.numpy().data, source):
            # numpy copies on this thread alone and without the interpreter's lock; torch would
            # wake a team of threads for each.
            np.copyto(stage.numpy(), source.numpy())
        stream = self._stream
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            if stream is not None and ready is not None:
                stream.wait_event(ready)
            target.copy_(stage, non_blocking=stream is not None)

    def _next_stage(self) -> None:
        """Take the other buffer once what was last put into it has been sent."""
        if self._stream is not None:
            self._sent[self._turn] = self._stream.record_event()
        self._turn = 1 - self._turn
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()
        self._used = 0
