"""The formats: bit for bit bitsandbytes' codes, and the x16 layout spelled out by index."""

import pytest
import torch
from torch import Tensor

from quant.errors import QuantError
from quant.formats import FORMATS, format_named
from quant.formats.base import format_nbytes
from quant.formats.codebook import Codebook4, absmax_from_x16, absmax_to_x16, pack_x16, unpack_x16
from quant.formats.nf4 import NF4
from quant.kernels.bnb import from_bnb_rows, library, to_bnb_rows
from quant.tensor import QuantTensor

FOUR_BIT = ("nf4", "fp4")
SHAPE = (48, 192)
# (out_features, in_features) that every format holds, and which none divides evenly but x16.
SHAPES = ((16, 64), (48, 64), (80, 192))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, shape: tuple[int, int] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=generator(seed)) * 0.02


def codebook_format(name: str) -> Codebook4:
    found = FORMATS[name]
    assert isinstance(found, Codebook4)
    return found


def midpoints(format_name: str) -> Tensor:
    """A weight whose blocks hold every midpoint of the codebook, where two codes are as near."""
    values = codebook_format(format_name).codebook.sort().values
    halves = (values[:-1] + values[1:]) / 2
    around = torch.cat((halves, halves.nextafter(torch.tensor(2.0)), halves.nextafter(-values[-1])))
    block = torch.cat((around, torch.ones(64 - len(around))))  # absmax 1: nothing is rescaled
    return block.repeat(16, 1)


def one_huge_value() -> Tensor:
    weight = normal(1)
    weight[0, 5] = -60000.0
    weight[7, 64:128] = 0
    weight[7, 100] = 3.0
    return weight


def zero_blocks() -> Tensor:
    weight = normal(2)
    weight[3, :64] = 0
    weight[4] = 0
    weight[5, 64:128] = -0.0
    weight[6, ::2] = -0.0
    return weight


