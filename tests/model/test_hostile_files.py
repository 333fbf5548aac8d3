"""Fuzzing of what reads files that others wrote: shard headers, indices, copies; only clear errors.

A header that is accepted here must be one that the safetensors library accepts too.
"""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from erniechat.errors import CheckpointError, ModelError
from erniechat.model.checkpoint import INDEX_FILE, shard_names
from erniechat.model.stored import parse_header, read_header
from quant.copy import QuantizedCopy
from quant.copy_journal import JOURNAL_FILE
from quant.copy_names import DATA_FILE
from quant.copy_names import INDEX_FILE as COPY_INDEX
from quant.copy_writer import CopyWriter, partial_folder
from quant.errors import QuantError

FUZZ = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 1.5, 1e308]),
)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F99", "", "f32"]) | JUNK,
        "shape": st.lists(NUMBERS, max_size=4) | JUNK,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JUNK,
    }
)
NAMES = st.sampled_from(["a", "b", "__metadata__", "x.weight", "\x1b[2J", ""])


@st.composite
def sound_headers(draw: Any) -> dict[str, Any]:
    """Headers that keep every rule, to be spoilt in one place or not at all."""
    header: dict[str, Any] = {}
    position = 0
    for index in range(draw(st.integers(0, 4))):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        nbytes = 4
        for size in shape:
            nbytes *= size
        offsets = [position, position + nbytes]
        header[f"t{index}"] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        position += nbytes
    if header and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(header)))
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        header[name] = {**header[name], key: draw(ENTRY)[key]}
    return header


def refusal(call: Callable[[], object], kind: type[Exception]) -> str:
    """The text with which a file is refused, empty if it is accepted; nothing else is raised."""
    try:
        call()
    except kind as exc:
        text = str(exc)
    else:
        return ""
    assert text.isprintable()
    assert 0 < len(text) < 600
    return text


def is_accepted(path: Path) -> bool:
    return not refusal(lambda: parse_header(path, read_header(path)), ModelError)


def is_sound(path: Path) -> bool:
    try:
        with safe_open(path, framework="np"):
            return True
    except (SafetensorError, OSError):
        return False


def write_shard(path: Path, text: bytes, length: int, num_data: int) -> None:
    path.write_bytes(struct.pack("<Q", length % 2**64) + text + bytes(num_data))


@FUZZ
@given(
    header=sound_headers() | st.dictionaries(NAMES, ENTRY | JUNK, max_size=3) | JUNK,
    extra=st.integers(-2, 2) | st.sampled_from([2**62, -(2**40)]),
    num_data=st.sampled_from([0, 4, 12, 36]),
    fits=st.booleans(),
)
def test_no_header_is_believed_that_the_format_forbids(tmp_path, header, extra, num_data, fits):
    text = json.dumps(header).encode()
    if fits and isinstance(header, dict):
        entries = [e for e in header.values() if isinstance(e, dict)]
        ends = [e["data_offsets"][1] for e in entries if _has_end(e)]
        num_data = max([end for end in ends if 0 <= end < 1000], default=0)
    path = tmp_path / "x.safetensors"
    write_shard(path, text, len(text) + (0 if fits else extra), num_data)
    if is_accepted(path):
        assert is_sound(path)


def _has_end(entry: dict[str, Any]) -> bool:
    offsets = entry.get("data_offsets")
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


@FUZZ
@given(header=sound_headers())
def test_what_keeps_the_rules_is_read(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    ends = [e["data_offsets"][1] for e in header.values() if _has_end(e)]
    write_shard(path, text, len(text), min(max([0, *ends]), 1000))
    assert is_accepted(path) or not is_sound(path)


@FUZZ
@given(data=st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_clear_error_as_a_shard(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    if is_accepted(path):
        assert is_sound(path)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":' * 50_000,
        b"[" * (1 << 20),
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 6000 + b'],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 5000 + b'1],"data_offsets":[0,4]}}',
    ],
    ids=["deep objects", "deep lists", "long number", "infinite", "nan", "true", "dimensions"],
)
def test_json_bombs_are_a_clear_error(tmp_path, text):
    path = tmp_path / "x.safetensors"
    write_shard(path, text, len(text), 4)
    assert not is_accepted(path)


