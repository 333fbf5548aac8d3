"""The quantized copy: complete or not there, bit for bit the same, mapped and not read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quant.copy import MemoryWeights, QuantizedCopy
from quant.copy import Weight as AnyWeight
from quant.copy_index import ALIGNMENT
from quant.copy_names import DATA_FILE, INDEX_FILE
from quant.copy_writer import CopyWriter
from quant.errors import QuantError
from quant.formats import FORMATS
from quant.kernels import BACKENDS
from quant.kernels.base import KernelBackend
from quant.memory import process_memory
from quant.tensor import QuantTensor

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHAPE = (96, 192)


def served_pairs() -> list[tuple[str, str]]:
    return [
        (name, format_name)
        for name in BACKENDS
        for format_name in FORMATS
        if not BACKENDS[name]().why_not(format_name, CPU)
    ]


def random_weight(format_name: str, seed: int = 0) -> QuantTensor:
    generator = torch.Generator().manual_seed(seed)
    return FORMATS[format_name].quantize(torch.randn(SHAPE, generator=generator))


def write(folder: Path, weights: dict[str, AnyWeight], meta: dict[str, Any] | None = None) -> Path:
    with CopyWriter(folder, meta or {}) as writer:
        for name, weight in weights.items():
            writer[name] = weight
        writer.finish()
    return folder


@pytest.fixture
def weights() -> dict[str, AnyWeight]:
    return {
        "first": random_weight("nf4", 1),
        "norm": torch.randn(65).bfloat16(),  # 130 bytes: what follows must be aligned anew
        "second": random_weight("int8", 2),
    }


@pytest.mark.parametrize(("backend_name", "format_name"), served_pairs())
def test_every_prepared_layout_comes_back_bit_for_bit(tmp_path, backend_name, format_name):
    backend: KernelBackend = BACKENDS[backend_name]()
    prepared = backend.prepare(random_weight(format_name))
    copy = QuantizedCopy(write(tmp_path / "copy", {"w": prepared}))
    copy.verify()
    read = copy["w"]
    assert isinstance(read, QuantTensor)
    assert (read.format, read.layout, read.shape) == (
        prepared.format,
        prepared.layout,
        prepared.shape,
    )
    assert set(read.parts) == set(prepared.parts)
    for name, part in prepared.parts.items():
        assert read.parts[name].dtype == part.dtype
        assert torch.equal(read.parts[name], part)
    x = torch.randn(3, SHAPE[1])
    assert torch.equal(backend.matmul(x, read), backend.matmul(x, prepared))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(7, 5),
        torch.randn(7, 5).T,  # not contiguous
        torch.randn(8)[::2],
        torch.randn(3).bfloat16(),
        torch.randn(3).half(),
        torch.arange(5, dtype=torch.int8),
        torch.arange(5, dtype=torch.uint8),
        torch.arange(5),
        torch.tensor(2.5),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.nn.Parameter(torch.randn(3)),
    ],
)
def test_a_plain_tensor_comes_back_bit_for_bit(tmp_path, tensor):
    copy = QuantizedCopy(write(tmp_path / "copy", {"t": tensor}))
    read = copy["t"]
    assert isinstance(read, torch.Tensor)
    assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
    expected = tensor.detach().contiguous().flatten()
    assert torch.equal(read.flatten().view(torch.uint8), expected.view(torch.uint8))


def test_names_keep_their_order_and_meta_comes_back(tmp_path, weights):
    meta = {"model": "名 of a model", "quant": "nf4", "list": [1, 2.5, None]}
    copy = QuantizedCopy(write(tmp_path / "copy", weights, meta))
    assert list(copy) == ["first", "norm", "second"]
    assert copy.meta == meta
    assert copy.nbytes == (tmp_path / "copy" / DATA_FILE).stat().st_size
    assert copy.nbytes >= MemoryWeights(weights).nbytes
    with pytest.raises(KeyError):
        copy["third"]


def test_every_part_begins_at_a_multiple_of_64_bytes(tmp_path, weights):
    copy = QuantizedCopy(write(tmp_path / "copy", weights))
    index = json.loads((tmp_path / "copy" / INDEX_FILE).read_text())["index"]
    offsets = [
        part["offset"] for entry in index["entries"].values() for part in entry["parts"].values()
    ]
    assert len(offsets) == 5
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for name in copy:
        weight = copy[name]
        parts = [weight] if isinstance(weight, torch.Tensor) else weight.parts.values()
        assert all(part.data_ptr() % ALIGNMENT == 0 for part in parts)


def test_writing_to_a_mapped_weight_does_not_change_the_file(tmp_path, weights):
    folder = write(tmp_path / "copy", weights)
    norm = QuantizedCopy(folder)["norm"]
    assert isinstance(norm, torch.Tensor)
    norm.zero_()
    QuantizedCopy(folder).verify()


# Complete or not there.


def only_entries(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_nothing_has_the_name_before_finish_and_only_the_copy_after(tmp_path, weights):
    folder = tmp_path / "parent" / "copy"
    with CopyWriter(folder, {}) as writer:
        for name, weight in weights.items():
            writer[name] = weight
            assert not folder.exists()
        writer.finish()
        assert folder.exists()
    assert only_entries(folder.parent) == ["copy"]
    assert only_entries(folder) == [INDEX_FILE, DATA_FILE]


def test_a_reader_keeps_its_weights_when_the_copy_is_deleted(tmp_path, weights):
    folder = write(tmp_path / "copy", weights)
    copy = QuantizedCopy(folder)
    for path in folder.iterdir():
        path.unlink()
    copy.verify()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        CopyWriter(tmp_path / "locked" / "copy", {})


def test_a_file_in_place_of_the_parent_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        CopyWriter(tmp_path / "file" / "copy", {})


def test_a_foreign_folder_of_that_name_is_not_overwritten(tmp_path, weights):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "precious").write_text("x")
    with pytest.raises(OSError, match="copy"):
        write(tmp_path / "copy", weights)
    assert only_entries(tmp_path / "copy") == ["precious"]
    assert only_entries(tmp_path) == [".copy.partial", "copy"]


# Damage.

WAY_OUT = "; delete the folder and it will be made again"


def refusal(folder: Path) -> str:
    with pytest.raises(QuantError) as caught:
        QuantizedCopy(folder)
    text = str(caught.value)
    assert text.endswith(WAY_OUT)
    assert text.isprintable()
    return text


def test_no_copy_is_not_a_damaged_copy(tmp_path):
    with pytest.raises(FileNotFoundError):
        QuantizedCopy(tmp_path / "copy")


@pytest.mark.parametrize("change", [-1, +1, -1000, None])
def test_a_data_file_of_another_length_is_damaged(tmp_path, weights, change):
    folder = write(tmp_path / "copy", weights)
    path = folder / DATA_FILE
    nbytes = path.stat().st_size
    os.truncate(path, 0 if change is None else nbytes + change)
    assert f"{DATA_FILE} has " in (text := refusal(folder))
    assert f" bytes instead of {nbytes}" in text


def test_a_missing_data_file_is_damage_and_not_a_missing_copy(tmp_path, weights):
    """Else the loader would write a new copy, which cannot take the name."""
    folder = write(tmp_path / "copy", weights)
    (folder / DATA_FILE).unlink()
    assert f"{DATA_FILE} has 0 bytes instead of" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"crc32": 1, "index": {}}', b"[" * 100_000, b"null"],
)
def test_a_damaged_index_is_said_so(tmp_path, weights, text):
    folder = write(tmp_path / "copy", weights)
    (folder / INDEX_FILE).write_bytes(text)
    assert f"{INDEX_FILE} is damaged" in refusal(folder)


def test_every_byte_of_the_index_is_guarded(tmp_path, weights):
    """A flip is damage or means nothing, as in the spaces between keys."""
    folder = write(tmp_path / "copy", {"norm": weights["norm"]})
    good = (folder / INDEX_FILE).read_bytes()
    index = json.loads(good)["index"]
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        (folder / INDEX_FILE).write_bytes(flipped)
        try:
            QuantizedCopy(folder)
        except QuantError:
            continue
        assert json.loads(flipped)["index"] == index


def test_another_version_is_said_with_both_numbers(tmp_path, weights, monkeypatch):
    monkeypatch.setattr("quant.copy_writer.COPY_VERSION", 7)
    folder = write(tmp_path / "copy", weights)
    monkeypatch.undo()
    assert "has version 7 instead of 2" in refusal(folder)


@pytest.mark.parametrize("name", ["first", "norm", "second"])
def test_verify_finds_one_flipped_bit_and_names_the_weight(tmp_path, weights, name):
    folder = write(tmp_path / "copy", weights)
    index = json.loads((folder / INDEX_FILE).read_text())["index"]
    part = list(index["entries"][name]["parts"].values())[-1]
    with (folder / DATA_FILE).open("r+b") as file:
        file.seek(part["offset"] + 3)
        byte = file.read(1)[0]
        file.seek(part["offset"] + 3)
        file.write(bytes([byte ^ 0x10]))
    copy = QuantizedCopy(folder)  # opening reads no weights
    with pytest.raises(QuantError, match=f"the weight {name} differs from its checksum") as caught:
        copy.verify()
    assert str(caught.value).endswith(WAY_OUT)


OPEN = """
import re, sys
from pathlib import Path
from quant.copy import QuantizedCopy

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

