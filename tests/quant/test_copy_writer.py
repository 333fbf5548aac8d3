"""Writing the copy: what is written stays, whatever ends the writer; two writers make one copy."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from quant.copy import QuantizedCopy
from quant.copy_journal import JOURNAL_FILE
from quant.copy_names import DATA_FILE, INDEX_FILE
from quant.copy_writer import CopyWriter, partial_folder
from quant.formats import FORMATS

ROOT = Path(__file__).parents[2]
WEIGHTS = {
    **{f"w{i}": torch.full((100 + i,), float(i)) for i in range(5)},
    "nf4": FORMATS["nf4"].quantize(torch.randn(32, 64)),
}


def begin(folder: Path, names: list[str]) -> None:
    with CopyWriter(folder, {}) as writer:
        for name in names:
            writer[name] = WEIGHTS[name]


def go_on(folder: Path) -> list[str]:
    """Finish a copy; the names that were still to be written."""
    with CopyWriter(folder, {"by": "second"}) as writer:
        missing = [name for name in WEIGHTS if name not in writer]
        for name in missing:
            writer[name] = WEIGHTS[name]
        writer.finish()
    return missing


def check(folder: Path) -> None:
    copy = QuantizedCopy(folder)
    copy.verify()
    assert set(copy) == set(WEIGHTS)
    for name, weight in WEIGHTS.items():
        found = copy[name]
        if isinstance(weight, torch.Tensor):
            assert torch.equal(found, weight)  # type: ignore[arg-type]
        else:
            assert torch.equal(found.parts["codes"], weight.parts["codes"])  # type: ignore[union-attr]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["copy"]
    assert sorted(path.name for path in folder.iterdir()) == [INDEX_FILE, DATA_FILE]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_is_broken_off_leaves_its_weights_to_the_next(tmp_path, error):
    def broken_off() -> None:
        with CopyWriter(tmp_path / "copy", {}) as writer:
            writer["w0"] = WEIGHTS["w0"]
            raise error

    with pytest.raises(error):
        broken_off()
    assert not (tmp_path / "copy").exists()
    assert go_on(tmp_path / "copy") == ["w1", "w2", "w3", "w4", "nf4"]
    check(tmp_path / "copy")
    assert QuantizedCopy(tmp_path / "copy").meta == {"by": "second"}


def test_a_part_whose_checksum_is_made_beside_the_writing_has_it(tmp_path):
    large = torch.arange(3 << 20, dtype=torch.int32)
    with CopyWriter(tmp_path / "copy", {}) as writer:
        writer["large"], writer["small"] = large, large[:9]
        writer.finish()
    copy = QuantizedCopy(tmp_path / "copy")
    copy.verify()
    assert torch.equal(copy["large"], large)  # type: ignore[arg-type]


def test_a_writer_that_wrote_nothing_leaves_nothing(tmp_path):
    begin(tmp_path / "copy", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", [1, 100, 500, 1200])
def test_data_that_did_not_reach_the_disk_is_written_again(tmp_path, lost):
    """After a power cut the journal may know more than the data file has."""
    folder = tmp_path / "copy"
    begin(folder, ["w0", "w1", "w2"])
    journal = partial_folder(folder) / JOURNAL_FILE
    lines = [line for line in journal.read_bytes().splitlines(True) if b"synced" not in line]
    journal.write_bytes(b"".join(lines))
    data = partial_folder(folder) / DATA_FILE
    os.truncate(data, data.stat().st_size - lost)
    assert go_on(folder)[0] == {1: "w2", 100: "w2", 500: "w1", 1200: "w0"}[lost]
    check(folder)


def test_a_hole_in_data_that_is_not_known_to_be_on_the_disk_is_found(tmp_path):
    folder = tmp_path / "copy"
    begin(folder, ["w0", "w1", "w2"])
    journal = partial_folder(folder) / JOURNAL_FILE
    lines = [line for line in journal.read_bytes().splitlines(True) if b"synced" not in line]
    journal.write_bytes(b"".join(lines))
    with (partial_folder(folder) / DATA_FILE).open("r+b") as file:
        file.seek(500)
        file.write(bytes(16))
    assert go_on(folder)[0] == "w1"
    check(folder)


def test_every_cut_of_the_journal_loses_at_most_what_it_cuts(tmp_path):
    folder = tmp_path / "copy"
    begin(folder, ["w0", "w1"])
    partial = partial_folder(folder)
    data, text = (partial / DATA_FILE).read_bytes(), (partial / JOURNAL_FILE).read_bytes()
    for cut in range(0, len(text), 7):
        partial.mkdir(exist_ok=True)
        (partial / DATA_FILE).write_bytes(data)
        (partial / JOURNAL_FILE).write_bytes(text[:cut])
        with CopyWriter(folder, {}) as writer:
            whole = [json.loads(line[9:]) for line in text[:cut].splitlines(True)[:-1]]
            kept = {line["name"] for line in whole if "name" in line}
            assert kept <= {name for name in WEIGHTS if name in writer} <= {"w0", "w1"}


WRITE_FOR_EVER = """
import sys, torch
from pathlib import Path
from quant.copy_writer import CopyWriter
with CopyWriter(Path(sys.argv[1]), {}) as writer:
    for i in range(10**9):
        writer[str(i)] = torch.full((1000,), float(i))
        if i == 100:
            print("writing", flush=True)