def test_a_header_of_absurd_length_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 30))
    with path.open("r+b") as file:
        file.truncate((1 << 30) + 8)
    with pytest.raises(CheckpointError, match="a header of 1073741824 bytes"):
        read_header(path)


@FUZZ
@given(weight_map=st.dictionaries(st.text(max_size=4), st.text(max_size=12) | JUNK) | JUNK)
def test_an_index_names_files_beside_it_or_is_refused(tmp_path, weight_map):
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    if refusal(lambda: shard_names(tmp_path), ModelError):
        return
    names = shard_names(tmp_path)
    assert all((tmp_path / name).parent == tmp_path for name in names)
    assert all("/" not in name and name.endswith(".safetensors") for name in names)


PART = st.fixed_dictionaries(
    {
        "offset": st.sampled_from([0, 64]) | NUMBERS,
        "nbytes": st.sampled_from([16, 64]) | NUMBERS,
        "shape": st.sampled_from([[4], [16], [2, 2]]) | st.lists(NUMBERS, max_size=3) | JUNK,
        "dtype": st.sampled_from(["float32", "bfloat16", "load", "Tensor"]) | JUNK,
        "crc32": NUMBERS,
    }
)
COPY_ENTRY = st.fixed_dictionaries(
    {"parts": st.dictionaries(st.sampled_from(["", "codes"]), PART | JUNK) | JUNK},
    optional={"format": JUNK, "layout": JUNK, "shape": JUNK},
)


@FUZZ
@given(
    entries=st.dictionaries(st.text(max_size=3), COPY_ENTRY | JUNK, max_size=2) | JUNK,
    meta=st.just({}) | JUNK,
    nbytes=st.just(128) | NUMBERS,
)
def test_an_index_of_a_copy_is_sound_or_refused(tmp_path, entries, meta, nbytes):
    """Even one whose own checksum is right."""
    index = {"version": 2, "meta": meta, "nbytes": nbytes, "entries": entries}
    text = json.dumps(index)
    (tmp_path / COPY_INDEX).write_text(
        json.dumps({"crc32": zlib.crc32(text.encode()), "index": index})
    )
    (tmp_path / DATA_FILE).write_bytes(bytes(128))
    if text := refusal(lambda: QuantizedCopy(tmp_path), QuantError):
        assert "delete the folder" in text
        return
    copy = QuantizedCopy(tmp_path)
    copy.damaged()
    for name in copy:
        weight = copy[name]
        parts = [weight] if isinstance(weight, torch.Tensor) else weight.parts.values()
        assert all(part.nbytes <= 128 for part in parts)


@FUZZ
@given(lines=st.lists(st.binary(max_size=40) | JUNK, max_size=4), num_data=st.integers(0, 200))
def test_a_journal_of_any_kind_is_gone_on_with_or_begun_anew(tmp_path, lines, num_data):
    folder = tmp_path / "copy"
    partial_folder(folder).mkdir(exist_ok=True)
    journal = b'%08x {"version": 2}\n' % zlib.crc32(b'{"version": 2}')
    for line in lines:
        text = line if isinstance(line, bytes) else json.dumps(line).encode()
        journal += b"%08x " % zlib.crc32(text) + text + b"\n"
    (partial_folder(folder) / JOURNAL_FILE).write_bytes(journal)
    (partial_folder(folder) / DATA_FILE).write_bytes(bytes(num_data))
    with CopyWriter(folder, {}) as writer:
        writer["w"] = torch.ones(3)
    assert {path.name for path in tmp_path.iterdir()} <= {".copy.partial"}
