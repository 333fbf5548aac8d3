"""Kills, corruption and two processes at once: nothing that was done is done again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from erniechat.cache import copies_folder
from erniechat.errors import CheckpointError
from erniechat.loader import load_engine
from erniechat.mini import checkpoint_folder
from erniechat.model import delivery
from erniechat.options import LoadOptions
from erniechat.repair import verify_copy
from quant.copy import QuantizedCopy
from quant.copy_names import DATA_FILE, INDEX_FILE
from tests.hub.loopback import Hub, environment_of

ROOT = Path(__file__).parents[2]
OPTIONS = LoadOptions(model="owner/mini", quant="int8")
SHARDS = sorted(path.name for path in checkpoint_folder().glob("*.safetensors"))
NBYTES = sum((checkpoint_folder() / name).stat().st_size for name in SHARDS)
HEADERS = 3 * (128 << 10)


def start(hub: Hub, home: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **environment_of(hub, home), "HF_HUB_CACHE": str(home / "hub")}
    environment |= {v: os.environ[v] for v in os.environ if v.startswith("XDG_")}
    command = [sys.executable, "-m", "tests.hub.killed_load", "owner/mini", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


def run(hub: Hub, home: Path, *arguments: str) -> int:
    process = start(hub, home, *arguments)
    _, errors = process.communicate()
    assert b"Fetching" not in errors  # huggingface_hub's own bar
    return process.returncode


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of weights that this process quantizes."""
    names: list[str] = []
    make_unit = delivery.make_unit

    def counted(unit, formats):  # type: ignore[no-untyped-def]  # as make_unit
        names.extend(unit.targets)
        return make_unit(unit, formats)

    monkeypatch.setattr(delivery, "make_unit", counted)
    return names


def partial_names() -> set[str]:
    (partial,) = copies_folder().glob(".*.partial")
    lines = [json.loads(line[9:]) for line in (partial / "journal").read_bytes().splitlines()]
    return {line["name"] for line in lines if "name" in line}


def check_copy() -> None:
    (folder,) = copies_folder().iterdir()
    copy = QuantizedCopy(folder)
    copy.verify()
    expected = load_engine(LoadOptions(quant="int8", copy=False))
    assert copy.nbytes >= expected.memory().weights_nbytes


@pytest.mark.parametrize(
    ("stage", "nbytes", "discards"),
    [
        ("download", 12_000_000, False),
        ("quantize", 1, False),
        ("quantize", 18_000_000, True),
        ("finish", 0, True),
    ],
)
def test_a_killed_start_is_gone_on_with(
    hub: Hub, home: Path, made: list[str], stage: str, nbytes: int, discards: bool
) -> None:
    more = ["discard"] if discards else []
    assert run(hub, home, stage, str(nbytes), *more) == -9
    done = partial_names() if stage != "download" else set()
    sent = sum(hub.sent.values())
    left = sum(
        path.stat().st_size
        for path in home.glob("hub/models--*/blobs/*")
        if path.stat().st_size > 1 << 20
    )
    load_engine(LoadOptions(model="owner/mini", quant="int8", discard_originals=discards))
    assert not done & set(made)
    fetched_again = sum(hub.sent.values()) - sent
    if not discards:
        assert fetched_again <= NBYTES - left + (64 << 10)  # not one byte twice
    else:
        assert [p for p in home.glob("hub/models--*/blobs/*") if p.stat().st_size > 4 << 20] == []
    check_copy()


def test_two_processes_that_start_at_once_fetch_and_quantize_once(hub: Hub, home: Path) -> None:
    hub.bytes_per_second = 10e6  # long enough for the other to come
    processes = [start(hub, home, "never", "0") for _ in range(2)]
    for process in processes:
        assert process.wait(60) == 0, process.communicate()[1]
        process.communicate()
    assert sum(hub.sent.get(name, 0) for name in SHARDS) <= NBYTES + 2 * HEADERS
    check_copy()


