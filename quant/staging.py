"""Quantizing on a GPU: rows come through pinned buffers, and codes go back to pinned memory.

Threads read ahead into staging buffers; the caller sends what is read to the device, where the
format's own operations run on a stream of their own, and takes a result while the next ones are
made. For a GPU on PCIe 5 the 43.7 GB of the 21B model are 0.8 s on the bus, about as long in the
format's operations and 7 s of writing 11.7 GB to the page cache: a fused kernel would gain nothing.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quant.errors import DeviceError
from quant.formats.base import Format
from quant.tensor import QuantTensor

STAGE_NBYTES = 8 << 20  # of rows; what is made of them on the device takes 12 times as much
NUM_STAGES = 6
NUM_READERS = 3  # one reads 6 to 18 GB/s from the page cache
MAX_PINNED_NBYTES = 16 << 20  # a larger result goes to plain memory, and is waited for
ROW_UNIT = 64  # rows that are cut together: what any layout interleaves divides it


@dataclass(frozen=True, slots=True)
class RowSource:
    """A matrix that can be read by ranges of rows.

    Attributes:
        shape: ``(out_features, in_features)``.
        dtype: Of what fill writes.
        fill: Called with the first row, the one after the last, and memory of that size, on any
            thread; what it raises is raised by `StagedWeight.launch`.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    fill: Callable[[int, int, memoryview], None]

    @property
    def rows_at_once(self) -> int:
        """Rows that a staging buffer holds; 0 if it is too small for this width."""
        return STAGE_NBYTES // (self.shape[1] * self.dtype.itemsize) // ROW_UNIT * ROW_UNIT


class _Stage:
    """A buffer of the host, pinned for a GPU, and when the device has read it."""

    def __init__(self, is_pinned: bool) -> None:
        self.buffer = torch.empty(STAGE_NBYTES, dtype=torch.uint8, pin_memory=is_pinned)
        self.sent: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Return once it may be written to."""
        if self.sent is not None:
            self.sent.synchronize()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows that are quantized at once.

    Attributes:
        source_idx: Which of a weight's sources they are of.
        first: Their first row there.
        stop: The one after the last.
        target: Their first row in the weight.
        read: The stage that holds them, once they are read.
    """

    source: RowSource
    source_idx: int
    first: int
    stop: int
    target: int
    read: "Future[_Stage]"

    def rows(self, stage: _Stage) -> Tensor:
        """The rows in a stage, ``[stop - first, in_features]``."""
        width, dtype = self.source.shape[1], self.source.dtype
        nbytes = (self.stop - self.first) * width * dtype.itemsize
        return stage.buffer[:nbytes].view(dtype).view(-1, width)


