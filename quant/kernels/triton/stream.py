"""The residual stream between a decoded token's products: its norm, and how it is handed on."""

import triton
import triton.language as tl


@triton.jit
def load_squares(squares, NUM_GROUPS: tl.constexpr, PADDED: tl.constexpr):
    """The sums of squares that `publish` left for 16 rows each, for `rms_scale`."""
    i = tl.arange(0, PADDED)
    return tl.load(squares + i, mask=i < NUM_GROUPS, other=0.0)


@triton.jit
def rms_scale(sums, hidden_size, eps):
    """What a norm multiplies by."""
    return 1.0 / tl.sqrt(tl.sum(sums) / hidden_size + eps)


@triton.jit
def store_quantized(values, xq, xs, group, BITS: tl.constexpr):
    """Sixteen activations as int16 with their scale, or as bfloat16 where the weights are."""
    i = tl.arange(0, 16)
    if BITS == 16:
        tl.store(xq + group * 16 + i, values.to(tl.bfloat16))
    else:
        largest = tl.max(tl.abs(values))
        inverse = tl.where(largest > 0, 32767.0 / tl.maximum(largest, 1e-30), 0.0)
        tl.store(xq + group * 16 + i, tl.floor(values * inverse + 0.5).to(tl.int16))
        tl.store(xs + group, largest * (1.0 / 32767.0))


@triton.jit
def publish(x, values, norm, squares, xq, xs, group, BITS: tl.constexpr):
    """Sixteen rows of the residual stream: as they are, and prepared for the next product.

    The norm's scalar is not known before all rows are; being one factor for the whole vector it
    is left to the reader, who multiplies its result with `rms_scale`. norm is its weight for these
    rows, float32 ``[16]``.
    """
    tl.store(x + group * 16 + tl.arange(0, 16), values)
    tl.store(squares + group, tl.sum(values * values))
    store_quantized(values * norm, xq, xs, group, BITS)
