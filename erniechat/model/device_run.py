"""A reply on a GPU whose tokens are chosen there: the host launches ahead and reads ids later."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from erniechat.model.kv_cache import KVCache

NUM_SLOTS = 4  # ids under way; two are ever used


class Mailbox(Protocol):
    """Ids on their way from the device, first in, first out."""

    def post(self, token: Tensor) -> None:
        """Send int64 ``[1]`` once all that was launched before is done."""
        ...

    def take(self) -> int:
        """Wait for the oldest id sent."""
        ...


class PinnedMailbox:
    """Ids that are copied to pinned memory, each with an event that says when.

    Args:
        sleeps: Whether waiting leaves its core to others, which takes microseconds longer.
    """

    def __init__(self, *, sleeps: bool = False) -> None:
        self._slots = torch.empty(NUM_SLOTS, 1, dtype=torch.int64, pin_memory=True)
        self._events = [torch.cuda.Event(blocking=sleeps) for _ in range(NUM_SLOTS)]  # type: ignore[no-untyped-call]
        self._num_posted = self._num_taken = 0

    @torch.inference_mode()  # as where the slots were made
    def post(self, token: Tensor) -> None:
        """See `Mailbox`."""
        slot = self._num_posted % NUM_SLOTS
        self._slots[slot].copy_(token, non_blocking=True)
        self._events[slot].record()
        self._num_posted += 1

    def take(self) -> int:
        """See `Mailbox`."""
        slot = self._num_taken % NUM_SLOTS
        self._events[slot].synchronize()
        self._num_taken += 1
        return int(self._slots[slot])


class DeviceRun:
    """Tokens of one reply. Satisfies `TokenRun`.

    The device is one token ahead of the host: it reads the token chosen last while the host waits
    for its id. Where the host stops there, what the device has computed lies beyond the cache's
    length and is overwritten; experts that it chose were counted. All is in the order of one
    stream, so a cache that grows is moved after what was launched before has written to it.

    Args:
        step: The launches of one token, whose ``token`` is the first one, chosen.
        kv_cache: Of the context, without that token.
        place: Tells the device where the cache is and at which position a token comes.
        replay: Reads ``step.token`` and writes the next one there.
        mailbox: Empty.
        check: Raises what computing a token has failed with; told how long it took, in seconds.
    """

    def __init__(
        self,
        step: Any,
        kv_cache: KVCache,
        place: Callable[[KVCache, int], None],
        replay: Callable[[], None],
        mailbox: Mailbox,
        check: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._step = step
        self._kv_cache = kv_cache
        self._place = place
        self._replay = replay
        self._mailbox = mailbox
        self._check = check
        mailbox.post(step.token)

    def advance(self) -> None:
        """See `TokenRun`.

        Raises:
            CacheFullError: If the cache has no room for the token; nothing is launched then.
        """
        position = len(self._kv_cache)
        self._kv_cache.reserve(position + 1)
        self._place(self._kv_cache, position)
        self._replay()
        self._mailbox.post(self._step.token)

    def take(self) -> int:
        """See `TokenRun`; what a failure made of a token is not given away."""
        began = time.monotonic()
        token_id = self._mailbox.take()
        self._check(time.monotonic() - began)
        return token_id
