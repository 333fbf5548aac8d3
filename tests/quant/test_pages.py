"""Pages of a mapped file: asked for in large, and in memory before they are touched."""

import mmap
import resource
import sys
from pathlib import Path

import pytest
import torch

from quant.copy import PIECE_NBYTES, QuantizedCopy
from quant.copy_writer import CopyWriter
from quant.pages import read_pages

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
NUM_VALUES = 5_000_000  # 40 MB


@pytest.fixture
def copy(tmp_path: Path) -> QuantizedCopy:
    with CopyWriter(tmp_path / "copy", {}) as writer:
        writer["w"] = torch.arange(NUM_VALUES)
        writer.finish()
    return QuantizedCopy(tmp_path / "copy")


def lines_of(path: Path) -> dict[str, str]:
    """What the system says of the mapping of a file."""
    text = Path("/proc/self/smaps").read_text()
    ours = text[text.index(str(path)) :].splitlines()[1:25]
    return {name: value for name, _, value in (line.partition(":") for line in ours)}


@ON_LINUX
def test_the_mapping_asks_for_large_pages(copy: QuantizedCopy) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without them")
    assert "hg" in lines_of(copy.path)["VmFlags"].split()


@ON_LINUX
def test_what_was_brought_into_memory_is_mapped_and_costs_no_fault(copy: QuantizedCopy) -> None:
    assert int(lines_of(copy.path)["Rss"].split()[0]) == 0
    calls = copy.page_calls()
    assert len(calls) == -(-copy.nbytes // PIECE_NBYTES) == 3
    if not all(call() for call in calls):
        pytest.skip("a kernel before 5.14")
    assert int(lines_of(copy.path)["Rss"].split()[0]) * 1024 >= copy.nbytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    total = int(copy["w"].sum())  # type: ignore[union-attr]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 200  # of 9,766 pages
    assert total == NUM_VALUES * (NUM_VALUES - 1) // 2


def test_a_part_that_is_not_there_is_no_error() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        assert not read_pages(memory, mmap.PAGESIZE, mmap.PAGESIZE)
