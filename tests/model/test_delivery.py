"""Conversion through a device: byte for byte what the CPU makes, in order, and sure to be finished.

The device is the CPU here; tests/cuda/test_conversion.py says the same of a GPU.
"""

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from erniechat.errors import CheckpointError
from erniechat.model.delivery import convert
from erniechat.model.readings import Unit, plan_units
from erniechat.model.stored import StoredTensor
from quant import staging
from quant.copy import MemoryWeights, QuantizedCopy
from quant.copy_names import DATA_FILE
from quant.copy_writer import CopyWriter
from quant.errors import DeviceError
from quant.formats.codebook import Codebook4
from quant.staging import StagedQuantizer
from tests.model.random_checkpoint import formats_named, readings_of, write_random

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_random(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(params=[1, 4], ids="{} readers".format)
def several_readers(request, monkeypatch) -> None:
    monkeypatch.setattr(staging.torch, "get_num_threads", lambda: request.param)


def write_copy(folder: Path, checkpoint: Path, format_name: str, **how) -> Path:
    with CopyWriter(folder, {}) as writer:
        convert(readings_of(checkpoint), formats_named(format_name), writer, **how)
        writer.finish()
    return folder


def staged(**how) -> dict[str, object]:
    """Through a device, and without a word of warning."""
    return {"quantizer": StagedQuantizer(CPU), "warn": pytest.fail, **how}


def same_copies(one: Path, other: Path) -> bool:
    names = [*QuantizedCopy(one)]
    assert names == [*QuantizedCopy(other)]
    return (one / DATA_FILE).read_bytes() == (other / DATA_FILE).read_bytes()


@pytest.mark.usefixtures("several_readers")
@pytest.mark.parametrize("format_name", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("stage_nbytes", [8 << 20, 64 * 192 * 2])
def test_a_device_makes_the_copy_that_the_cpu_makes(
    checkpoint, tmp_path, monkeypatch, format_name, stage_nbytes
):
    expected = write_copy(tmp_path / "cpu", checkpoint, format_name)
    monkeypatch.setattr(staging, "STAGE_NBYTES", stage_nbytes)
    actual = write_copy(tmp_path / "device", checkpoint, format_name, **staged())
    assert same_copies(actual, expected)


def test_a_matrix_too_wide_for_a_stage_is_left_to_the_cpu(checkpoint, tmp_path, monkeypatch):
    expected = write_copy(tmp_path / "cpu", checkpoint, "nf4")
    monkeypatch.setattr(staging, "STAGE_NBYTES", 64 * 128 * 2)  # of down only 32 rows
    actual = write_copy(tmp_path / "device", checkpoint, "nf4", **staged())
    assert same_copies(actual, expected)


def test_weights_in_memory_are_those_of_a_copy(checkpoint, tmp_path):
    copy = QuantizedCopy(write_copy(tmp_path / "cpu", checkpoint, "nf4"))
    weights = MemoryWeights()
    convert(
        readings_of(checkpoint), formats_named("nf4"), weights,
        quantizer=StagedQuantizer(CPU, is_kept=True), warn=pytest.fail,
    )  # fmt: skip
    assert [*weights] == [*copy]
    codes = weights["layers.2.experts.3.down"].parts["codes"]
    assert torch.equal(codes, copy["layers.2.experts.3.down"].parts["codes"])


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 70000.0])
def test_a_damaged_matrix_is_named_as_the_cpu_names_it(checkpoint, tmp_path, value):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shard = next(
        path
        for path in folder.glob("*.safetensors")
        if "model.layers.1.mlp.experts.2.up_proj.weight" in load_file(path)
    )
    tensors = load_file(shard)
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"][17, 5] = value
    save_file(tensors, shard)
    errors = []
    for how in ({}, staged()):
        with pytest.raises(CheckpointError) as caught:
            convert(readings_of(folder), formats_named("nf4"), MemoryWeights(), **how)
        errors.append(str(caught.value))
    for error in errors:
        assert error.startswith("model.layers.1.mlp.experts.2.up_proj.weight: ")
        assert error.endswith("fetch the file again, or choose another --quant")
        assert ("NaN or infinite" in error) == (value != 70000.0)


def test_a_shard_that_ends_early_is_an_error_on_the_way_too(checkpoint, tmp_path):
    folder = write_random(tmp_path / "checkpoint")
    readings = readings_of(folder)
    shard = folder / "model-1.safetensors"
    os.truncate(shard, shard.stat().st_size - 100_000)
    with pytest.raises(CheckpointError, match=r"model-1.safetensors ends inside"):
        convert(readings, formats_named("nf4"), MemoryWeights(), **staged())


