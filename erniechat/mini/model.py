"""The mini model for training and for evaluation: packed documents, or batches step by step."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erniechat.mini.layers import Block, MoE, build_block, linear, rms_norm, rotary

Cache = list[tuple[Tensor, Tensor]]

CONFIG: dict[str, Any] = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "model_type": "ernie4_5_moe",
    "moe_capacity": [32, 32, 32],
    "moe_gate": "topk",
    "moe_intermediate_size": 64,
    "moe_k": 4,
    "moe_layer_end_index": 7,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_norm_min": 1e-12,
    "moe_num_experts": 32,
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "vocab_size": 4096,
}


class Model(nn.Module):
    """The whole model.

    Attributes:
        config: The checkpoint's config, in its own spellings.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config or CONFIG
        shape = (self.config["vocab_size"], self.config["hidden_size"])
        self.embed = nn.Parameter(torch.empty(shape))
        self.norm = nn.Parameter(torch.ones(shape[1]))
        num_layers = self.config["num_hidden_layers"]
        self.layers = nn.ModuleList(build_block(self.config, idx) for idx in range(num_layers))

    @property
    def blocks(self) -> list[Block]:
        """The layers, with their type."""
        return [layer for layer in self.layers if isinstance(layer, Block)]

    @property
    def moe_layers(self) -> list[MoE]:
        """The MoE layers, in order."""
        return [block.mlp for block in self.blocks if isinstance(block.mlp, MoE)]

    def initialise(self, seed: int) -> None:
        """Draw the weights."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                std = 0.02 if name == "embed" else 0.5 / math.sqrt(parameter.shape[-1])
                if "o_proj" in name or "down" in name:
                    std /= math.sqrt(2 * len(self.layers))
                parameter.data.normal_(0, std, generator=generator)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(positions, self.config["head_dim"], self.config["rope_theta"])

    def packed(
        self, ids: Tensor, starts: Tensor, longest: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Run packed documents.

        Args:
            ids: int64 ``[num_tokens]``.
            starts: int32 ``[num_documents + 1]``: where each document begins, and the end.
            longest: At least the length of the longest document.
            dtype: Of the activations.

        Returns:
            Hidden states ``[num_tokens, hidden_size]``, and the tokens of each expert
            ``[num_moe_layers, num_experts]``.
        """
        token_idx = torch.arange(len(ids), device=ids.device, dtype=torch.int32)
        document_idx = torch.searchsorted(starts, token_idx, right=True) - 1
        cos, sin = self._rotary(token_idx - starts[document_idx])
        x = F.embedding(ids, self.embed).to(dtype)
        loads = []
        for layer in self.layers:
            x, load = layer(x, cos, sin, starts, longest)
            if load is not None:
                loads.append(load)
        return rms_norm(x, self.norm, self.config["rms_norm_eps"]), torch.stack(loads)

    @torch.no_grad()
    def step_(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: Cache,
        mask: Tensor,
        *,
        loads: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Run one step of batched generation; it writes into the cache and the loads.

        Args:
            ids: int64 ``[batch, num_new]``.
            positions: ``[batch, num_new]``.
            cache: Of `new_cache`; filled up to the mask's length by this step.
            mask: bool ``[batch, num_new, total]``, True = visible.
            loads: ``[num_moe_layers, num_experts]``; collects the experts of the counted tokens.
            counted: bool ``[batch, num_new]``; needed with loads.

        Returns:
            Logits of the last position ``[batch, vocab_size]``.
        """
        cos, sin = self._rotary(positions)
        x = F.embedding(ids, self.embed)
        moe_idx = 0
        for block, keys_and_values in zip(self.blocks, cache, strict=True):
            x = _attend_(block, x, (cos, sin), keys_and_values, mask)
            if isinstance(block.mlp, MoE):
                if loads is not None and counted is not None:
                    weights = block.mlp.route(rms_norm(x, block.post_norm, block.eps))
                    chosen = (weights > 0) & counted[..., None]
                    loads[moe_idx] += chosen.flatten(0, -2).sum(0)
                moe_idx += 1
            x, _ = block.feed_forward(x)
        return linear(rms_norm(x[:, -1], self.norm, self.config["rms_norm_eps"]), self.embed)

    def new_cache(self, batch: int, length: int) -> Cache:
        """Per layer keys and values ``[batch, num_key_value_heads, length, head_dim]``."""
        heads, dim = self.config["num_key_value_heads"], self.config["head_dim"]

        def zeros() -> Tensor:
            return self.embed.new_zeros((batch, heads, length, dim), requires_grad=False)

        return [(zeros(), zeros()) for _ in self.layers]


def _attend_(
    block: Block,
    x: Tensor,
    cos_sin: tuple[Tensor, Tensor],
    keys_and_values: tuple[Tensor, Tensor],
    mask: Tensor,
) -> Tensor:
    """Add the attention of one layer over the cache, and write the new keys and values there."""
    keys, values = keys_and_values
    total = mask.shape[-1]
    new = slice(total - x.shape[1], total)
    q, k, v = block.attention.project(rms_norm(x, block.input_norm, block.eps), *cos_sin)
    keys[:, :, new], values[:, :, new] = k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys[:, :, :total],
        values[:, :, :total],
        attn_mask=mask[:, None],
        enable_gqa=True,
    )
    return x + linear(y.transpose(1, 2).flatten(-2), block.attention.o_proj)
