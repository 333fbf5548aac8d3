"""Prefill, then decode: an iterator of token ids over a model and its KV cache."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from erniechat.generation.guide import Guide
from erniechat.generation.sampling import Sampler
from erniechat.model.kv_cache import KVCache
from erniechat.model.lent_memory import CacheFullError
from erniechat.model.run_ahead import Drawing, TokenRun

PREFILL_CHUNK = 512  # tokens read between two looks at cancel


class Model(Protocol):
    """What generation asks of a model."""

    def forward(self, input_ids: list[int], kv_cache: KVCache) -> Tensor:
        """Logits float32 ``[1, vocab_size]`` of the token after input_ids."""
        ...


@runtime_checkable
class AheadModel(Model, Protocol):
    """A model that may choose tokens itself, so that none waits for the host."""

    def start_run(self, drawing: Drawing, logits: Tensor, kv_cache: KVCache) -> TokenRun | None:
        """Begin a reply after logits float32 ``[vocab_size]``; None if it must be chosen here."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """When generation ends.

    Attributes:
        stop_ids: Tokens after which nothing follows.
        max_tokens: Most tokens generated.
        num_tokens: Tokens that may be sampled; rows of the vocabulary from here on are padding.
    """

    stop_ids: Collection[int]
    max_tokens: int
    num_tokens: int


def prefill(
    model: Model,
    kv_cache: KVCache,
    input_ids: list[int],
    cancelled: Callable[[], bool],
) -> Generator[int, None, Tensor | None]:
    """Read a prompt in chunks, keeping what the cache already holds of it.

    Yields the tokens read so far, cached ones included, before the first chunk and after each.

    Args:
        model: Reads.
        kv_cache: Afterwards holds the prompt.
        input_ids: The prompt, at least one token.
        cancelled: Asked before each chunk.

    Returns:
        Logits float32 ``[vocab_size]`` after the prompt, or None if it was cancelled.
    """
    done = kv_cache.keep_prefix(input_ids)
    logits = None
    yield done
    while done < len(input_ids):
        if cancelled():
            return None
        chunk = input_ids[done : done + PREFILL_CHUNK]
        logits = model.forward(chunk, kv_cache)[-1]
        done += len(chunk)
        yield done
    return logits


def decode(
    model: Model,
    kv_cache: KVCache,
    logits: Tensor,
    sampler: Sampler,
    limits: Limits,
    generator: torch.Generator,
    cancelled: Callable[[], bool],
    guides: Sequence[Guide] = (),
) -> Iterator[int]:
    """Generate token ids, a stop token included, until one of the limits or cancel.

    A token's keys and values are computed when the next one is asked for, so the last token that
    was yielded is not in the cache. A model that chooses tokens itself does so where no guide
    rules; the seed is then the generator's, and what it draws is another random text.

    Args:
        model: Reads.
        kv_cache: Holds the prompt; gets the reply.
        logits: float32 ``[vocab_size]`` after the prompt.
        sampler: How a token is chosen.
        limits: When it ends.
        generator: Source of randomness, on the CPU.
        cancelled: Asked before each step.
        guides: Narrow the choice, each what those before it left.
    """
    if not guides and isinstance(model, AheadModel):
        drawing = drawing_of(sampler, limits.num_tokens, generator.initial_seed())
        run = model.start_run(drawing, logits, kv_cache)
        if run is not None:
            yield from _decode_ahead(run, kv_cache, limits, cancelled)
            return
    seen_ids = list(kv_cache.token_ids)
    for step in range(limits.max_tokens):
        logits = logits[: limits.num_tokens]
        for guide in guides:
            logits = guide.constrain(logits)
        token_id = sampler.choose(logits, seen_ids, generator)
        for guide in guides:
            guide.accept(token_id)
        seen_ids.append(token_id)
        yield token_id
        if token_id in limits.stop_ids or step + 1 == limits.max_tokens or cancelled():
            return
        try:
            logits = model.forward([token_id], kv_cache)[-1]
        except CacheFullError:
            return


def drawing_of(sampler: Sampler, num_tokens: int, seed: int) -> Drawing:
    """What a model that chooses tokens itself is told of a sampler."""
    return Drawing(
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
        min_p=sampler.min_p,
        repetition_penalty=sampler.repetition_penalty,
        num_tokens=num_tokens,
        seed=seed,
    )


def _decode_ahead(
    run: TokenRun, kv_cache: KVCache, limits: Limits, cancelled: Callable[[], bool]
) -> Iterator[int]:
    """As `decode`; each token is being read when its id comes to be known here."""
    for step in range(limits.max_tokens):
        is_last = step + 1 == limits.max_tokens
        try:
            is_last = is_last or not _advances(run)
            token_id = run.take()
        except Exception:
            # It may have been the last token in the cache that was not computed as it should.
            kv_cache.forget_from(max(len(kv_cache) - 1, 0))
            raise
        yield token_id
        if token_id in limits.stop_ids or is_last or cancelled():
            return
        kv_cache.append_tokens([token_id])


def _advances(run: TokenRun) -> bool:
    """Go on; False if there is no memory for more, which ends the reply as its limit does."""
    try:
        run.advance()
    except CacheFullError:
        return False
    return True
