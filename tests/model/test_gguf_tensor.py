"""Blocks of GGUF tensors as floats: worked by hand, and whole tensors by ranges of rows."""

import struct

import gguf
import numpy as np
import pytest
import torch

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.gguf_file import GgufEntry
from erniechat.model.gguf_tensor import BLOCKED, stored


def entry(path, kind_name, shape, offset=0):
    kind = gguf.GGMLQuantizationType[kind_name]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    return GgufEntry("t", path, kind.value, kind_name, block, nbytes, shape, offset)


def written(tmp_path, raw):
    path = tmp_path / "a.gguf"
    path.write_bytes(raw)
    return path


def test_a_block_of_q8_0_is_a_scale_and_32_bytes(tmp_path):
    codes = list(range(-16, 16))
    path = written(tmp_path, struct.pack("<e32b", 0.5, *codes))
    found = stored(entry(path, "Q8_0", (1, 32)), "t").read()
    assert found.tolist() == [[code / 2 for code in codes]]


def test_a_block_of_q4_0_is_a_scale_and_nibbles_low_half_first(tmp_path):
    codes = [i % 16 for i in range(32)]
    packed = [codes[i] | codes[i + 16] << 4 for i in range(16)]
    path = written(tmp_path, struct.pack("<e16B", 0.25, *packed))
    found = stored(entry(path, "Q4_0", (1, 32)), "t").read()
    assert found.tolist() == [[(code - 8) / 4 for code in codes]]


def test_a_block_of_q6_k_has_16_scales_and_codes_of_4_and_2_bits(tmp_path):
    """Low bits 1 and 2, high bits 0 to 3: the first 32 codes are 1, the next 1 + 16, and so on."""
    low, high, scales = [0x21] * 128, [0b11100100] * 64, [1] * 8 + [-2] * 8
    path = written(tmp_path, struct.pack("<128B64B16be", *low, *high, *scales, 2.0))
    found = stored(entry(path, "Q6_K", (1, 256)), "t").read()[0]
    quarter = [1 - 32, 1 + 16 - 32, 2 + 32 - 32, 2 + 48 - 32]  # codes are centred at 32
    expected = [2.0 * code for code in quarter for _ in range(32)]
    assert found[:128].tolist() == expected
    assert found[128:].tolist() == [-2 * value for value in expected]


def test_a_block_of_q4_k_has_scales_and_minima_of_6_bits(tmp_path):
    """Every scale is 3, every minimum 5: their low bits lie in the first eight of twelve bytes."""
    packed_scales = [3] * 4 + [5] * 4 + [5 << 4 | 3] * 4
    raw = struct.pack("<ee12B128B", 0.5, 0.25, *packed_scales, *[0x71] * 128)
    found = stored(entry(written(tmp_path, raw), "Q4_K", (1, 256)), "t").read()[0]
    low, high = 0.5 * 3 * 1 - 0.25 * 5, 0.5 * 3 * 7 - 0.25 * 5
    assert found.tolist() == ([low] * 32 + [high] * 32) * 4


@pytest.mark.parametrize("kind", BLOCKED)
def test_rows_of_every_type_are_those_of_the_whole(kind, tmp_path):
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(0).integers(0, 64, (6, 2 * nbytes), np.uint8)  # small exponents
    path = written(tmp_path, b"\xff" * 7 + raw.tobytes())
    whole = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).copy())
    found = stored(entry(path, kind, (3, 2, 2 * block), 7), "t")
    assert found.nbytes == raw.nbytes
    assert found.dtype == found.read().dtype == torch.float32
    assert torch.equal(found.read(), whole.view(3, 2, -1))
    assert torch.equal(found.read((2,)), whole.view(3, 2, -1)[2])
    assert torch.equal(found.read((1, slice(1, 2))), whole.view(3, 2, -1)[1, 1:2])
    third = stored(entry(path, kind, (3, 2, 2 * block), 7).part(2, 3), "t")
    assert torch.equal(third.read()[0], whole.view(3, 2, -1)[2])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)],
)
def test_floats_are_read_as_they_are(kind, dtype, tmp_path):
    values = torch.tensor([[0.5, -3.0], [1.0, 2.0]], dtype=dtype)
    path = written(tmp_path, values.view(torch.uint8).numpy().tobytes())
    found = stored(entry(path, kind, (2, 2)), "t")
    assert found.dtype == dtype
    assert torch.equal(found.read((slice(1, 2),)), values[1:])


def test_other_types_are_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r'a\.gguf: "t" is stored as TQ1_0; use a file'):
        stored(entry(tmp_path / "a.gguf", "TQ1_0", (1, 256)), "t")


def test_a_file_that_has_shrunk_since_is_told(tmp_path):
    tensor = stored(entry(written(tmp_path, b"\0" * 40), "Q8_0", (2, 32)), "t")
    with pytest.raises(CheckpointError, match=r"a\.gguf ends inside t"):
        tensor.read()
