"""Waiting for weights that are on their way to a GPU: how far they are is told, and it can end."""

from collections.abc import Callable, Generator

from erniechat.events import Progress
from erniechat.model.decoder import Decoder

POLL_SECONDS = 0.05


def arrival_events(
    decoder: Decoder, is_stopped: Callable[[], bool]
) -> Generator[Progress, None, bool]:
    """How far the weights of a model are, until they are there or nobody waits any more.

    Args:
        decoder: Runs them.
        is_stopped: Asked now and then; once it is true, the waiting ends.

    Returns:
        Whether they are there.

    Raises:
        QuantError: If they cannot be read.
    """
    while not decoder.wait(POLL_SECONDS):
        if is_stopped():
            return False
        if decoder.upload is not None:
            yield Progress("load", decoder.upload.done_nbytes, decoder.upload.nbytes)
    return True


def has_arrived(decoder: Decoder, is_stopped: Callable[[], bool]) -> bool:
    """Wait as `arrival_events` does, where nobody is told."""
    events = arrival_events(decoder, is_stopped)
    try:
        while True:
            next(events)
    except StopIteration as end:
        return bool(end.value)
