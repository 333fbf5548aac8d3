"""The pieces of a decoder block as functions: norm, rotary positions, attention, gated MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.linear import QuantLinear


def rms_norm(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale to a mean square of one, in float32, then multiply by the weight in the own dtype.

    Args:
        hidden_states: ``[num_tokens, hidden_size]``.
        weight: ``[hidden_size]``.
        eps: Added to the mean square.
    """
    x = hidden_states.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x.to(hidden_states.dtype) * weight.to(hidden_states.dtype)


def inverse_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Radians a position, float32 ``[head_dim / 2]``."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / theta ** (exponent / head_dim)


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's rotation, float32 ``[num_tokens, head_dim / 2]``."""
    angles = positions.float()[:, None] * inverse_frequencies(head_dim, theta, positions.device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs (x0, x1), (x2, x3), …, in float32.

    Source: transformers, ernie4_5, apply_rotary_pos_emb (interleaved, over the full head).

    Args:
        x: ``[num_heads, num_tokens, head_dim]``.
        cos: ``[num_tokens, head_dim / 2]``.
        sin: As cos.
    """
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
    return rotated.flatten(-2).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last tokens over all tokens up to their own.

    Args:
        q: ``[num_attention_heads, num_tokens, head_dim]``.
        k: ``[num_key_value_heads, num_tokens_held, head_dim]``; the last ones are q's own.
        v: As k.

    Returns:
        ``[num_tokens, num_attention_heads · head_dim]``.
    """
    num_tokens, num_held = q.shape[1], k.shape[1]
    if num_tokens == 1:  # the heads that share keys are so many queries: a third of the time
        grouped = q.reshape(1, k.shape[0], -1, q.shape[-1])
        return F.scaled_dot_product_attention(grouped, k[None], v[None]).view(1, -1)
    mask: Tensor | None = None
    if 1 < num_tokens < num_held:
        mask = torch.ones(num_tokens, num_held, dtype=torch.bool, device=q.device)
        mask = mask.tril(num_held - num_tokens)
    out = F.scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=1 < num_tokens == num_held,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1).flatten(1)


def gated_mlp(hidden_states: Tensor, gate_up: QuantLinear, down: QuantLinear) -> Tensor:
    """``down(silu(gate(x)) * up(x))`` with gate and up as one matrix."""
    gate, up = gate_up(hidden_states).chunk(2, -1)
    return down(F.silu(gate) * up)
