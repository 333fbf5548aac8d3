"""Settings of the whole suite: quiet, offline, one thread a process, nothing in the real home."""

import os
import tempfile
from pathlib import Path

import pytest

# Before torch is imported. The suite runs as many processes as there are cores, and two threads
# that wait for each other on one core make a test take ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
_HOME = Path(tempfile.gettempdir()) / f"erniechat-tests-{os.getuid()}"
for _variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
    os.environ[_variable] = str(_HOME / _variable.lower())
for _variable in [name for name in os.environ if name.startswith("ERNIECHAT_")]:
    del os.environ[_variable]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try the tests that keep an eye on the clock again: other programs run on this machine too."""
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=3, reruns_delay=1))
