"""What a captured step is told, as far as it is reckoned."""

import pytest

from quant.kernels.triton.step_weights import attention_stages, divisor, pieces


@pytest.mark.parametrize(
    ("shared_kib", "stages"),  # of a program: none known; 7.5; 8.6, 8.9 and 12.0; 8.0; 9.0
    [(0, 2), (64, 2), (99, 3), (163, 5), (227, 5)],
)
def test_attention_takes_the_tiles_that_fit_and_from_compute_capability_8_half_of_the_memory(
    shared_kib, stages
):
    tile, head_dim = 64, 128
    assert attention_stages(shared_kib << 10, tile, head_dim) == stages
    nbytes = (stages - 1) * 2 * tile * head_dim * 2 + 6144  # as Triton 3.6 allots it
    if shared_kib >= 99:
        assert (shared_kib + 1 << 10) / 2 < nbytes <= shared_kib << 10


def test_inputs_are_cut_into_equal_pieces_of_whole_blocks():
    assert pieces(12288, 8) == 8
    assert pieces(320, 4) == 1  # five blocks
    assert pieces(320, 5) == 5
    assert divisor(8, 8) == 8
    assert divisor(7, 6) == 1
