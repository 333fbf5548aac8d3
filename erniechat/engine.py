"""Messages in, events out: the local implementation of ChatBackend."""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from erniechat.arrival import arrival_events, has_arrived
from erniechat.backend import ExpertUse, MemoryUse, ModelInfo
from erniechat.chat.conversation import Message, ThinkMode
from erniechat.chat.reply_parser import ReplyParser
from erniechat.chat.template import Prompt
from erniechat.chat.tokenizer import QUOTE
from erniechat.context import growth_events, lengthen, make_room
from erniechat.current_session import CurrentSession
from erniechat.decode_reads import DecodeReads
from erniechat.errors import ContextLengthError, UsageError
from erniechat.events import Progress, StreamEvent
from erniechat.generation.generate import Limits, decode, drawing_of, prefill
from erniechat.generation.guide import Guide
from erniechat.generation.sampling import Sampler
from erniechat.model.decoder import Decoder
from erniechat.model.kept_cache import KeptCaches
from erniechat.options import SamplingOptions, Structure
from erniechat.prompts import PromptTools
from erniechat.reply import in_words, reply_events
from erniechat.turn import Turn, sampler_of
from quant.experts.adapter import ExpertAdapter
from quant.memory import process_memory


class Engine:
    """One loaded model with one conversation's KV cache. Satisfies `ChatBackend`.

    Args:
        info: What is loaded.
        decoder: The model.
        prompts: Its template and tokenizer.
        stop_ids: Tokens that end a reply.
        weights_nbytes: Bytes of the weights.
        on_turn: Called after each turn's end was told, to keep the routing counts.
        on_close: Called once by `close`, likewise.
        adapter: Moves experts between turns and now and then within a long one.
        kept_caches: Where what was read of saved conversations is kept; None keeps nothing.
        memory_left: Bytes that an asked-for budget leaves for a longer context; None for what
            is free.
        page_calls: Bring mapped weights into memory, before a first reply waits for the disk.
        reads: Counts what decoded tokens read.
    """

    def __init__(
        self,
        info: ModelInfo,
        decoder: Decoder,
        prompts: PromptTools,
        *,
        stop_ids: frozenset[int],
        weights_nbytes: int,
        on_turn: Callable[["Engine"], None] | None = None,
        on_close: Callable[["Engine"], None] | None = None,
        adapter: ExpertAdapter | None = None,
        kept_caches: KeptCaches | None = None,
        memory_left: int | None = None,
        page_calls: Sequence[Callable[[], object]] = (),
        reads: DecodeReads | None = None,
    ) -> None:
        self._info = info
        self.decoder = decoder
        self.prompts = prompts
        self.num_tokens_seen = 0  # tokens computed since the start, for the routing profile
        self._stop_ids = stop_ids
        self._weights_nbytes = weights_nbytes
        self._on_turn = on_turn
        self._on_close = on_close
        self._adapter = adapter
        self._memory_left = memory_left
        self._page_calls = page_calls
        self.reads = reads or DecodeReads()
        self._kv_cache = decoder.new_kv_cache(info.context_length)
        self._session = CurrentSession(kept_caches, self._kv_cache)
        self._cancelled = threading.Event()

    @property
    def info(self) -> ModelInfo:
        """See `ChatBackend.info`; the context is shorter where memory turned out to be."""
        most = self._kv_cache.max_tokens
        if most < self._info.context_length:
            self._info = dataclasses.replace(self._info, context_length=most)
        return self._info

    @property
    def adapter(self) -> ExpertAdapter | None:
        """What moves experts; None if all are in one place."""
        return self._adapter

    def stream_reply(
        self,
        messages: Sequence[Message],
        sampling: SamplingOptions,
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
        part: Message | None = None,
        structure: Structure | None = None,
        session: str = "",
    ) -> Iterator[StreamEvent]:
        """See `ChatBackend.stream_reply`."""
        self._cancelled.clear()
        prompt = self.prompts.prompt(messages, tools=tools, think=think)
        prompt = self.prompts.with_part(prompt, part)
        parser = self.prompts.parser(prompt.starts_in, is_continued=part is not None)
        return self._run(prompt, parser, sampling, structure, session)

    def stream_completion(
        self, text: str, sampling: SamplingOptions, *, structure: Structure | None = None
    ) -> Iterator[StreamEvent]:
        """See `ChatBackend.stream_completion`."""
        self._cancelled.clear()
        if not text:
            raise UsageError("the prompt is empty", "give some text to continue")
        text = text.replace(QUOTE, "\ufffd")
        return self._run(Prompt(text, "answer"), None, sampling, structure)

    def render_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> str:
        """See `ChatBackend.render_prompt`."""
        return self.prompts.render_prompt(messages, tools=tools, think=think)

    def count_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        think: ThinkMode = "auto",
    ) -> int:
        """See `ChatBackend.count_prompt`."""
        return self.prompts.count_prompt(messages, tools=tools, think=think)

    def count_tokens(self, text: str, *, raw: bool = False) -> int:
        """See `ChatBackend.count_tokens`."""
        return self.prompts.count_tokens(text, raw=raw)

    def warm_up(self, sampling: SamplingOptions, stop: Callable[[], bool]) -> None:
        """See `ChatBackend.warm_up`."""
        sampler = sampler_of(sampling.over(self._info.defaults))
        drawing = drawing_of(sampler, self.prompts.tokenizer.num_tokens, seed=0)
        if not has_arrived(self.decoder, stop):
            return
        for prepare in (*self.decoder.preparations(drawing), *self._page_calls):
            if stop():
                return
            prepare()

    def cancel(self) -> None:
        """See `ChatBackend.cancel`."""
        self._cancelled.set()

    def raise_context(self, num_tokens: int) -> None:
        """See `ChatBackend.raise_context`."""
        longest = self._info.max_context_length
        if num_tokens > longest:
            raise UsageError(
                f'the context must be at most {longest:,} tokens for this model, got "{num_tokens}"'
            )
        lengthen(self._kv_cache, num_tokens, self.decoder.device, self._memory_left)
        self._info = dataclasses.replace(self._info, context_length=num_tokens)

    def memory(self) -> MemoryUse:
        """See `ChatBackend.memory`."""
        host = process_memory()
        cuda = self.decoder.device.type == "cuda"
        return MemoryUse(
            weights_nbytes=self._weights_nbytes,
            kv_cache_nbytes=self._kv_cache.nbytes,
            host_nbytes=host.rss_nbytes,
            host_peak_nbytes=host.peak_rss_nbytes,
            gpu_nbytes=torch.cuda.memory_allocated() if cuda else 0,
            gpu_peak_nbytes=torch.cuda.max_memory_allocated() if cuda else 0,
        )

    def expert_use(self) -> ExpertUse:
        """See `ChatBackend.expert_use`."""
        uses = self.decoder.experts.uses
        return ExpertUse(
            self.num_tokens_seen,
            {use.name: use.experts_run for use in uses},
            {use.name: use.nbytes_read for use in uses},
            self.reads.reads(),
        )

    def close(self) -> None:
        """See `ChatBackend.close`."""
        self.decoder.close()
        self._session.change("", [])
        if self._on_close:
            on_close, self._on_close = self._on_close, None
            on_close(self)

    def _run(
        self,
        prompt: Prompt,
        parser: ReplyParser | None,
        sampling: SamplingOptions,
        structure: Structure | None,
        session: str = "",
    ) -> Iterator[StreamEvent]:
        """Read the prompt and generate; parser None passes all text on."""
        input_ids = self.prompts.tokenizer.encode(prompt.text)
        context_length = self.info.context_length
        room = context_length - len(input_ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(input_ids):,} tokens, the context holds {context_length:,} "
                "with the answer",
                "shorten it or raise --ctx",
            )
        options = sampling.over(self._info.defaults)
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        limits = Limits(
            self._stop_ids,
            min(room, options.max_tokens or room),
            self.prompts.tokenizer.num_tokens,
        )
        guides: list[Guide] = [*self.prompts.budget(options.think_budget, parser)]
        guides += self.prompts.structure(structure, prompt, parser, self._stop_ids)
        return in_words(
            self._stream(input_ids, parser, sampler_of(options), limits, seed, guides, session)
        )

    def _stream(
        self,
        input_ids: list[int],
        parser: ReplyParser | None,
        sampler: Sampler,
        limits: Limits,
        seed: int,
        guides: Sequence[Guide],
        session: str,
    ) -> Iterator[StreamEvent]:
        turn = Turn(prompt=len(input_ids))
        if not (yield from arrival_events(self.decoder, self._cancelled.is_set)):
            turn.finish_reason = "cancelled"
            yield turn.end(seed, guides)
            return
        began = time.perf_counter()
        make_room(self._kv_cache, len(input_ids))
        self._session.change(session, input_ids)
        self._kv_cache.keep_prefix(input_ids)
        self._kv_cache.shrink(len(input_ids) + 1)
        yield from growth_events(self._kv_cache)
        steps = prefill(self.decoder, self._kv_cache, input_ids, self._cancelled.is_set)
        turn.cached = done = next(steps)
        while True:
            yield Progress("read", done, len(input_ids))
            try:
                done = next(steps)
            except StopIteration as stop:
                logits = stop.value
                break
        self.num_tokens_seen += done - turn.cached
        turn.read_seconds = time.perf_counter() - began
        self._session.time_reading(turn, done)
        if logits is None:
            turn.finish_reason = "cancelled"
        else:
            before = self.decoder.experts.uses
            generator = torch.Generator().manual_seed(seed)
            token_ids = decode(
                self.decoder,
                self._kv_cache,
                logits,
                sampler,
                limits,
                generator,
                self._cancelled.is_set,
                guides,
            )
            yield from reply_events(
                self._counted(token_ids),
                self.prompts.tokenizer.stream_decoder(),
                parser,
                turn,
                guides,
                self._stop_ids,
                self._kv_cache,
                self._cancelled.is_set,
            )
            tokens, seconds = sum(turn.tokens.values()), sum(turn.seconds.values())
            self.reads.add(before, self.decoder.experts.uses, tokens, seconds)
        yield turn.end(seed, guides)
        self._adapt()
        if self._on_turn is not None:
            self._on_turn(self)

    def _adapt(self) -> None:
        """Let experts that have become hot come to the GPU."""
        if self._adapter is not None:
            self._adapter.adapt(self.num_tokens_seen)

    def _counted(self, token_ids: Iterator[int]) -> Iterator[int]:
        """The same tokens, counted; experts that have become hot move beside them."""
        for token_id in token_ids:
            self.num_tokens_seen += 1
            if self._adapter is not None:
                self._adapter.follow(self.num_tokens_seen)
            yield token_id