class StagedQuantizer:
    """Quantizes matrices on a device, several at a time. Use as a context manager.

    On the CPU it does the same without pinned memory and streams.

    Args:
        device: Where.
        is_kept: Whether results stay in memory: they are then not pinned.

    Raises:
        DeviceError: On entering, if the device or pinned memory cannot be had.
    """

    def __init__(self, device: torch.device, *, is_kept: bool = False) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.pins_results = self.is_cuda and not is_kept
        self._free: queue.SimpleQueue[_Stage | None] = queue.SimpleQueue()
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._order = threading.Lock()
        self._is_closed = False
        self._threads: list[threading.Thread] = []
        self._stream: torch.cuda.Stream | None = None

    def __enter__(self) -> "StagedQuantizer":
        with device_errors():
            if self.is_cuda:
                self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            for _ in range(NUM_STAGES):
                self._free.put(_Stage(self.is_cuda))
        num_readers = min(NUM_READERS, torch.get_num_threads())
        for i in range(num_readers):
            thread = threading.Thread(target=self._read, name=f"read-{i}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_closed = True
        self._chunks.put(None)  # one thread waits for a chunk or, with a chunk, for a stage
        self._free.put(None)
        for thread in self._threads:
            thread.join()
        with suppress(RuntimeError):  # of a device that has failed already
            if self._stream is not None:
                self._stream.synchronize()
                torch.cuda.empty_cache()

    def _read(self) -> None:
        """Read chunks, each into the first stage that is free, until the end."""
        while True:
            with self._order:  # an early chunk must not wait for a stage that a later one has
                chunk = None if self._is_closed else self._chunks.get()
                stage = None if self._is_closed or chunk is None else self._free.get()
            if chunk is None or stage is None:
                return
            try:
                with device_errors():
                    stage.wait()
                memory = chunk.rows(stage).view(torch.uint8).view(-1).numpy().data
                chunk.source.fill(chunk.first, chunk.stop, memory)
            except BaseException as exc:
                self._free.put(stage)
                chunk.read.set_exception(exc)
            else:
                chunk.read.set_result(stage)

    def start(self, weight_format: Format, sources: Sequence[RowSource]) -> "StagedWeight":
        """Begin to read a weight that is made of sources, one below the other.

        Args:
            weight_format: Which format it gets; its parts must have the output rows first.
            sources: Each with `RowSource.rows_at_once` above 0, all of one width.
        """
        chunks, target = [], 0
        for source_idx, source in enumerate(sources):
            num_rows, step = source.shape[0], source.rows_at_once
            for first in range(0, num_rows, step):
                stop = min(first + step, num_rows)
                chunks.append(_Chunk(source, source_idx, first, stop, target + first, Future()))
            target += num_rows
        for chunk in chunks:
            self._chunks.put(chunk)
        return StagedWeight(self, weight_format, (target, sources[0].shape[1]), chunks)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within: what is launched comes after what this quantizer has launched before."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def mark(self) -> "torch.cuda.Event | None":
        """What has happened once all that is launched is done; None on the CPU, where it is."""
        return None if self._stream is None else self._stream.record_event()

    def give_back(self, stage: _Stage) -> None:
        """Let a stage be filled again once the device has read it."""
        self._free.put(stage)


class StagedWeight:
    """One weight on its way: `StagedQuantizer.start`, then `launch`, then `result`."""

    def __init__(
        self,
        quantizer: StagedQuantizer,
        weight_format: Format,
        shape: tuple[int, int],
        chunks: Sequence[_Chunk],
    ) -> None:
        self._quantizer = quantizer
        self._format = weight_format
        self._shape = shape
        self._chunks = chunks
        self._parts: dict[str, Tensor] = {}
        self._largest = torch.empty(0)
        self._done: torch.cuda.Event | None = None

    def launch(self) -> None:
        """Send the rows to the device as they are read, have them quantized and sent back.

        Raises:
            DeviceError: If the device fails.
            Exception: What a source raised.
        """
        quantizer = self._quantizer
        largest = []
        with device_errors():
            self._make_room()
        for chunk in self._chunks:
            stage = chunk.read.result()
            try:
                with device_errors(), quantizer.on_stream():
                    rows = chunk.rows(stage).to(quantizer.device, non_blocking=True)
                    stage.sent = quantizer.mark()
                    tensor, most = self._format.quantize_unchecked(rows)
                    largest.append(most)
                    for name, part in tensor.parts.items():
                        self._send_back(name, part, chunk.target)
            finally:
                quantizer.give_back(stage)
        with device_errors(), quantizer.on_stream():
            self._largest.copy_(torch.stack(largest), non_blocking=self._largest.is_pinned())
            self._done = quantizer.mark()

    def _make_room(self) -> None:
        specs = self._format.part_specs(self._shape)
        nbytes = sum(spec.nbytes for spec in specs.values())
        is_pinned = self._quantizer.pins_results and nbytes <= MAX_PINNED_NBYTES
        self._parts = {
            name: torch.empty(spec.shape, dtype=spec.dtype, pin_memory=is_pinned)
            for name, spec in specs.items()
        }
        self._largest = torch.empty(len(self._chunks), pin_memory=self._quantizer.is_cuda)

    def _send_back(self, name: str, part: Tensor, first_row: int) -> None:
        whole = self._parts[name]
        at = first_row * len(whole) // self._shape[0]
        whole[at : at + len(part)].copy_(part, non_blocking=whole.is_pinned())

    def result(self) -> tuple[QuantTensor, list[float]]:
        """The weight, and the largest magnitude of each source for `Format.check_largest`.

        Raises:
            DeviceError: If the device fails.
        """
        with device_errors():
            if self._done is not None:
                self._done.synchronize()
        source_of = torch.tensor([chunk.source_idx for chunk in self._chunks])
        largest = [
            float(self._largest[source_of == i].max()) for i in range(int(source_of[-1]) + 1)
        ]
        weight_format = self._format
        tensor = QuantTensor(weight_format.name, weight_format.layout, self._shape, self._parts)
        return tensor, largest


@contextmanager
def device_errors() -> Iterator[None]:
    """Within: errors of a device become `DeviceError`, with their first sentence.

    Raises:
        DeviceError: If torch reports one.
    """
    try:
        yield
    except DeviceError:
        raise
    except RuntimeError as exc:
        lines = str(exc).splitlines() or [type(exc).__name__]
        raise DeviceError(lines[0].split(". ")[0]) from exc