def damage(name_of: str) -> tuple[Path, str]:
    """Change bytes of a weight in the copy."""
    (folder,) = copies_folder().iterdir()
    entries = json.loads((folder / INDEX_FILE).read_text())["index"]["entries"]
    name = next(name for name in entries if name_of in name)
    part = next(iter(entries[name]["parts"].values()))
    with (folder / DATA_FILE).open("r+b") as file:
        file.seek(part["offset"])
        data = file.read(4)
        file.seek(part["offset"])
        file.write(bytes(255 - byte for byte in data))
    return folder, name


def test_a_damaged_norm_is_found_at_the_start_and_made_again(hub: Hub) -> None:
    load_engine(OPTIONS)
    folder, name = damage("norm")
    warnings: list[str] = []
    load_engine(OPTIONS, None, warnings.append)
    assert warnings == [f"the damaged weight {name} of {folder.name} made again from the original"]
    QuantizedCopy(folder).verify()


def test_verify_finds_what_a_start_does_not_look_at_and_makes_it_again(hub: Hub) -> None:
    load_engine(OPTIONS)
    folder, name = damage("experts")
    load_engine(OPTIONS)  # reads no expert
    seen: list[int] = []
    line = verify_copy(folder, lambda done, total: seen.append(done))
    assert line.endswith(f"the damaged weight {name} of {folder.name} made again from the original")
    assert seen[-1] > 10 << 20
    assert verify_copy(folder) == f"{folder.name}: sound"


def discarded(name_of: str) -> tuple[Path, str]:
    """A copy whose originals are gone, with a damaged weight; its folder and the weight's name."""
    load_engine(LoadOptions(model="owner/mini", quant="int8", discard_originals=True))
    return damage(name_of)


@pytest.mark.parametrize(("part", "most_nbytes"), [("experts", 3 * 96 * 256 * 2), ("norm", 512)])
def test_without_the_original_only_the_tensors_that_are_needed_are_fetched(
    hub: Hub, home: Path, part: str, most_nbytes: int
) -> None:
    folder, name = discarded(part)
    hub.sent.clear()
    line = verify_copy(folder)
    sent = sum(hub.sent.values())
    assert 0 < sent <= most_nbytes
    assert line == (
        f"{folder.name}: the damaged weight {name} of {folder.name} made again from the original, "
        f"of which {sent / 1e6:.1f} MB were fetched"
    )
    assert verify_copy(folder) == f"{folder.name}: sound"
    assert not list(home.glob("hub/models--*/blobs/*.incomplete"))


def test_a_start_fetches_a_damaged_norm_unless_it_is_offline(hub: Hub) -> None:
    folder, name = discarded("norm")
    with pytest.raises(CheckpointError, match=rf"damaged weight {name}, and .* had \(offline"):
        load_engine(LoadOptions(model="owner/mini", quant="int8", offline=True))
    warnings: list[str] = []
    load_engine(OPTIONS, None, warnings.append)
    assert warnings[0].endswith("were fetched")
    QuantizedCopy(folder).verify()


def test_what_the_hub_sends_is_not_written_unless_it_is_what_was_there(hub: Hub) -> None:
    folder, _ = discarded("experts")
    before = (folder / DATA_FILE).read_bytes()
    hub.fault(".safetensors", "corrupt", times=10)
    with pytest.raises(CheckpointError, match=r"changed since|not finite|infinite"):
        verify_copy(folder)
    assert (folder / DATA_FILE).read_bytes() == before


def test_where_the_hub_gives_nothing_verify_says_what_to_do(hub: Hub) -> None:
    folder, name = discarded("experts")
    hub.fault(".safetensors", 403, times=10)
    text = rf"damaged weight {name}, and the original .*denies access.* erniechat cache rm "
    with pytest.raises(CheckpointError, match=text):
        verify_copy(folder)