def failing(monkeypatch, at: int) -> None:
    """The device fails at its chunk of that number."""
    quantize, count = Codebook4.quantize_unchecked, iter(range(1000))

    def fail(self, weight):
        if threading.current_thread() is threading.main_thread() and next(count) == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried much.\nMore lines")
        return quantize(self, weight)

    monkeypatch.setattr(Codebook4, "quantize_unchecked", fail)


@pytest.mark.parametrize("at", [0, 1, 17])
def test_where_the_device_fails_the_cpu_goes_on_and_says_so(checkpoint, tmp_path, monkeypatch, at):
    expected = write_copy(tmp_path / "cpu", checkpoint, "nf4")
    failing(monkeypatch, at)
    warnings: list[str] = []
    done: list[tuple[str, ...]] = []
    progress: list[int] = []
    actual = write_copy(
        tmp_path / "device", checkpoint, "nf4",
        **staged(
            warn=warnings.append,
            progress=lambda nbytes, total: progress.append(nbytes),
            after=lambda unit: done.append(unit.targets),
        ),
    )  # fmt: skip
    assert warnings == ["the GPU cannot quantize (CUDA out of memory); the CPU does the rest"]
    assert same_copies(actual, expected)
    assert done == [unit.targets for unit in plan_units(readings_of(checkpoint))]
    assert progress == sorted(set(progress))


def test_a_device_that_cannot_be_had_is_no_obstacle(checkpoint, tmp_path, monkeypatch):
    def refuse(is_pinned):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(staging, "_Stage", refuse)
    warnings: list[str] = []
    write_copy(tmp_path / "device", checkpoint, "int8", **staged(warn=warnings.append))
    assert len(warnings) == 1


def test_what_fails_in_the_sink_is_not_taken_for_the_device(checkpoint):
    class Full(MemoryWeights):
        def __setitem__(self, name, weight):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        convert(readings_of(checkpoint), formats_named("nf4"), Full(), **staged())
    assert not [t for t in threading.enumerate() if t.name.startswith("read-")]


@pytest.mark.parametrize("after_nbytes", [1, 200_000, 500_000])
def test_a_start_that_is_broken_off_is_gone_on_with(checkpoint, tmp_path, after_nbytes):
    expected = write_copy(tmp_path / "cpu", checkpoint, "nf4")
    folder, seen = tmp_path / "device", []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done >= after_nbytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_copy(folder, checkpoint, "nf4", **staged(progress=stop))
    with CopyWriter(folder, {}) as writer:
        units = [u for u in plan_units(readings_of(checkpoint)) if u.targets[0] in writer]
        assert len(units) == len(seen)  # all that was delivered, and nothing besides
    write_copy(folder, checkpoint, "nf4", **staged())
    assert same_copies(folder, expected)


def test_of_an_expert_that_is_there_in_half_the_other_half_is_written(checkpoint, tmp_path):
    expected = write_copy(tmp_path / "whole", checkpoint, "nf4")
    folder = tmp_path / "broken off"

    class BrokenOff(CopyWriter):
        def __setitem__(self, name, weight):
            super().__setitem__(name, weight)
            if name.endswith("gate_up") and "experts" in name:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), BrokenOff(folder, {}) as writer:
        convert(readings_of(checkpoint), formats_named("nf4"), writer)
    write_copy(folder, checkpoint, "nf4")
    assert same_copies(folder, expected)


def test_everything_is_delivered_before_a_shard_is_waited_for(checkpoint):
    """It may take minutes, and the shard before it is to be released."""
    units = plan_units(readings_of(checkpoint))
    delivered: list[Unit] = []
    seen: set[Path] = set()

    def before(unit: Unit) -> None:
        if not unit.paths <= seen:
            assert delivered == units[: units.index(unit)]
            seen.update(unit.paths)

    convert(
        readings_of(checkpoint), formats_named("nf4"), MemoryWeights(),
        **staged(before=before, after=delivered.append),
    )  # fmt: skip
    assert delivered == units
    assert len(seen) == 2


def test_later_weights_are_read_while_an_earlier_one_is_delivered(checkpoint, monkeypatch):
    read_into, later = StoredTensor.read_into, threading.Event()

    def watched(self, index, memory):
        if self.name == "model.layers.2.mlp.experts.2.up_proj.weight":
            later.set()
        read_into(self, index, memory)

    monkeypatch.setattr(StoredTensor, "read_into", watched)

    class Waiting(MemoryWeights):
        def __setitem__(self, name, weight):
            if name == "layers.2.experts.0.gate_up":
                assert later.wait(10)
            super().__setitem__(name, weight)

    convert(readings_of(checkpoint), formats_named("nf4"), Waiting(), **staged())


def test_device_errors_are_known_by_their_first_sentence():
    known = pytest.raises(DeviceError, match=r"^CUDA error: an illegal memory access$")
    with known, staging.device_errors():
        raise RuntimeError("CUDA error: an illegal memory access\nCompile with TORCH_USE_…")
