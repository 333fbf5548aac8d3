"""One thread on which the model is loaded, runs and is closed; the main thread keeps the terminal.

The terminal stays answerable whatever a kernel does, and what the engine keeps per thread (number
of threads, CUDA stream, inference mode) is set where it is used.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from erniechat.events import StreamEvent, TurnEnd

ResultT = TypeVar("ResultT")


class Task(Generic[ResultT]):
    """A call under way on another thread."""

    def __init__(self, call: Callable[[], ResultT]) -> None:
        self._call = call
        self._done = threading.Event()
        self._result: ResultT | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call on this thread, and keep what it returns or raises."""
        try:
            self._result = self._call()
        except BaseException as exc:
            self._error = exc
        finally:
            self._done.set()

    def wait(self, timeout: float) -> bool:
        """Whether the call has ended, after waiting for at most timeout seconds."""
        return self._done.wait(timeout)

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return self._done.is_set()

    def result(self) -> ResultT:
        """What the call returned; raises what it raised. Only when done."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # done: it is a ResultT

    @property
    def failed(self) -> bool:
        """Whether the call has ended with an exception."""
        return self.done and self._error is not None


class Reply:
    """A reply under way: events arrive on one thread and are taken on another."""

    def __init__(self, events: Callable[[], Iterator[StreamEvent]], stop: Callable[[], None]):
        self._events = events
        self._stop = stop
        self._arrived: deque[StreamEvent] = deque()
        self._cancelled = False
        self.task: Task[None] = Task(self._pump)

    def _pump(self) -> None:
        for event in self._events():
            self._arrived.append(event)
            if self._cancelled and not isinstance(event, TurnEnd):
                self._stop()  # again: an engine may clear an early request when it starts

    def cancel(self) -> None:
        """Ask the engine to stop; the rest of the events still arrives."""
        self._cancelled = True
        self._stop()

    def take(self, timeout: float) -> list[StreamEvent]:
        """The events that have arrived, after waiting timeout seconds or until the end."""
        self.task.wait(timeout)
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    @property
    def done(self) -> bool:
        """Whether all events have arrived and were taken."""
        return self.task.done and not self._arrived

    def check(self) -> None:
        """Raise what the engine raised, once done."""
        self.task.result()


class Worker:
    """A daemon thread that makes calls one after the other."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Task[object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()

    @property
    def is_wanted(self) -> bool:
        """Whether a call waits for the one under way."""
        return not self._tasks.empty()

    def submit(self, call: Callable[[], ResultT]) -> Task[ResultT]:
        """Make a call as soon as those before it have ended."""
        task = Task(call)
        self._tasks.put(task)  # type: ignore[arg-type]  # results are read through `task`
        return task

    def start(self, events: Callable[[], Iterator[StreamEvent]], stop: Callable[[], None]) -> Reply:
        """Start a reply."""
        reply = Reply(events, stop)
        self._tasks.put(reply.task)  # type: ignore[arg-type]  # results are read through `reply`
        return reply

    def finish(self, timeout: float) -> bool:
        """End the thread after its calls; False if it is still busy after timeout seconds."""
        self._tasks.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()
