"""The layers of the ERNIE 4.5 MoE architecture, for training: all experts as one wide product.

The maths is that of transformers' Ernie4_5_MoeForCausalLM; evaluate.py compares the two. This is
the second implementation, independent of the engine, and stays a training tool.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Product with a weight ``[out_features, in_features]``, in the dtype of x."""
    return F.linear(x, weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, computed in float32."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * y.to(x.dtype)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[..., head_dim / 2]`` in float32 of positions ``[...]``."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * theta ** (-steps / head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs (x0, x1), (x2, x3), … of heads.

    Args:
        x: Queries or keys ``[..., num_heads, head_dim]``.
        cos: ``[..., head_dim / 2]``.
        sin: ``[..., head_dim / 2]``.
    """
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
    return rotated.flatten(-2).to(x.dtype)


def causal_in_documents(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    """Causal attention over packed documents.

    Args:
        q: Queries ``[num_tokens, num_heads, head_dim]``.
        k: Keys ``[num_tokens, num_key_value_heads, head_dim]``.
        v: Values, as the keys.
        starts: int32 ``[num_documents + 1]``: where each document begins, and the end.
        longest: At least the length of the longest document.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if q.is_cuda:
        attended: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, longest, longest, 0.0, True, False
        )[0]
        return attended
    parts = []
    for begin, end in pairwise(starts.tolist()):
        if end > begin:
            # [1, num_heads, length, head_dim]
            one_q, one_k, one_v = (t[None, begin:end].transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True)
            parts.append(y[0].transpose(0, 1))
    return torch.cat(parts)


class Attention(nn.Module):
    """The projections of grouped-query attention."""

    def __init__(
        self, hidden_size: int, *, num_heads: int, num_key_value_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = num_heads, num_key_value_heads
        self.head_dim = head_dim
        query_size, key_value_size = num_heads * head_dim, num_key_value_heads * head_dim
        self.q_proj = nn.Parameter(torch.empty(query_size, hidden_size))
        self.k_proj = nn.Parameter(torch.empty(key_value_size, hidden_size))
        self.v_proj = nn.Parameter(torch.empty(key_value_size, hidden_size))
        self.o_proj = nn.Parameter(torch.empty(hidden_size, query_size))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[..., heads, head_dim]``, the first two rotated."""
        q = linear(x, self.q_proj).view(*x.shape[:-1], self.num_heads, self.head_dim)
        k = linear(x, self.k_proj).view(*x.shape[:-1], self.num_key_value_heads, self.head_dim)
        v = linear(x, self.v_proj).view(*x.shape[:-1], self.num_key_value_heads, self.head_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class Dense(nn.Module):
    """A gated feed-forward layer; also the shared experts of an MoE layer."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(width, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(hidden_size, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``[..., hidden_size]``."""
        return linear(F.silu(linear(x, self.gate_proj)) * linear(x, self.up_proj), self.down_proj)


class MoE(nn.Module):
    """Routed experts with shared ones; every expert is computed, weight zero where not chosen."""

    bias: Tensor

    def __init__(
        self,
        hidden_size: int,
        expert_size: int,
        *,
        num_experts: int,
        num_experts_per_tok: int,
        num_shared_experts: int,
        norm_min: float,
    ) -> None:
        super().__init__()
        self.num_experts_per_tok, self.norm_min = num_experts_per_tok, norm_min
        self.gate = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.register_buffer("bias", torch.zeros(num_experts))
        self.expert_gate = nn.Parameter(torch.empty(num_experts, expert_size, hidden_size))
        self.expert_up = nn.Parameter(torch.empty(num_experts, expert_size, hidden_size))
        self.expert_down = nn.Parameter(torch.empty(num_experts, hidden_size, expert_size))
        self.shared = Dense(hidden_size, expert_size * num_shared_experts)

    def route(self, x: Tensor) -> Tensor:
        """Weights ``[..., num_experts]`` in float32, zero for the experts that are not chosen."""
        probabilities = F.softmax(F.linear(x.float(), self.gate.float()), -1)
        # The bias only chooses.
        chosen = (probabilities + self.bias).topk(self.num_experts_per_tok, -1).indices
        weights = probabilities.gather(-1, chosen)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=self.norm_min)
        return torch.zeros_like(probabilities).scatter(-1, chosen, weights)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the layer to ``[..., hidden_size]``.

        Returns:
            The result, and the number of tokens of each expert ``[num_experts]``.
        """
        weights = self.route(x)
        gate, up = self.expert_gate.flatten(0, 1), self.expert_up.flatten(0, 1)
        y = F.silu(linear(x, gate)) * linear(x, up)  # [..., num_experts * expert_size]
        y = y.view(*weights.shape, -1) * weights.to(x.dtype)[..., None]
        down = self.expert_down.transpose(0, 1).flatten(1)  # [hidden_size, experts * expert_size]
        load = (weights > 0).flatten(0, -2).sum(0)
        return linear(y.flatten(-2), down) + self.shared(x), load


class Block(nn.Module):
    """One layer: attention, then a dense or an MoE feed-forward layer."""

    def __init__(self, attention: Attention, mlp: Dense | MoE, *, eps: float) -> None:
        super().__init__()
        hidden_size = attention.o_proj.shape[0]
        self.eps = eps
        self.input_norm = nn.Parameter(torch.ones(hidden_size))
        self.post_norm = nn.Parameter(torch.ones(hidden_size))
        self.attention = attention
        self.mlp = mlp

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add the feed-forward layer; also the load of an MoE layer's experts."""
        result: Tensor | tuple[Tensor, Tensor] = self.mlp(rms_norm(x, self.post_norm, self.eps))
        y, load = result if isinstance(result, tuple) else (result, None)
        return x + y, load

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, longest: int
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the layer to packed documents ``[num_tokens, hidden_size]``."""
        q, k, v = self.attention.project(rms_norm(x, self.input_norm, self.eps), cos, sin)
        y = causal_in_documents(q, k, v, starts, longest).flatten(-2)
        return self.feed_forward(x + linear(y, self.attention.o_proj))


def build_block(config: dict[str, Any], layer_idx: int) -> Block:
    """Build a layer from the checkpoint's config: the one place that knows its spellings."""
    hidden_size = config["hidden_size"]
    attention = Attention(
        hidden_size,
        num_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
    )
    mlp: Dense | MoE
    if config["moe_layer_start_index"] <= layer_idx <= config["moe_layer_end_index"]:
        mlp = MoE(
            hidden_size,
            config["moe_intermediate_size"],
            num_experts=config["moe_num_experts"],
            num_experts_per_tok=config["moe_k"],
            num_shared_experts=config["moe_num_shared_experts"],
            norm_min=config["moe_norm_min"],
        )
    else:
        mlp = Dense(hidden_size, config["intermediate_size"])
    return Block(attention, mlp, eps=config["rms_norm_eps"])
