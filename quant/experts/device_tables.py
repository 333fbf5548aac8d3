"""Numbers that a device and its host tell each other without waiting, through pinned memory."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.experts.lanes import Lane, Mark

ALIGNMENT = 256  # of each tensor, in bytes: as if it had been allocated on its own

Parts = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class DeviceTables:
    """Tensors of the device that change all at once, between two of its tokens.

    They lie in one block, and what they shall be in another of the host's: one copy brings it, so
    that nothing launched ever sees a part of a change, whatever interrupts the host.

    Args:
        parts: Type and shape by name; of zeros to begin with.
        device: Where.
        lane: In whose order they change.

    Attributes:
        device: The tensors by name; they stay where they are.
        host: What they become when it is sent, by name.
    """

    def __init__(self, parts: Parts, device: torch.device, lane: Lane) -> None:
        self._lane = lane
        self._sent: Mark | None = None
        self._is_marked = True
        sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in parts.items()}
        nbytes = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())
        with torch.inference_mode(False):  # or only such code could write to them later
            self._block = torch.zeros(nbytes, dtype=torch.uint8, device=device)
            pinned = device.type == "cuda"
            self._twin = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self.device = _cut(self._block, parts)
        self.host = _cut(self._twin, parts)

    @property
    def is_free(self) -> bool:
        """Whether `host` may be written to without waiting."""
        sent = self._last_sent()
        return sent is None or sent.query()

    def wait(self) -> None:
        """Wait until `host` may be written to: what was sent last must have gone."""
        sent = self._last_sent()
        if sent is not None:
            sent.synchronize()

    def send(self) -> None:
        """Let the device's be what the host's are, for all that is launched from now on."""
        self._is_marked = False
        self._lane.copy(self._block, self._twin)
        self._last_sent()

    def _last_sent(self) -> Mark | None:
        """Behind what was sent last, also if it was interrupted."""
        if not self._is_marked:
            self._sent = self._lane.mark()
            self._is_marked = True
        return self._sent


def _cut(block: Tensor, parts: Parts) -> dict[str, Tensor]:
    """A block's tensors, one after the other, each at a multiple of ALIGNMENT."""
    tensors, begin = {}, 0
    for name, (dtype, shape) in parts.items():
        end = begin + dtype.itemsize * math.prod(shape)
        tensors[name] = block[begin:end].view(dtype).view(shape)
        begin = -(-end // ALIGNMENT) * ALIGNMENT
    return tensors


class Peek:
    """What a tensor of the device held at some place of a lane, asked for there and read later.

    Args:
        source: Of the device; contiguous.
        lane: In whose order it is read.
    """

    def __init__(self, source: Tensor, lane: Lane) -> None:
        self._source, self._lane = source, lane
        self._mark: Mark | None = None
        pinned = source.device.type == "cuda"
        with torch.inference_mode(False):
            self._twin = torch.zeros(source.shape, dtype=source.dtype, pin_memory=pinned)

    @property
    def is_asked(self) -> bool:
        """Whether it was asked for and not taken yet."""
        return self._mark is not None

    @property
    def is_here(self) -> bool:
        """Whether it can be taken without waiting."""
        return self._mark is not None and self._mark.query()

    def ask(self) -> None:
        """Ask for what the tensor holds once all launched so far has run."""
        self._mark = None
        self._lane.copy(self._twin, self._source)
        self._mark = self._lane.mark()

    def take(self) -> Tensor:
        """What was asked for, waited for.

        Raises:
            QuantError: If nothing was.
        """
        if self._mark is None:
            raise QuantError("nothing was asked of the device; ask before taking")
        self._mark.synchronize()
        self._mark = None
        return self._twin.clone()

    def drop(self) -> None:
        """Leave what was asked for."""
        self._mark = None
