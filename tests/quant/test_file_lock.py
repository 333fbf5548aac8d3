"""Locks on files end with the process that holds them; where there are none it goes without."""

import subprocess
import sys
from pathlib import Path

import pytest

from quant.experts.profile import RoutingProfile, add_to_profile, load_profile
from quant.file_lock import try_lock
from quant.memory import process_memory

HOLD = """
import sys, time
from quant.file_lock import try_lock
with open(sys.argv[1]) as file:
    print(try_lock(file.fileno()), flush=True)
    time.sleep(60)
"""


def test_a_killed_process_frees_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    command = [sys.executable, "-c", HOLD, str(path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder,
        path.open() as file,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not try_lock(file.fileno())
        holder.kill()
        holder.wait()
        assert try_lock(file.fileno())


@pytest.fixture
def no_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is imported from here on finds what Windows has not."""
    for name in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_posix")
def test_without_locks_there_is_a_profile_all_the_same(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="no flock"):
        try_lock(file.fileno())
    path = tmp_path / "profile.json"
    add_to_profile(path, RoutingProfile("a model", 1, {1: (1.0, 2.0)}))
    assert load_profile(path, "a model") is not None


@pytest.mark.usefixtures("no_posix")
def test_without_the_systems_count_the_peak_is_what_is_held(tmp_path: Path) -> None:
    memory = process_memory(tmp_path)
    assert memory.peak_rss_nbytes == memory.rss_nbytes
