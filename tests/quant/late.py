"""A device that does what was begun only when it is told to, and an interrupt between two lines."""

import sys
from collections import deque
from collections.abc import Callable
from random import Random

from quant.experts.lanes import Lanes


class LateMark:
    """A place in a lane; to wait for it lets the device work on, in any order that is allowed."""

    def __init__(self, device: "LateDevice") -> None:
        self.device, self.is_over = device, False

    def query(self) -> bool:
        return self.is_over

    def synchronize(self) -> None:
        assert self.is_over or self.device.may_wait, "somebody waits for the device"
        while not self.is_over:
            lanes = [self.device.main, self.device.side]
            self.device.random.shuffle(lanes)
            assert any(lane.step() for lane in lanes), "the device waits for itself"


class LateLane:
    """Work in its order, none of it done before `step`."""

    def __init__(self, device: "LateDevice") -> None:
        self.device = device
        self.begun: deque[Callable[[], bool]] = deque()

    def call(self, act: Callable[[], object]) -> None:
        self.begun.append(lambda: act() or True)

    def copy(self, target, source) -> None:
        self.call(lambda: target.copy_(source) is None)

    def mark(self) -> LateMark:
        mark = LateMark(self.device)
        self.call(lambda: setattr(mark, "is_over", True))
        return mark

    def wait_for(self, mark: LateMark) -> None:
        self.begun.append(mark.query)

    def step(self) -> bool:
        """Do what comes next, unless there is nothing or it has to wait."""
        if not self.begun or not self.begun[0]():
            return False
        self.begun.popleft()
        return True


class LateDevice:
    """Two lanes of one device.

    Attributes:
        may_wait: Whether anybody may wait for it.
    """

    def __init__(self, random: Random) -> None:
        self.random, self.may_wait = random, True
        self.main, self.side = LateLane(self), LateLane(self)
        self.lanes = Lanes(self.main, self.side)

    def end(self) -> None:
        """Do all that was begun."""
        for lane in (self.side, self.main):
            lane.mark().synchronize()


def interrupt(act: Callable[[], object], after: int, *names: str) -> bool:
    """Press Ctrl-C before a line of files of these names is run, so many lines later.

    Returns:
        Whether it came to that.
    """
    left = after

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.endswith(names):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(before)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