WEIGHTS = {
    "random": lambda name: normal(0),
    "ties": midpoints,
    "one huge value": lambda name: one_huge_value(),
    "zeros": lambda name: zero_blocks(),
    "tiny": lambda name: normal(3) * 1e-30,
    "integers": lambda name: torch.randint(-8, 9, SHAPE, generator=generator(4)).float(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("name", FOUR_BIT)
def test_4bit_codes_and_absmax_are_those_of_bitsandbytes(name, case, dtype):
    weight = WEIGHTS[case](name).to(dtype)
    packed, state = library().quantize_4bit(
        weight, blocksize=64, quant_type=name, compress_statistics=False
    )
    codes, absmax = codebook_format(name).encode(weight)
    high, low = codes[:, ::2], codes[:, 1::2]
    assert torch.equal((high << 4) | low, packed.view(weight.shape[0], -1))
    assert torch.equal(absmax.flatten(), state.absmax)


@pytest.mark.parametrize("name", FOUR_BIT)
def test_4bit_codebook_is_that_of_bitsandbytes(name):
    expected = library().get_4bit_type(name, device="cpu")
    assert torch.equal(codebook_format(name).codebook, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_codes_and_absmax_are_those_of_bitsandbytes(dtype):
    weight = normal(5)
    weight[2, 7] = 40.0
    weight[3] = torch.arange(192) - 95.5  # halves: rounded to even
    weight = weight.to(dtype)
    # In float32, since bitsandbytes itself computes in the dtype that it is given.
    codes, absmax, _ = library().int8_vectorwise_quant(weight.float())
    quantized = FORMATS["int8"].quantize(weight)
    assert torch.equal(quantized.parts["codes"], codes)
    assert torch.equal(quantized.parts["absmax"], absmax)


def test_int8_of_zeros_is_zeros():
    weight = torch.zeros(2, 5)
    weight[1] = -0.0
    quantized = FORMATS["int8"].quantize(weight)
    assert quantized.parts["codes"].count_nonzero() == 0
    assert FORMATS["int8"].dequantize(quantized, torch.float32).count_nonzero() == 0


def test_int8_weights_too_small_for_a_scale_shrink_and_never_grow():
    weight = torch.tensor([[1e-37, -3e-38, 0.0]])  # 127 / 1e-37 is beyond float32
    back = FORMATS["int8"].dequantize(FORMATS["int8"].quantize(weight), torch.float32)
    assert (back.abs() <= weight.abs()).all()


def test_x16_puts_code_64b_8t_j_of_row_16g_r_into_nibble_j_of_word_t_r():
    out_features, in_features = 48, 192
    codes = torch.randint(0, 16, (out_features, in_features), generator=generator()).byte()
    words = pack_x16(codes)
    assert words.dtype == torch.int32
    assert words.shape == (out_features // 16, in_features // 64, 8, 16)
    unsigned = (words.long() & 0xFFFFFFFF).tolist()
    for row, row_codes in enumerate(codes.tolist()):
        g, r = divmod(row, 16)
        for k, code in enumerate(row_codes):
            b, t, j = k // 64, k % 64 // 8, k % 8
            assert unsigned[g][b][t][r] >> (4 * j) & 15 == code


def test_absmax_x16_puts_block_b_of_row_16g_r_at_g_b_r():
    absmax = torch.arange(48 * 3).view(48, 3).float()
    grouped = absmax_to_x16(absmax)
    assert grouped.dtype == torch.float16
    assert grouped.shape == (3, 3, 16)
    for row in range(48):
        for block in range(3):
            assert grouped[row // 16, block, row % 16] == absmax[row, block]
    assert torch.equal(absmax_from_x16(grouped), absmax)


@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_is_the_inverse_of_packing(shape):
    codes = torch.randint(0, 16, shape, generator=generator()).byte()
    assert torch.equal(unpack_x16(pack_x16(codes)), codes)
    words = torch.randint(-(2**31), 2**31, (shape[0] // 16, shape[1] // 64, 8, 16)).int()
    assert torch.equal(pack_x16(unpack_x16(words)), words)


def test_nf4_by_hand():
    # One block a row. Row 0 is scaled by 2: 2 is code 15, -2 code 0, 0 code 7; 1 is 0.5 scaled,
    # between 0.4407 (code 12) and 0.5626 (13), whose middle is 0.5017: code 12. Row 1 is scaled
    # by 0.5: 0.5 is code 15, -0.04 is -0.08 scaled and next to -0.0911, code 6.
    weight = torch.zeros(16, 64)
    weight[0, :3] = torch.tensor([2.0, -2.0, 1.0])
    weight[1, :2] = torch.tensor([0.5, -0.04])
    quantized = NF4.quantize(weight)
    first_words = quantized.parts["codes"][0, 0, 0]  # codes 0 to 7 of each row
    assert [hex(word) for word in first_words[:3].tolist()] == [
        "0x77777c0f",
        "0x7777776f",
        "0x77777777",
    ]
    assert quantized.parts["absmax"][0, 0, :3].tolist() == [2.0, 0.5, 0.0]
    values = NF4.dequantize(quantized, torch.float32)
    assert values[0, :4].tolist() == pytest.approx([2.0, -2.0, 0.8814197, 0.0], abs=1e-6)
    assert values[1, :3].tolist() == pytest.approx([0.5, -0.0455250, 0.0], abs=1e-6)
    assert values[2:].count_nonzero() == 0


def test_int8_by_hand():
    # Row 0: a step is 1.27 / 127 = 0.01. Row 1: a step is 254 / 127 = 2; 3 / 2 rounds to even.
    weight = torch.tensor([[1.27, -0.01, 0.004], [254.0, 3.0, -254.0]])
    quantized = FORMATS["int8"].quantize(weight)
    assert quantized.parts["codes"].tolist() == [[127, -1, 0], [127, 2, -127]]
    values = FORMATS["int8"].dequantize(quantized, torch.float32)
    assert values[0].tolist() == pytest.approx([1.27, -0.01, 0.0])
    assert values[1].tolist() == pytest.approx([254.0, 4.0, -254.0])


def test_bf16_is_exact_for_bfloat16_and_rounds_float32_to_nearest_even():
    weight = normal(6).bfloat16()
    quantized = FORMATS["bf16"].quantize(weight)
    assert torch.equal(FORMATS["bf16"].dequantize(quantized, torch.bfloat16), weight)
    assert torch.equal(FORMATS["bf16"].dequantize(quantized, torch.float32), weight.float())
    between = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8]])  # both halfway between two bf16 values
    rounded = FORMATS["bf16"].dequantize(FORMATS["bf16"].quantize(between), torch.float32)
    assert rounded.tolist() == [[1.0, 1 + 2**-6]]


@pytest.mark.parametrize(("name", "largest"), [("nf4", 0.10), ("fp4", 0.13), ("int8", 0.012)])
def test_normal_weights_come_back_within_what_is_known_of_the_format(name, largest):
    # QLoRA's table and LLM.int8(): about 9 % for nf4, 12 % for fp4, 1 % for int8 rows.
    weight = normal(7, (64, 512))
    back = FORMATS[name].dequantize(FORMATS[name].quantize(weight), torch.float32)
    assert 0 < float((back - weight).norm() / weight.norm()) < largest


@pytest.mark.parametrize("name", FORMATS)
def test_quantizing_leaves_the_weight_as_it_was(name):
    weight = normal(8)
    before = weight.clone()
    FORMATS[name].quantize(weight)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_need_not_be_contiguous(name):
    weight = normal(9, (192, 64)).T  # [64, 192]
    from_view = FORMATS[name].quantize(weight)
    from_copy = FORMATS[name].quantize(weight.contiguous())
    for part, expected in from_copy.parts.items():
        assert torch.equal(from_view.parts[part], expected)
        assert from_view.parts[part].is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_part_specs_and_random_have_the_parts_of_a_quantized_weight(name, shape):
    found = FORMATS[name]
    quantized = found.quantize(normal(10, shape))
    for tensor in (quantized, found.random(shape, generator())):
        real = {part: (tuple(t.shape), t.dtype) for part, t in tensor.parts.items()}
        specs = found.part_specs(shape)
        assert {part: (spec.shape, spec.dtype) for part, spec in specs.items()} == real
        assert tensor.nbytes == format_nbytes(found, shape) == sum(s.nbytes for s in specs.values())
        assert (tensor.format, tensor.layout, tensor.shape) == (name, found.layout, shape)


@pytest.mark.parametrize("name", FORMATS)
def test_random_has_a_standard_deviation_of_a_fiftieth_and_follows_its_generator(name):
    shape = (256, 512)
    found = FORMATS[name]
    tensor = found.random(shape, generator(1))
    values = found.dequantize(tensor, torch.float32)
    assert values.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(values.mean().item()) < 0.0002  # or all tokens soon choose the same experts
    again, other = found.random(shape, generator(1)), found.random(shape, generator(2))
    for part, codes in tensor.parts.items():
        assert torch.equal(codes, again.parts[part])
    first = next(iter(tensor.parts))
    assert not torch.equal(tensor.parts[first], other.parts[first])


@pytest.mark.parametrize("name", FOUR_BIT)
def test_random_uses_every_code_in_every_nibble(name):
    codes = unpack_x16(FORMATS[name].random((256, 512), generator()).parts["codes"])
    for k in range(16):  # two words: torch draws 63 bits for two words if not told better
        counts = torch.bincount(codes[k % 2 :: 2, k // 2 :: 8].flatten().int(), minlength=16)
        assert counts.min() > 0.7 * codes.numel() / 256


@pytest.mark.parametrize("name", FOUR_BIT)
def test_4bit_takes_four_and_a_quarter_bits_a_weight(name):
    shape = (3072, 2560)
    assert format_nbytes(FORMATS[name], shape) * 8 == 4.25 * 3072 * 2560
    assert FORMATS[name].quantize(normal(11)).nbytes * 8 == 4.25 * SHAPE[0] * SHAPE[1]


def test_int8_takes_a_byte_a_weight_and_four_a_row():
    assert FORMATS["int8"].quantize(normal(11)).nbytes == 48 * 192 + 48 * 4
    assert FORMATS["bf16"].quantize(normal(11)).nbytes == 48 * 192 * 2


@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 100), "in_features 100 is not a multiple of block_size 64; use int8 or bf16"),
        ((24, 64), "out_features 24 is not a multiple of 16, .*; use int8 or bf16"),
    ],
)
def test_4bit_refuses_shapes_that_it_cannot_hold(name, shape, message):
    for refuse in (
        lambda: FORMATS[name].check(shape),
        lambda: FORMATS[name].part_specs(shape),
        lambda: FORMATS[name].quantize(torch.zeros(shape)),
        lambda: FORMATS[name].random(shape, generator()),
    ):
        with pytest.raises(QuantError, match=message):
            refuse()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_that_are_not_finite_are_refused(name, value, dtype):
    weight = normal(12).to(dtype)
    weight[40, 100] = value
    with pytest.raises(QuantError, match="NaN or infinite; the file is damaged"):
        FORMATS[name].quantize(weight)


@pytest.mark.parametrize("name", FOUR_BIT)
def test_scales_beyond_float16_are_refused_with_a_way_out(name):
    weight = normal(13)
    weight[0, 0] = 65504.0
    assert FORMATS[name].quantize(weight).parts["absmax"].isfinite().all()
    weight[0, 0] = 70000.0
    with pytest.raises(QuantError, match=r"70000, .* at most 65504; keep this model in bf16"):
        FORMATS[name].quantize(weight)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 70000.0])
