"""The decoder: token ids in, logits out. Weights come by name, routed experts through the store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from erniechat.model.config import ModelConfig
from erniechat.model.device_step import CapturedStep
from erniechat.model.kv_cache import KVCache
from erniechat.model.layers import causal_attention, gated_mlp, rms_norm, rotary_angles, rotate
from erniechat.model.lent_memory import LentMemory
from erniechat.model.native_step import NativeStep
from erniechat.model.routing import route
from erniechat.model.run_ahead import Drawing, TokenRun
from quant.experts.store import ExpertStore
from quant.linear import QuantLinear, embed
from quant.tensor import QuantTensor
from quant.upload import BackgroundUpload

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # as `causal_attention`


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """What every token uses.

    Attributes:
        linears: By name: ``layers.N.qkv``, ``layers.N.o``, ``layers.N.mlp.gate_up``, ``lm_head``…
        tensors: By name: norms and, in float32, ``layers.N.router`` and
            ``layers.N.correction_bias``.
        embedding: ``[vocab_size, hidden_size]``.
    """

    linears: Mapping[str, QuantLinear]
    tensors: Mapping[str, Tensor]
    embedding: QuantTensor


class Decoder:
    """A pre-norm decoder with grouped-query attention and dense or routed MLPs.

    Args:
        config: Its shape.
        weights: What every token uses.
        experts: The door to routed experts; a dense model's store is empty.
        dtype: Of activations and the KV cache.
        step: Reads tokens faster, if there is one for this model and device.
        attention: Of the tokens that the step does not read.
        check: Raises if what was computed cannot be used.
        cache_memory: What a cache shares with experts; None if each takes memory of its own.
        upload: Brings the weights to the device; None if they are there.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        experts: ExpertStore,
        dtype: torch.dtype,
        step: CapturedStep | NativeStep | None = None,
        attention: Attention = causal_attention,
        check: Callable[[], None] | None = None,
        cache_memory: LentMemory | None = None,
        upload: BackgroundUpload | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.experts = experts
        self.dtype = dtype
        self.step = step
        self._attend = attention
        self._check = check or (lambda: None)
        self.cache_memory = cache_memory
        self.upload = upload
        self.device = weights.embedding.device

    def wait(self, timeout: float | None = None) -> bool:
        """Return once all weights are on the device; False if they are not after timeout seconds.

        Whatever runs the model waits by itself.

        Raises:
            QuantError: If they cannot be read; from then on, always.
        """
        return self.upload is None or self.upload.wait(timeout)

    def close(self) -> None:
        """Bring no more weights to the device; if some are not there, nothing runs any more."""
        if self.upload is not None:
            self.upload.stop()

    def new_kv_cache(self, max_tokens: int) -> KVCache:
        """An empty cache of this model's shape.

        The first one shares the experts' memory if that was planned; while it lives, others take
        memory of their own.
        """
        config, memory = self.config, self.cache_memory
        return KVCache(
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            max_tokens,
            dtype=self.dtype,
            device=self.device,
            at_once=self.device.type == "cuda",  # its memory was planned; growing would need more
            memory=memory if memory is not None and memory.is_free else None,
        )

    @torch.inference_mode()
    def forward(
        self, input_ids: list[int], kv_cache: KVCache, *, all_logits: bool = False
    ) -> Tensor:
        """Read tokens after those in the cache; if that fails, the cache is as it was before.

        Waits for weights that are still on their way to the device.

        Args:
            input_ids: The new tokens.
            kv_cache: Gets their keys and values.
            all_logits: For every new token, not only the last.

        Returns:
            float32 ``[num_tokens or 1, vocab_size]``.
        """
        self.wait()
        begin = len(kv_cache)
        try:
            kv_cache.append_tokens(input_ids)
            if self.step is not None and not all_logits and self.step.reads(len(input_ids)):
                logits = self.step.read(input_ids, kv_cache)
            else:
                logits = self._read(input_ids, begin, kv_cache, all_logits)
            self._check()
            return logits
        except BaseException:  # Ctrl-C too: later layers have no keys of these tokens
            kv_cache.forget_from(begin)
            raise

    @torch.inference_mode()
    def start_run(self, drawing: Drawing, logits: Tensor, kv_cache: KVCache) -> TokenRun | None:
        """Choose tokens where the model is, ahead of the host; None if this one cannot.

        Args:
            drawing: How they are chosen.
            logits: float32 ``[vocab_size]`` after what the cache holds.
            kv_cache: Holds the context; gets the reply.
        """
        self.wait()
        if not isinstance(self.step, CapturedStep):
            return None
        return self.step.start_run(drawing, logits, kv_cache)

    def preparations(self, drawing: Drawing) -> list[Callable[[], object]]:
        """Calls that make ready what a first reply would wait for; none where nothing is.

        They run the weights, so this waits for them.

        Args:
            drawing: How its tokens will be chosen.
        """
        self.wait()
        if not isinstance(self.step, CapturedStep):
            return []
        return [torch.inference_mode()(call) for call in self.step.preparations(drawing)]

    def _read(
        self, input_ids: list[int], begin: int, kv_cache: KVCache, all_logits: bool
    ) -> Tensor:
        ids = torch.tensor(input_ids, dtype=torch.int64, device=self.device)
        positions = torch.arange(begin, begin + len(input_ids), device=self.device)
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        hidden_states = embed(self.weights.embedding, ids, self.dtype)
        for layer_idx in range(self.config.num_hidden_layers):
            hidden_states = self._block(layer_idx, hidden_states, angles, kv_cache)
        if not all_logits:
            hidden_states = hidden_states[-1:]
        hidden_states = self._norm("norm", hidden_states)
        return self.weights.linears["lm_head"](hidden_states).float()

    def _norm(self, name: str, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weights.tensors[name], self.config.rms_norm_eps)

    def _block(
        self,
        layer_idx: int,
        hidden_states: Tensor,
        angles: tuple[Tensor, Tensor],
        kv_cache: KVCache,
    ) -> Tensor:
        at = f"layers.{layer_idx}."
        normed = self._norm(at + "input_norm", hidden_states)
        hidden_states = hidden_states + self._attention(layer_idx, normed, angles, kv_cache)
        normed = self._norm(at + "post_attention_norm", hidden_states)
        return hidden_states + self._mlp(layer_idx, normed)

    def _attention(
        self, layer_idx: int, x: Tensor, angles: tuple[Tensor, Tensor], kv_cache: KVCache
    ) -> Tensor:
        config, linears = self.config, self.weights.linears
        heads = linears[f"layers.{layer_idx}.qkv"](x).view(len(x), -1, config.head_dim)
        heads = heads.transpose(0, 1)  # [heads of q, k and v, num_tokens, head_dim]
        first_k = config.num_attention_heads
        first_v = first_k + config.num_key_value_heads
        q, k, v = heads[:first_k], heads[first_k:first_v], heads[first_v:]
        keys, values = kv_cache.store(layer_idx, rotate(k, *angles), v)
        attended = self._attend(rotate(q, *angles), keys, values)
        return linears[f"layers.{layer_idx}.o"](attended)

    def _mlp(self, layer_idx: int, x: Tensor) -> Tensor:
        at, linears = f"layers.{layer_idx}.", self.weights.linears
        if layer_idx not in self.config.moe_layers:
            return gated_mlp(x, linears[at + "mlp.gate_up"], linears[at + "mlp.down"])
        topk_ids, topk_weights = route(
            x,
            self.weights.tensors[at + "router"],
            self.weights.tensors[at + "correction_bias"],
            self.config.num_experts_per_tok,
            self.config.router_norm_min,
        )
        topk_weights = topk_weights.to(x.dtype).float()  # the rounding of transformers
        out = self.experts.forward(layer_idx, x, topk_ids, topk_weights)
        if self.config.num_shared_experts and not self.experts.has_shared:
            out = out + gated_mlp(x, linears[at + "shared.gate_up"], linears[at + "shared.down"])
        return out
