"""Decode on a GPU as one CUDA graph: launches that are captured once and replayed."""

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erniechat.model.device_run import DeviceRun, PinnedMailbox
from erniechat.model.kv_cache import KVCache
from erniechat.model.machine_costs import BUCKETS
from erniechat.model.run_ahead import Drawing, TokenRun
from quant.errors import QuantError
from quant.experts.pool import PooledExpertStore
from quant.experts.tiered import TieredExpertStore
from quant.kernels.triton.step_weights import ChoiceKind

NOWHERE = (-1, -1, -1)  # a place that must be told before the next token
SLOW_SECONDS = 10.0  # for a token: by then the GPU may have given up waiting for the CPU


def capture(
    launch: Callable[[], None], keep: Sequence[Tensor], device: torch.device
) -> torch.cuda.CUDAGraph:
    """Launches as a graph, run once before so that all kernels are compiled.

    Args:
        launch: Does the same whenever it is called.
        keep: Tensors that it changes and that must be afterwards as they were.
        device: Where.
    """
    saved = [tensor.clone() for tensor in keep]
    try:
        return _captured(launch, device)
    finally:
        for tensor, value in zip(keep, saved, strict=True):
            tensor.copy_(value)
        torch.cuda.synchronize(device)


def _captured(launch: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        launch()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # a graph that is collected while another is captured breaks it
    try:
        with torch.cuda.graph(graph, stream=stream):
            launch()
    finally:
        gc.enable()
    return graph


def sleep_until_done(device: torch.device) -> None:
    """Wait for all that was launched; a thread that spins takes a core from the CPU's experts."""
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(device))
    done.synchronize()


