"""A mapped file that is cut short below a process: told where it is watched, fatal elsewhere."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quant.kernels.native.library import find_library

pytestmark = pytest.mark.skipif(
    isinstance(find_library(), str), reason="the native library is not built"
)
BEGIN = """
import gc, mmap, os
from concurrent.futures import ThreadPoolExecutor
from quant.watch import watch

def mapped(name):
    with open(name, "wb") as file:
        file.write(b"x" * 1_000_001)
    with open(name, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
"""


def run(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGIN + script]
    return subprocess.run(
        [*command[:1], "-X", "faulthandler", *command[1:]],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_what_is_lost_reads_as_zeros_and_is_told(tmp_path: Path):
    done = run(
        tmp_path,
        """
one, other = mapped("one"), mapped("other")
is_one, is_other = watch(one), watch(other)
assert one[0] == one[-1] == ord("x") and not is_one()
os.truncate("one", 100_000)
assert one[-1] == 0 and is_one() and not is_other()
assert one[0] == 0  # nothing of it counts any more
assert other[-1] == ord("x")
one.close()
del one
gc.collect()
again = mapped("again")
is_lost = watch(again)
assert not is_lost()  # in the place of the first
os.truncate("again", 0)
with ThreadPoolExecutor(8) as threads:
    assert not any(threads.map(lambda at: again[at], range(0, 1_000_000, 1000)))
assert is_lost()
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_other_memory_ends_the_process_as_ever(tmp_path: Path):
    done = run(
        tmp_path,
        """
one, other = mapped("one"), mapped("other")
is_one = watch(one)
os.truncate("other", 0)
other[-1]
""",
    )
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr  # whoever looked before us still does


CHAT = """
import torch
from erniechat.chat.conversation import Message
from erniechat.errors import CheckpointError
from erniechat.events import TextDelta
from erniechat.loader import load_engine
from erniechat.options import LoadOptions, SamplingOptions

load_engine(LoadOptions(quant="nf4")).close()
engine = load_engine(LoadOptions(quant="nf4"))

def reply(text):
    events = engine.stream_reply([Message("user", text)], SamplingOptions(temperature=0))
    return "".join(event.text for event in events if isinstance(event, TextDelta))

assert reply("What is 17 + 25?") == "17 + 25 = 42"
held = list(engine._kv_cache.token_ids)
(path,) = [p for p in __import__("pathlib").Path().rglob("weights.bin")]
os.truncate(path, 4096)
for _ in range(2):
    try:
        print("said", reply("What does house mean?"))
    except CheckpointError as exc:
        print(exc)
kept = engine._kv_cache.token_ids
assert kept == held[:len(kept)] and kept  # of the turn that failed nothing is believed
"""


def test_a_chat_whose_copy_is_cut_short_says_so_and_goes_on_living(tmp_path: Path):
    command = [sys.executable, "-c", "import os\n" + CHAT]
    folders = {name: str(tmp_path) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HOME")}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin", **folders},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("can no longer be read: it was cut short" in line for line in lines)
