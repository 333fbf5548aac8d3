"""Launches that are built while weights are on their way: on a GPU, or in Triton's interpreter."""

import threading

import pytest
import torch

from erniechat.model import assembly
from erniechat.model.conversion import Formats
from erniechat.model.expert_assembly import ExpertPlaces
from erniechat.model.families import FAMILIES
from erniechat.model.synthetic import random_weights
from quant.formats import FORMATS
from quant.kernels import backend_for
from quant.upload import Uploader
from tests.cuda.test_device_step import (
    CONFIG,
    DEVICE,
    HAS_CUDA,
    pytestmark,  # noqa: F401  # the same conditions
)
from tests.cuda.test_growth import launched

needs_gpu = pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
PATIENCE = 60.0


def make(weights):
    backend = backend_for("nf4", DEVICE, "triton" if HAS_CUDA else "reference")
    formats = Formats(FORMATS["nf4"], FORMATS["int8"], backend, backend)
    return assembly._assemble_pooled(
        CONFIG, weights, formats, DEVICE, torch.bfloat16, ExpertPlaces(), None
    )


@pytest.fixture
def late_and_early(monkeypatch):
    """Two decoders of the same weights: one is built before these arrive, one is ready."""
    backend = backend_for("nf4", DEVICE, "triton" if HAS_CUDA else "reference")
    formats = Formats(FORMATS["nf4"], FORMATS["int8"], backend, backend)
    weights = random_weights(CONFIG, FAMILIES["ernie4_5_moe"], formats)
    early = make(weights)
    early.wait()
    opened, upload = threading.Event(), Uploader.__call__

    def held_up(*given) -> None:
        assert opened.wait(PATIENCE)
        upload(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Uploader, "__call__", held_up)
        late = make(weights)
        yield late, early, opened
        opened.set()


def test_launches_that_are_older_than_the_weights_read_them(late_and_early):
    late, early, opened = late_and_early
    assert not late.wait(0)
    opened.set()
    assert late.wait(PATIENCE)
    caches = late.new_kv_cache(8), early.new_kv_cache(8)
    assert torch.equal(launched(late, 7, caches[0]), launched(early, 7, caches[1]))


@needs_gpu
def test_a_prompt_and_its_captures_wait_for_the_weights(late_and_early):
    late, early, opened = late_and_early
    threading.Timer(0.3, opened.set).start()
    caches = late.new_kv_cache(64), early.new_kv_cache(64)
    for ids in (list(range(40)), [5], list(range(50, 60))):
        assert torch.equal(late.forward(ids, caches[0]), early.forward(ids, caches[1]))
