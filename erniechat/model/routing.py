"""Which experts a token uses, and with what weights."""

import torch
import torch.nn.functional as F
from torch import Tensor


def route(
    hidden_states: Tensor,
    gate: Tensor,
    correction_bias: Tensor,
    num_experts_per_tok: int,
    norm_min: float,
) -> tuple[Tensor, Tensor]:
    """Choose experts by biased probability and weigh them by the unbiased one, all in float32.

    The correction bias sits near a large constant and differs between experts by about as much
    as the probabilities do, so rounding it to bfloat16 would choose other experts.

    Source: transformers, Ernie4_5_MoeTopKRouter.

    Args:
        hidden_states: ``[num_tokens, hidden_size]``, any float dtype.
        gate: float32 ``[num_experts, hidden_size]``.
        correction_bias: float32 ``[num_experts]``; only chooses.
        num_experts_per_tok: Experts a token uses.
        norm_min: Least sum by which weights are divided.

    Returns:
        topk_ids int64 and topk_weights float32, both ``[num_tokens, num_experts_per_tok]``; a
        row of weights sums to 1.
    """
    probabilities = F.linear(hidden_states.float(), gate).softmax(-1)
    topk_ids = torch.topk(probabilities + correction_bias, num_experts_per_tok, dim=-1).indices
    topk_weights = probabilities.gather(-1, topk_ids)
    total = topk_weights.sum(-1, keepdim=True).clamp(min=norm_min)
    return topk_ids, topk_weights / total
