"""From mapped files to a GPU: through two pinned buffers, one filled while the other is sent.

A thread of its own does it, so that a program can do other things until somebody needs the weights.
"""

import threading
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from quant.errors import QuantError

STAGE_NBYTES = 32 << 20
ALIGNMENT = 256  # of pieces in a stage


class Uploader:
    """Copies host tensors to a CUDA device. Use as a context manager; at its end all have arrived.

    Targets must be kept until then.

    Args:
        device: A CUDA device, or the CPU, where a copy is just a copy.
        is_staged: Whether the buffers are used; on the CPU only tests do.
    """

    def __init__(self, device: torch.device, *, is_staged: bool | None = None) -> None:
        self._device = device
        self._stages: list[Tensor] = []
        self._sent: list[torch.cuda.Event] = []
        is_cuda = device.type == "cuda"
        if is_cuda if is_staged is None else is_staged:
            self._stages = [
                torch.empty(STAGE_NBYTES, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(2)
            ]
        if is_cuda:
            self._sent = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._used = 0

    def __enter__(self) -> "Uploader":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._stages.clear()

    def wait(self) -> None:
        """Return once all that was given has arrived, and the bus is free."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def __call__(self, target: Tensor, source: Tensor) -> None:
        """Copy source into target, a contiguous tensor of its size on the device."""
        if not self._stages or source.device.type != "cpu":
            target.copy_(source)
            return
        to = target.view(-1).view(torch.uint8)
        data = source.contiguous().view(-1).view(torch.uint8)
        for first in range(0, len(data), STAGE_NBYTES):
            piece = data[first : first + STAGE_NBYTES]
            if self._used + len(piece) > STAGE_NBYTES:
                self._next_stage()
            stage = self._stages[self._turn][self._used : self._used + len(piece)]
            stage.copy_(piece)  # by all of torch's threads
            to[first : first + len(piece)].copy_(stage, non_blocking=bool(self._sent))
            self._used += -(-len(piece) // ALIGNMENT) * ALIGNMENT

    def _next_stage(self) -> None:
        """Take the other buffer once what was last put into it has been sent."""
        if self._sent:
            self._sent[self._turn].record(torch.cuda.current_stream(self._device))
        self._turn = 1 - self._turn
        if self._sent:
            self._sent[self._turn].synchronize()
        self._used = 0

    def move(self, tensor: Tensor) -> Tensor:
        """A tensor on the device that is a copy once the uploader is left."""
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        self(target, tensor)
        return target


Put = Callable[[Tensor, Tensor], None]  # a target on the device and what is to be there


class _Stopped(Exception):
    """Nobody wants the rest any more."""


class BackgroundUpload:
    """Weights on their way to a device. Nobody may read them there before `wait` has returned.

    What the thread needs is allocated when this is made, so a lack of memory is told then.

    Args:
        device: Where they go.
        fill: Called once, on the thread, with what brings a host tensor to a target on the device
            (of its size, contiguous). What it holds on to is let go of afterwards.
        nbytes: That it will bring.
        check: Called at the end; raises if what was read cannot be used.
        is_staged: See `Uploader`.

    Attributes:
        nbytes: As given.
        done_nbytes: Brought so far.
    """

    def __init__(
        self,
        device: torch.device,
        fill: Callable[[Put], None],
        nbytes: int,
        check: Callable[[], None] = lambda: None,
        *,
        is_staged: bool | None = None,
    ) -> None:
        self.nbytes, self.done_nbytes = nbytes, 0
        self._error: BaseException | None = None
        self._is_stopped = False
        self._ended = threading.Event()
        uploader = Uploader(device, is_staged=is_staged)
        self._thread = threading.Thread(
            target=self._run, args=(uploader, fill, check), name="upload", daemon=True
        )
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Return once all weights are on the device; False if they are not after timeout seconds.

        Raises:
            QuantError: If they cannot be read, or it was stopped; from then on, always.
            RuntimeError: torch's, if they could not be sent; likewise.
        """
        if not self._ended.wait(timeout):
            return False
        if self._error is not None:
            raise self._error.with_traceback(None)  # each time would add to it
        return True

    def stop(self) -> None:
        """End it where it is; returns once nothing is written any more. Without effect later."""
        self._is_stopped = True
        self._thread.join()

    def _run(
        self, uploader: Uploader, fill: Callable[[Put], None], check: Callable[[], None]
    ) -> None:
        def put(target: Tensor, source: Tensor) -> None:
            if self._is_stopped:
                raise _Stopped
            uploader(target, source)
            self.done_nbytes += source.nbytes

        try:
            with uploader:
                fill(put)
            check()
        except _Stopped:
            self._error = QuantError("the weights were let go of before they were on the device")
        except BaseException as exc:
            exc.add_note("on the thread that uploads: " + traceback.format_exc())
            self._error = exc.with_traceback(None)  # its frames hold on to all weights
        finally:
            del fill, check, put
            self._ended.set()