class CapturedStep:
    """Reads tokens through captured graphs: one at a time, or a chunk of a prompt.

    Nothing in a graph depends on the context's length or on where the cache lies.

    Args:
        step: The launches of one token; not yet run.
        chunk: Those of a chunk, or None.
        device: Their CUDA device.
        store: Where the experts are.
    """

    def __init__(
        self,
        step: Any,
        chunk: Any,
        device: torch.device,
        store: PooledExpertStore | None = None,
    ) -> None:
        self.step = step
        self.chunk = chunk
        self._server = store.server if isinstance(store, TieredExpertStore) else None
        self._store = store if isinstance(store, TieredExpertStore) else None
        self._device = device
        self._graphs: dict[object, torch.cuda.CUDAGraph] = {}
        self._held = NOWHERE

    def _scratch(self, num_tokens: int) -> Tensor:
        """A cache for the run that compiles."""
        sizes = self.step.sizes
        shape = (2, sizes.num_layers, sizes.num_kv_heads, num_tokens, sizes.head_dim)
        return torch.zeros(shape, dtype=torch.bfloat16, device=self._device)

    @property
    def _counts(self) -> list[Tensor]:
        experts = self.step._experts
        if experts is None:
            return []
        return [experts.counts] if experts.cpu is None else [experts.counts, experts.cpu.hits]

    def graph(self, key: object, launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of launches over one token, captured when first asked for.

        It begins with the token in ``step.token`` at the position in ``step.state``.
        """
        if key not in self._graphs:
            step = self.step
            keep = [step.state, step.token, step.seen, step.penalty, *self._counts]
            before = step.state.clone()
            scratch = self._scratch(4)
            step.state.copy_(torch.tensor([0, scratch.data_ptr(), 4]))
            try:
                self._graphs[key] = capture(launch, keep, self._device)
            finally:  # or the next token would be written to the scratch
                step.state.copy_(before)
        return self._graphs[key]

    def place(self, kv_cache: KVCache, position: int) -> None:
        """Tell the device where the cache is and at which position the next token comes."""
        address, capacity = kv_cache.storage
        if self._held != (position, address, capacity):
            self.step.state.copy_(torch.tensor([position, address, capacity]))
        self._held = (position + 1, address, capacity)

    def reads(self, num_tokens: int) -> bool:
        """Whether `read` takes so many tokens: a prompt only if it reaches all experts now."""
        reaches_all = self._store is None or not self._store.has_unaddressable
        return num_tokens == 1 or (num_tokens > 0 and self.chunk is not None and reaches_all)

    def read(self, input_ids: list[int], kv_cache: KVCache) -> Tensor:
        """Logits float32 ``[1, vocab_size]`` after tokens whose places the cache has made."""
        begin = len(kv_cache) - len(input_ids)
        if len(input_ids) == 1:
            return self._read_token(input_ids[0], begin, kv_cache)
        most = BUCKETS[-1]
        for at in range(0, len(input_ids), most):
            logits = self._read_chunk(input_ids[at : at + most], begin + at, kv_cache)
        return logits

    def _read_token(self, token_id: int, position: int, kv_cache: KVCache) -> Tensor:
        vocab_size = self.step.sizes.vocab_size
        graph = self.graph("logits", lambda: self._launch_token(vocab_size))
        self.place(kv_cache, position)
        self.step.token.fill_(token_id)
        self._replay(graph)
        return self._checked(self.step.logits.clone()[None])

    def start_run(self, drawing: Drawing, logits: Tensor, kv_cache: KVCache) -> TokenRun:
        """Choose tokens on the device from here on; the first one is launched.

        Args:
            drawing: How.
            logits: float32 ``[vocab_size]`` after what the cache holds.
            kv_cache: Holds the context.
        """
        step, num_tokens = self.step, drawing.num_tokens
        kind, graph = self._run_graph(drawing)  # to capture it changes what is set below
        step.seen.zero_()
        if drawing.repetition_penalty != 1:
            step.seen[torch.tensor(sorted(set(kv_cache.token_ids)), dtype=torch.int64)] = 1
        step.penalty.fill_(drawing.repetition_penalty)
        step.choice.set(
            drawing.temperature, drawing.top_k, drawing.top_p, drawing.min_p, drawing.seed
        )
        self.place(kv_cache, len(kv_cache) - 1)
        step.choice.begin(logits, num_tokens)
        step.choice.launch(kind)
        step.advance()
        mailbox = PinnedMailbox(sleeps=self._server is not None)
        replay = partial(self._replay, graph)
        return DeviceRun(step, kv_cache, self.place, replay, mailbox, self._check)

    def _run_graph(self, drawing: Drawing) -> tuple[ChoiceKind, torch.cuda.CUDAGraph]:
        """The graph of a token that is chosen as drawing says."""
        step, num_tokens = self.step, drawing.num_tokens
        kind = ChoiceKind(
            num_tokens,
            greedy=drawing.temperature == 0,
            top_k=0 < drawing.top_k < num_tokens,
            top_p=drawing.top_p < 1,
        )

        def launch() -> None:
            step.forward(num_tokens)
            step.choice.launch(kind)
            step.advance()

        return kind, self.graph(kind, launch)

    def preparations(self, drawing: Drawing) -> list[Callable[[], object]]:
        """The captures that a first reply would wait for, in the order in which it needs them."""
        reads_chunks = self.reads(BUCKETS[0])  # a capture runs a chunk, wherever its experts are
        chunks = [partial(self._chunk_graph, n) for n in BUCKETS] if reads_chunks else []
        return [*chunks[:1], partial(self._run_graph, drawing), *chunks[1:]]

    def _replay(self, graph: torch.cuda.CUDAGraph) -> None:
        """Launch a graph, with the CPU ready for what it may ask.

        Raises:
            QuantError: If the CPU has failed before.
        """
        held, self._held = self._held, NOWHERE  # what fails here does not move the position
        if self._server is not None:
            self._server.wake()
            self._server.check()
        graph.replay()
        self._held = held

    def _check(self, seconds: float) -> None:
        """Raise what the CPU has failed with; after long also whether it never answered.

        Raises:
            QuantError: If it has.
        """
        if self._server is None:
            return
        self._server.check()
        if seconds > SLOW_SECONDS and int(self.step._arrived[1]):
            self.step._arrived[1] = 0
            raise QuantError("the CPU did not answer the GPU in time; start again")

    def _checked(self, logits: Tensor) -> Tensor:
        """Logits, waited for if the CPU may have failed to compute its part of them."""
        if self._server is not None:
            began = time.monotonic()
            sleep_until_done(self._device)
            self._check(time.monotonic() - began)
        return logits

    def _launch_token(self, vocab_size: int) -> None:
        self.step.penalty.fill_(1.0)
        self.step.forward(vocab_size)
        self.step.advance()

    def _read_chunk(self, input_ids: list[int], begin: int, kv_cache: KVCache) -> Tensor:
        chunk, num_real = self.chunk, len(input_ids)
        size = next(bucket for bucket in BUCKETS if bucket >= num_real)
        graph = self._chunk_graph(size)
        address, capacity = kv_cache.storage
        chunk.state.copy_(torch.tensor([begin, address, capacity, num_real]))
        chunk.ids[:num_real] = torch.tensor(input_ids)
        self._replay(graph)
        return self._checked(chunk.logits.clone())

    def _chunk_graph(self, size: int) -> torch.cuda.CUDAGraph:
        """The graph of a chunk of that many tokens, captured when first asked for."""
        chunk, key = self.chunk, ("chunk", size)
        if key not in self._graphs:
            scratch = self._scratch(size)
            chunk.state.copy_(torch.tensor([0, scratch.data_ptr(), size, size]))
            launch = partial(chunk.forward, size)
            self._graphs[key] = capture(launch, self._counts, self._device)
        return self._graphs[key]