"""


def start_writer(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    return process


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()


def test_a_killed_writer_loses_at_most_the_weight_at_work(tmp_path):
    folder = tmp_path / "copy"
    stop(start_writer(folder))
    assert not folder.exists()
    size = (partial_folder(folder) / DATA_FILE).stat().st_size
    with CopyWriter(folder, {}) as writer:
        names = [str(i) for i in range(10**5) if str(i) in writer]
        assert len(names) > 100
        assert size - writer.nbytes <= 4096 + 64
        writer.finish()
    copy = QuantizedCopy(folder)
    copy.verify()
    assert all(torch.equal(copy[n], torch.full((1000,), float(n))) for n in names[::50])  # type: ignore[arg-type]


def test_a_second_writer_waits_for_the_first_and_takes_its_copy(tmp_path):
    folder = tmp_path / "copy"
    seen: list[int] = []
    is_waiting = threading.Event()

    def waiting(nbytes: int) -> None:
        seen.append(nbytes)
        is_waiting.set()

    with CopyWriter(folder, {"by": "first"}) as first:
        first["w0"] = WEIGHTS["w0"]
        found: list[bool] = []

        def second() -> None:
            with CopyWriter(folder, {"by": "second"}, waiting) as writer:
                found.append(writer.is_finished)

        thread = threading.Thread(target=second)
        thread.start()
        assert is_waiting.wait(10)
        first.finish()
    thread.join(10)
    assert found == [True]
    assert seen[0] == 400
    assert QuantizedCopy(folder).meta == {"by": "first"}


def test_a_second_writer_goes_on_where_the_first_was_killed(tmp_path):
    folder = tmp_path / "copy"
    process = start_writer(folder)
    seen: list[int] = []

    def waiting(nbytes: int) -> None:
        if not seen:
            stop(process)
        seen.append(nbytes)

    with CopyWriter(folder, {}, waiting) as writer:
        assert "100" in writer
    assert seen[0] > 0


def test_who_waits_may_give_up(tmp_path):
    def give_up(nbytes: int) -> None:
        raise TimeoutError

    with CopyWriter(tmp_path / "copy", {}) as first:
        first["w0"] = WEIGHTS["w0"]
        with pytest.raises(TimeoutError):
            CopyWriter(tmp_path / "copy", {}, give_up)


@pytest.mark.parametrize(("module", "call"), [(os, "fsync"), (Path, "rename"), (Path, "unlink")])
def test_who_dies_while_a_copy_gets_its_name_loses_nothing(tmp_path, monkeypatch, module, call):
    class KilledError(BaseException):
        pass

    def die(*arguments: object, **more: object) -> None:
        raise KilledError

    def write() -> None:
        with CopyWriter(folder, {}) as writer:
            for name, weight in WEIGHTS.items():
                writer[name] = weight
            monkeypatch.setattr(module, call, die)
            writer.finish()

    folder = tmp_path / "copy"
    with pytest.raises(KilledError):
        write()
    monkeypatch.undo()
    with CopyWriter(folder, {}) as writer:
        assert writer.is_finished or [name for name in WEIGHTS if name not in writer] == []


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_a_full_disk_is_an_error_and_what_is_written_stays(tmp_path, monkeypatch, call):
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "copy"
    monkeypatch.setattr(os, call, full)

    def write() -> None:
        with CopyWriter(folder, {}) as writer:
            writer["w0"] = WEIGHTS["w0"]
            end = time.monotonic() + 60
            while call == "fdatasync" and time.monotonic() < end:  # a thread finds it
                time.sleep(0.01)
                writer["w1"] = WEIGHTS["w1"]
            writer.finish()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert not folder.exists()
    monkeypatch.undo()
    go_on(folder)
    check(folder)


def test_rests_of_other_copies_are_left_alone(tmp_path):
    for name in (".other.partial", ".copy", ".copyright.partial"):
        (tmp_path / name).mkdir()
    go_on(tmp_path / "copy")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".copy", ".copyright.partial", ".other.partial", "copy"]


def test_a_file_system_without_locks_gets_a_copy_that_is_not_gone_on_with(tmp_path, monkeypatch):
    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    folder = tmp_path / "copy"
    with CopyWriter(folder, {}) as first, CopyWriter(folder, {}) as second:
        first["w0"] = second["w0"] = WEIGHTS["w0"]
        first.finish()
        second.finish()
    QuantizedCopy(folder).verify()


def test_repair_writes_what_was_there_and_nothing_else(tmp_path):
    folder = tmp_path / "copy"
    go_on(folder)
    copy = QuantizedCopy(folder)
    index = json.loads((folder / INDEX_FILE).read_text())["index"]
    with (folder / DATA_FILE).open("r+b") as file:
        file.seek(index["entries"]["w3"]["parts"][""]["offset"] + 8)
        file.write(b"oops")
    assert copy.damaged() == ["w3"]
    assert not copy.repair("w3", WEIGHTS["w2"])
    assert not copy.repair("w3", WEIGHTS["w3"] + 1)
    assert copy.damaged() == ["w3"]
    assert copy.repair("w3", WEIGHTS["w3"])
    assert copy.damaged() == []


def test_pages_are_made_whole_and_ahead_and_hold_nothing_but_the_weights(tmp_path):
    sizes = [700_001, *[13_000] * 30, 700_001, 5]  # 5.6 MB, 3.1 in small ones, 5.6
    weights = {f"w{i}": torch.arange(1, 1 + size) + i for i, size in enumerate(sizes)}
    folder = tmp_path / "copy"
    with CopyWriter(folder, {}) as writer:
        writer["w0"] = weights["w0"]
        written = writer.nbytes
    assert written == 5_600_008
    assert (partial_folder(folder) / DATA_FILE).stat().st_size == 6 << 20
    with CopyWriter(folder, {}) as writer:
        for name in weights:
            if name not in writer:
                writer[name] = weights[name]
        written = writer.nbytes
        writer.finish()
    assert (folder / DATA_FILE).stat().st_size == written < 15_000_000
    copy = QuantizedCopy(folder)
    copy.verify()
    assert all(torch.equal(copy[name], weights[name]) for name in weights)  # type: ignore[arg-type]
