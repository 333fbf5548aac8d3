"""Fixtures of the model tests."""

from collections.abc import Iterator

import pytest
import torch
import transformers


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are faster on one thread, and their sums come out the same every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
