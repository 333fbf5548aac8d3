"""fp4: bitsandbytes' 4-bit float (sign, two exponent bits, a mantissa bit), for its checkpoints."""

from quant.formats.codebook import Codebook4

# Source: bitsandbytes, functional.get_4bit_type("fp4"), normalized to a largest value of 1.
FP4 = Codebook4(
    "fp4",
    [
        0.0,
        0.0052083334885537624,
        0.6666666865348816,
        1.0,
        0.3333333432674408,
        0.5,
        0.1666666716337204,
        0.25,
        0.0,
        -0.0052083334885537624,
        -0.6666666865348816,
        -1.0,
        -0.3333333432674408,
        -0.5,
        -0.1666666716337204,
        -0.25,
    ],
)
