"""From mapped files to a GPU: through two pinned buffers, one filled while the other is sent."""

import torch
from torch import Tensor

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
            self._sent[self._turn].record()
        self._turn = 1 - self._turn
        if self._sent:
            self._sent[self._turn].synchronize()
        self._used = 0

    def move(self, tensor: Tensor) -> Tensor:
        """A tensor on the device that is a copy once the uploader is left."""
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        self(target, tensor)
        return target
