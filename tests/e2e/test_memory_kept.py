"""--cpu-memory as a promise: the most that a process held, against what it was given."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erniechat.sizes import size_nbytes
from tests.ui.screen_of import ROOT

LONG = "Summarize: " + "word " * 1900
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
MIB = 1 << 20


def peak_of(budget: str, *flags: str) -> tuple[int, int, str]:
    """Exit status, peak bytes and stderr of an answer to a long prompt."""
    command = [sys.executable, "-m", "erniechat", "-p", LONG, "--max-tokens", "100", "--seed", "1"]
    process = subprocess.Popen(
        [*command, "--cpu-memory", budget, *flags], cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip  # one thought a line
    peak = 0
    while process.poll() is None:
        found = PEAK.search(Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1]) * 1024) if found else peak
        time.sleep(0.01)
    return process.returncode, peak, process.communicate()[1]


def least_of(*flags: str) -> str:
    """What `erniechat plan` names as the least."""
    done = subprocess.run(
        [sys.executable, "-m", "erniechat", "plan", "mini", "--cpu-memory", "9MiB", *flags],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"give (\S+) or more", done.stderr)
    assert found, done.stderr
    return found[1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a peak there")
@pytest.mark.parametrize(
    ("flags", "fewer"), [(("--4bit",), 12 * MIB), (("--8bit", "--kernels", "torch"), 0)]
)
def test_the_least_that_a_plan_names_is_taken_and_kept(flags: tuple[str, ...], fewer: int) -> None:
    """From the first start on, which quantizes; and with less, where experts are on disk."""
    nbytes = size_nbytes(least_of(*flags), 0)
    assert nbytes
    for asked in {nbytes, nbytes - fewer}:
        status, peak, said = peak_of(f"{asked}B", *flags)
        if status == 4:  # what is named has some room for a chat, which holds more
            assert asked < nbytes, said
            continue
        assert (status, peak <= asked) == (0, True), (said, peak, asked)