import torch
torch.empty(1)
before = resident()
copy = QuantizedCopy(Path(sys.argv[1]))
weights = [copy[name] for name in copy]
opened = resident()
total = sum(int(weight[::4096].sum()) for weight in weights)
print(opened - before, resident() - before, copy.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_opening_a_copy_maps_it_and_reads_nothing(tmp_path):
    mebibyte = 1 << 20
    block = torch.zeros(8 * mebibyte, dtype=torch.uint8)
    folder = write(tmp_path / "copy", {str(i): block for i in range(12)})
    command = [sys.executable, "-c", OPEN, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    opened, read, nbytes = map(int, done.stdout.split())
    assert nbytes == 96 * mebibyte
    assert opened < 4 * mebibyte
    assert read > 80 * mebibyte  # the measure itself would see what is read


def test_what_was_read_and_is_elsewhere_now_is_no_longer_this_process_memory(tmp_path):
    folder = write(tmp_path / "copy", {"large": torch.ones(16 << 20)})
    copy = QuantizedCopy(folder)
    before = process_memory().rss_nbytes
    assert float(copy["large"].sum()) == 16 << 20
    read = process_memory().rss_nbytes
    assert read - before > 50 << 20
    copy.let_go()
    assert read - process_memory().rss_nbytes > 50 << 20
    assert float(copy["large"].sum()) == 16 << 20
