"""The router's choice from its logits, once for a decoded token and for the rows of a prompt."""

import triton
import triton.language as tl


@triton.jit
def choose_experts(z, bias, i, real, norm_min, TOP_K: tl.constexpr):
    """The TOP_K experts with the largest biased softmax, of equals those with the lower ids.

    Args:
        z: float32 logits, -inf where there is no expert.
        bias: float32 correction bias.
        i: Ids.
        real: Whether there is such an expert.
        norm_min: Least sum by which shares are divided.

    Returns:
        Whether an expert is chosen; how many stand before it; ``[i, j]``, whether j stands before
        i; its share of the chosen ones' softmax, without the bias.
    """
    p = tl.exp(z - tl.max(z))
    p = p / tl.sum(p)
    biased = tl.where(real, p + bias, -float("inf"))
    ahead = biased[None, :] > biased[:, None]
    ahead = ahead | ((biased[None, :] == biased[:, None]) & (i[None, :] < i[:, None]))
    rank = tl.sum(ahead.to(tl.int32), 1)
    chosen = (rank < TOP_K) & real
    total = tl.maximum(tl.sum(tl.where(chosen, p, 0.0)), norm_min)
    share = (p / total).to(tl.bfloat16).to(tl.float32)  # the rounding of transformers
    return chosen, rank, ahead, share
