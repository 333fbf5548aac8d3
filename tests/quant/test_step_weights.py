"""What a captured step is told, as far as it is reckoned."""

import pytest

from quant.kernels.triton.step_weights import attention_stages, divisor, pieces


@pytest.mark.parametrize(
    ("shared_kib", "pdl", "stages"),  # none known; 7.5; 8.6 and 8.9; 8.0; 12.0; 9.0
    [
        (0, False, 2),
        (64, False, 2),
        (99, False, 3),
        (163, False, 3),
        (99, True, 3),
        (227, True, 5),
    ],
)
def test_attention_takes_the_tiles_that_fit_and_of_programs_that_begin_early_half_of_the_memory(
    shared_kib, pdl, stages
):
    tile, head_dim = 64, 128
    assert attention_stages(shared_kib << 10, tile, head_dim, pdl=pdl) == stages
    nbytes = (stages - 1) * 2 * tile * head_dim * 2 + 6144  # as Triton 3.6 allots it
    if shared_kib >= 99:
        assert nbytes <= shared_kib << 10
    if pdl:
        assert nbytes > (shared_kib + 1 << 10) / 2


def test_inputs_are_cut_into_equal_pieces_of_whole_blocks():
    assert pieces(12288, 8) == 8
    assert pieces(320, 4) == 1  # five blocks
    assert pieces(320, 5) == 5
    assert divisor(8, 8) == 8
    assert divisor(7, 6) == 1
