"""The context of an engine's conversation: made longer on request, or while it is used."""

import torch

from erniechat.errors import ContextLengthError, MemoryLimitError
from erniechat.events import ContextGrown
from erniechat.model.kv_cache import KVCache
from erniechat.model.lent_memory import CacheFullError
from quant.memory import gpu_memory, host_memory

GIB = 1 << 30


def lengthen(
    kv_cache: KVCache, num_tokens: int, device: torch.device, memory_left: int | None
) -> None:
    """Let a cache hold more tokens; it takes their memory when they come.

    Args:
        kv_cache: Of the conversation.
        num_tokens: That it may hold.
        device: Where it is.
        memory_left: Bytes that an asked-for budget leaves for it; None for what is free.

    Raises:
        MemoryLimitError: If they would not fit.
    """
    most = kv_cache.most_tokens
    if most is None:
        _check_memory(kv_cache, num_tokens, device, memory_left)
    elif num_tokens > most:
        raise MemoryLimitError(
            f"a context of {num_tokens:,} tokens does not fit; {most:,} do once all experts have "
            "left the GPU that can",
            "start again with more --cpu-memory or --gpu-memory",
        )
    kv_cache.max_tokens = num_tokens


def _check_memory(
    kv_cache: KVCache, num_tokens: int, device: torch.device, memory_left: int | None
) -> None:
    """Refuse what would not fit while it is copied, since both are held then."""
    nbytes, held = num_tokens * kv_cache.nbytes_per_token, kv_cache.nbytes
    on_gpu = gpu_memory(device)
    # Of a new tensor in RAM only what is written to takes place.
    needed = nbytes if on_gpu else max(held, nbytes - held)
    free = (on_gpu or host_memory()).free_nbytes
    left = free if memory_left is None else min(free, memory_left)
    if needed > left:
        raise MemoryLimitError(
            f"a context of {num_tokens:,} tokens needs {needed / GIB:.1f} GiB more, "
            f"{left / GIB:.1f} GiB are free"
        )


def make_room(kv_cache: KVCache, num_tokens: int) -> None:
    """Make room for a whole prompt at once, and for an answer's first token.

    Raises:
        ContextLengthError: If there is none.
    """
    try:
        kv_cache.reserve(num_tokens + 1)
    except CacheFullError as exc:
        raise ContextLengthError(
            f"the prompt has {num_tokens:,} tokens, the memory holds {kv_cache.max_tokens:,} with "
            "the answer",
            "shorten it, or start again with more --cpu-memory",
        ) from exc


def growth_events(kv_cache: KVCache) -> list[ContextGrown]:
    """That experts have left for the context, if any have since this was asked last."""
    growth = kv_cache.take_growth()
    return [] if growth is None else [ContextGrown(growth.num_tokens, growth.num_experts)]
