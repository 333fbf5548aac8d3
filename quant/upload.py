"""From mapped files to a GPU: through two pinned buffers, one filled while the other is sent."""

import torch
from torch import Tensor

STAGE_NBYTES = 32 << 20


class Uploader:
    """Copies host tensors to a CUDA device. Use as a context manager; at its end all have arrived.

    Args:
        device: A CUDA device, or the CPU, where a copy is just a copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stages: list[Tensor] = []
        self._sent: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._stages = [
                torch.empty(STAGE_NBYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
            ]
            self._sent = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._used = 0

    def __enter__(self) -> "Uploader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._stages:
            torch.cuda.synchronize(self._device)
        self._stages.clear()

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
            stage.copy_(piece)
            to[first : first + len(piece)].copy_(stage, non_blocking=True)
            self._used += len(piece)

    def _next_stage(self) -> None:
        """Take the other buffer once what was last put into it has been sent."""
        self._sent[self._turn].record()
        self._turn = 1 - self._turn
        self._sent[self._turn].synchronize()
        self._used = 0

    def move(self, tensor: Tensor) -> Tensor:
        """A copy on the device."""
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        self(target, tensor)
        return target
