"""Freed memory is kept: what touches new pages for each operation waits for the kernel."""

import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
from quant.allocator import keep_freed_memory
print(keep_freed_memory())
import torch
from erniechat.generation.sampling import Sampler
def faults(num_tokens, rounds=50):
    generator, sampler = torch.Generator().manual_seed(0), Sampler(0.8, top_p=0.8)
    logits = torch.empty(num_tokens).normal_(0, 2, generator=generator)
    for number in range(2 * rounds):
        if number == rounds:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        sampler.choose(logits, (), generator)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds
print(faults(101_304))
"""


def run(**environ: str) -> tuple[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        capture_output=True, text=True, check=True, env=os.environ | environ,
    )  # fmt: skip
    kept, faults = done.stdout.split()
    return kept, float(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_what_is_freed_is_taken_again_without_new_pages() -> None:
    kept, faults = run()
    assert kept == "True"
    assert (
        faults < 50
    )  # a vocabulary's logits have 99 pages, and there are ten tensors of that size


def test_an_allocator_that_the_user_has_set_is_left_alone() -> None:
    kept, _ = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"


GIVE_BACK = """
from quant.allocator import give_back_freed_memory, keep_freed_memory
from quant.memory import process_memory
import torch
keep_freed_memory()
kept = [torch.ones(100_000) for _ in range(125)]  # 50 MB in blocks that are not mapped alone
guard = torch.ones(10)  # above them, so that the heap's end stays
before = process_memory().rss_nbytes
del kept
held = process_memory().rss_nbytes
give_back_freed_memory()
print(before - held, held - process_memory().rss_nbytes)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_what_was_kept_is_given_back_between_two_models() -> None:
    """Or the second side of an A/B would have less of a budget than the first."""
    command = [sys.executable, "-c", GIVE_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, given = map(int, done.stdout.split())
    assert kept < 10e6
    assert given > 40e6
