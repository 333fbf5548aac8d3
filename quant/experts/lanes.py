"""Copies that are begun in an order and end later: in a GPU's own order, and beside it.

Nothing here waits unless it says so. On a CPU a copy has ended when it was begun.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A place in a lane's order."""

    def query(self) -> bool:
        """Whether all before it has ended."""
        ...

    def synchronize(self) -> None:
        """Wait until all before it has ended."""
        ...


class Lane(Protocol):
    """Work that a device does in the order in which it was begun."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Begin to copy between the device's memory and pinned memory, or within the former.

        Both must be kept, and the source left as it is, until the copy has ended.
        """
        ...

    def mark(self) -> Mark:
        """The place behind all that was begun so far."""
        ...

    def wait_for(self, mark: Any) -> None:
        """Let what is begun from now on wait for a mark of another lane."""
        ...


@dataclass(frozen=True, slots=True)
class Lanes:
    """The two orders of one device.

    Attributes:
        main: In which tokens are computed.
        side: That runs beside it.
    """

    main: Lane
    side: Lane


class StreamLane:
    """A CUDA stream.

    Args:
        device: Whose it is.
        stream: Which; None for the one that is current whenever something is begun.
    """

    def __init__(self, device: torch.device, stream: "torch.cuda.Stream | None" = None) -> None:
        self._device, self._stream = device, stream

    @property
    def _now(self) -> torch.cuda.Stream:
        return self._stream or torch.cuda.current_stream(self._device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Lane`."""
        with torch.cuda.stream(self._now):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        """See `Lane`."""
        event: Mark = self._now.record_event()
        return event

    def wait_for(self, mark: Any) -> None:
        """See `Lane`."""
        self._now.wait_event(mark)


class _Ended:
    """A place before which nothing is under way."""

    def query(self) -> bool:
        """See `Mark`."""
        return True

    def synchronize(self) -> None:
        """See `Mark`."""


class DirectLane:
    """The CPU itself."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Lane`."""
        target.copy_(source)

    def mark(self) -> Mark:
        """See `Lane`."""
        return _Ended()

    def wait_for(self, mark: Any) -> None:
        """See `Lane`."""


def lanes_of(device: torch.device) -> Lanes:
    """The lanes of a device."""
    if device.type != "cuda":
        return Lanes(DirectLane(), DirectLane())
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return Lanes(StreamLane(device), StreamLane(device, side))