def test_damaged_scales_of_a_bitsandbytes_checkpoint_are_refused(scale):
    packed, absmax = to_bnb_rows(NF4.quantize(normal(14)))
    absmax[3, 1] = scale
    with pytest.raises(QuantError, match="a 4-bit scale"):
        from_bnb_rows("nf4", packed, absmax, SHAPE)


@pytest.mark.parametrize("name", FOUR_BIT)
def test_bitsandbytes_rows_and_x16_are_each_others_inverse(name):
    quantized = FORMATS[name].quantize(normal(15))
    packed, absmax = to_bnb_rows(quantized)
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (48, 96))
    assert (absmax.dtype, tuple(absmax.shape)) == (torch.float32, (48, 3))
    back = from_bnb_rows(name, packed, absmax, SHAPE)
    for part, expected in quantized.parts.items():
        assert torch.equal(back.parts[part], expected)


@pytest.mark.parametrize("name", FOUR_BIT)
def test_a_checkpoint_of_bitsandbytes_dequantizes_as_bitsandbytes_does(name):
    # As on the hub: bytes in a column, scales in a line. Values that float16 holds exactly.
    weight = normal(16).half()
    packed, state = library().quantize_4bit(
        weight, blocksize=64, quant_type=name, compress_statistics=False
    )
    ours = from_bnb_rows(name, packed, state.absmax, SHAPE)
    expected = library().dequantize_4bit(packed, state).float()
    actual = FORMATS[name].dequantize(ours, torch.float16).float()
    assert torch.equal(actual, expected)


def test_bitsandbytes_rows_are_for_4bit_only():
    with pytest.raises(QuantError, match="4-bit formats only, got int8"):
        to_bnb_rows(FORMATS["int8"].quantize(normal(17)))


def test_a_tensor_in_another_layout_is_refused():
    strange = QuantTensor("nf4", "bnb-rows", SHAPE, NF4.quantize(normal(18)).parts)
    with pytest.raises(QuantError, match="expected the layout x16, got bnb-rows"):
        NF4.dequantize(strange, torch.float32)


def test_formats_are_found_by_name_and_an_unknown_one_is_refused():
    assert {format_named(name).name for name in FORMATS} == {"bf16", "int8", "nf4", "fp4"}
    with pytest.raises(QuantError, match=r'no format "int3"; there are bf16, int8, nf4, fp4'):
        format_named("int3")


def test_moving_a_tensor_to_where_it_is_gives_itself():
    quantized = NF4.quantize(normal(19))
    assert quantized.to(torch.device("cpu")) is quantized
