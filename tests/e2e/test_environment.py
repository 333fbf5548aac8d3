"""The real command in odd environments: no network, an empty one, a hub cache, no GPU."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import erniechat
from tests.e2e.test_command import COMMAND, SUM
from tests.ui.screen_of import ROOT, TerminalRun

MINI = Path(erniechat.__file__).parent / "mini" / "checkpoint"

# Runs the command with all doors to the network shut; a knock is told on stderr.
BLOCKED = """
import socket, sys
def refuse(*args, **kwargs):
    print("KNOCK", args, file=sys.stderr)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
from erniechat.__main__ import main
main()
"""


def blocked(
    *arguments: str, without: tuple[str, ...] = ("HF_HUB_OFFLINE",), **environ: str
) -> subprocess.CompletedProcess[bytes]:
    base = {key: value for key, value in os.environ.items() if key not in without}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL, env={**base, "PYTHONPATH": str(ROOT), **environ}, cwd=ROOT,
    )  # fmt: skip  # one thought a line


def test_the_door_check_hears_a_knock(monkeypatch: pytest.MonkeyPatch) -> None:
    knock = "import urllib.request; urllib.request.urlopen('http://localhost:9')"
    monkeypatch.setitem(globals(), "BLOCKED", BLOCKED.replace("main()", knock))
    assert b"KNOCK" in blocked().stderr


@pytest.mark.parametrize("value", ["1", "Yes"])
def test_offline_no_door_is_tried(value: str) -> None:
    done = blocked("-m", "no/such", "-p", "x", HF_HUB_OFFLINE=value)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith(b"error: offline (HF_HUB_OFFLINE is set), and no/such is not in")
    assert b"KNOCK" not in done.stderr


def test_the_flag_shuts_the_doors_too() -> None:
    done = blocked("-m", "no/such", "-p", "x", "--offline")
    assert done.returncode == 3
    assert done.stderr.startswith(b"error: offline (--offline), and no/such is not in")
    assert b"KNOCK" not in done.stderr


def test_a_variable_that_the_hub_library_cannot_read_is_usage() -> None:
    done = blocked("-m", "no/such", "-p", "x", HF_HUB_ETAG_TIMEOUT="soon")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: huggingface_hub cannot read its variables (")


def test_a_model_that_is_not_here_is_told_before_torch_is_imported() -> None:
    code = (
        "import sys; from erniechat import cli; status = cli.main(sys.argv[1:]);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)"
    )
    for flags, environ in (
        (("--offline",), {"HF_HUB_OFFLINE": ""}),
        ((), {"HF_HUB_OFFLINE": "1"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "-m", "no/such", "-p", "x", *flags],
            capture_output=True, stdin=subprocess.DEVNULL, env={**os.environ, **environ}, cwd=ROOT,
        )  # fmt: skip  # one thought a line
        assert done.returncode == 3


def test_a_local_model_needs_no_network_and_reports_nothing() -> None:
    done = blocked("--quant", "int8", "-m", "mini", "-q", "-p", SUM)
    assert (done.stdout, done.stderr) == (b"17 + 25 = 42\n", b"")


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_hub_cache_is_found_where_the_hub_library_keeps_it(
    variable: str, tmp_path: Path
) -> None:
    hub = tmp_path / "hub" if variable == "HF_HOME" else tmp_path
    snapshot = hub / "models--some--mini" / "snapshots" / ("0" * 40)
    shutil.copytree(MINI, snapshot)
    (hub / "models--some--mini" / "refs").mkdir()
    (hub / "models--some--mini" / "refs" / "main").write_text("0" * 40)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    flags = ("--quant", "int8", "--no-copy", "-q", "-p", SUM, "--offline")
    done = blocked("-m", "some/mini", *flags, **{variable: str(tmp_path)})
    assert (done.stdout, done.stderr) == (b"17 + 25 = 42\n", b"")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_empty_environment_is_enough(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*COMMAND, "-q", "-p", SUM], capture_output=True, stdin=subprocess.DEVNULL, env=environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"17 + 25 = 42\n", b"")


def test_a_home_that_cannot_be_written_costs_nothing_but_the_copy() -> None:
    environ = {"HOME": "/proc/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*COMMAND, "-p", SUM, "-m", "mini", "--save"],
        capture_output=True, stdin=subprocess.DEVNULL, env=environ,
    )  # fmt: skip  # one thought a line
    assert (done.returncode, done.stdout) == (0, b"17 + 25 = 42\n")
    lines = done.stderr.decode().splitlines()
    assert any(line.startswith("note: no quantized copy is kept") for line in lines)
    assert any(line.startswith("note: the session is not saved") for line in lines)
    assert all(line.startswith("note: ") for line in lines)


@pytest.mark.timed
def test_without_a_gpu_the_header_says_cpu_and_something_is_said_at_once() -> None:
    began = time.monotonic()
    with TerminalRun([*COMMAND, "-m", "mini"], width=100, CUDA_VISIBLE_DEVICES="") as run:
        run.wait(lambda: run.bytes != b"", timeout=10)
        first = time.monotonic() - began
        run.wait(r"mini · int8 · cpu · context 4,096", timeout=60)
        run.wait("ctx 0/")
        run.send("\x04")
        assert run.end() == 0
    assert first < 2  # 0.1 s on an idle machine; see test_the_first_sign_of_life


@pytest.mark.timed
def test_the_first_sign_of_life_costs_a_tenth_of_a_second() -> None:
    code = (
        "import os, sys, time\n"
        "began = time.process_time()\n"
        "from erniechat import cli\n"
        "from erniechat.ui.live import LiveArea\n"
        "from erniechat.ui.terminal import LiveLine\n"
        "def show(self, text, **_):\n"
        "    os.write(1, str(time.process_time() - began).encode())\n"
        "    os._exit(0)\n"
        "LiveLine.show = show\n"
        "cli.main(['-m', 'mini'])\n"
    )
    found = []
    for _ in range(3):
        with TerminalRun([sys.executable, "-c", code]) as run:
            run.end()
            found.append(float(run.text.split()[0]))
    assert min(found) < 0.15  # of processor time; Python itself not counted


def test_appending_twice_gives_two_clean_answers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        with out.open("ab") as file:
            subprocess.run(
                [*COMMAND, "-q", "-p", SUM], stdout=file, stdin=subprocess.DEVNULL, check=True
            )
    assert out.read_bytes() == b"17 + 25 = 42\n" * 2


def test_every_file_is_where_the_conventions_put_it(tmp_path: Path) -> None:
    kinds = ("CONFIG", "DATA", "STATE", "CACHE")
    places = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in kinds}
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [*COMMAND, "-q", "-p", SUM, "--save"], capture_output=True, stdin=subprocess.DEVNULL,
        env={"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **places}, cwd=here,
    )  # fmt: skip  # one thought a line
    assert (done.returncode, done.stderr) == (0, b"")
    found = {path.relative_to(tmp_path).parts[:3] for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        ("DATA", "erniechat", "sessions"),
        ("STATE", "erniechat", "profiles"),
        ("CACHE", "erniechat", "copies"),
    }
    for folder in ("DATA/erniechat", "DATA/erniechat/sessions"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
    (session,) = (tmp_path / "DATA" / "erniechat" / "sessions").iterdir()
    assert session.stat().st_mode & 0o777 == 0o600
