"""Headers of GGUF files: what the gguf package reads, and one clear line for every lie."""

import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erniechat.errors import CheckpointError, ErnieChatError, UnsupportedModelError
from erniechat.mini import checkpoint_folder
from erniechat.model.families import family_of
from erniechat.model.gguf_checkpoint import GgufCheckpoint
from erniechat.model.gguf_file import read_gguf
from erniechat.model.readings import plan_readings
from tests.model.checkpoints import DENSE, hub_tensors, reference_model, write_folder
from tests.model.gguf_files import write_gguf

U32, STRING, ARRAY = 4, 8, 9
F32, Q4_0 = 0, 2
MAX_PEAK_NBYTES = 32 << 20


def text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", U32, value)


def array(key: str, kind: int, count: int, items: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + items


def tensor(name: str, dims: Sequence[int], kind: int = F32, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    return head + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """A file by hand; the counts may lie."""
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def test_a_header_made_by_hand_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    keys = [number("n", 7), text("s") + struct.pack("<I", STRING) + text("grüß"),
            array("a", U32, 2, struct.pack("<II", 1, 2))]  # fmt: skip  # one a line
    tensors = [tensor("second", (32, 2), Q4_0, 32), tensor("first", (3, 2))]
    path.write_bytes(gguf_bytes(keys, tensors, b"\0" * (32 + 36)))
    found = read_gguf(path)
    assert found.metadata == {"n": 7, "s": "grüß", "a": [1, 2]}
    start = path.stat().st_size - 68
    told = [(e.name, e.kind_name, e.shape, e.offset, e.nbytes) for e in found.entries]
    assert told == [
        ("first", "F32", (2, 3), start, 24),
        ("second", "Q4_0", (2, 32), start + 32, 36),
    ]


def test_a_header_is_what_the_gguf_package_reads(tmp_path):
    path = write_gguf(tmp_path / "mini.gguf", checkpoint_folder(), "Q4_0")
    reader, found = gguf.GGUFReader(path), read_gguf(path)
    theirs = {name: f.contents() for name, f in reader.fields.items() if name[:5] != "GGUF."}
    assert found.metadata == theirs
    assert {e.name: (e.kind, e.shape[::-1], e.offset, e.nbytes) for e in found.entries} == {
        t.name: (t.tensor_type, tuple(t.shape.tolist()), t.data_offset, t.n_bytes)
        for t in reader.tensors
    }


HUGE = (1 << 64) - 1
ONE = tensor("t", (8,))
DATA = b"\0" * 64
LIES = {
    "empty": (b"", "ends inside"),
    "not gguf": (gguf_bytes(magic=b"PK\3\4"), "does not begin with GGUF"),
    "old version": (gguf_bytes(version=1), "has GGUF version 1, supported are 2 and 3"),
    "big-endian": (gguf_bytes(version=3 << 24), "has GGUF version 50331648"),
    "endless keys": (gguf_bytes(num_keys=HUGE), "metadata keys, at most 65,536 are read"),
    "endless tensors": (gguf_bytes(num_tensors=1 << 40), "tensors, at most 65,536 are read"),
    "missing keys": (gguf_bytes(num_keys=60000), "ends inside"),
    "endless key": (gguf_bytes([struct.pack("<Q", HUGE)]), "has text of 18,446,744"),
    "endless text": (
        gguf_bytes([text("k") + struct.pack("<IQ", STRING, 1 << 62)]), "has text of 4,611,686,"
    ),
    "long text": (gguf_bytes([text("k") + struct.pack("<IQ", STRING, 1 << 20)]), "ends inside"),
    "unknown type": (gguf_bytes([text("k") + struct.pack("<I", 99)]), '"k" has the unknown type'),
    "nested": (gguf_bytes([array("k", ARRAY, 1, b"")]), '"k" is an array of the type 9'),
    "endless array": (gguf_bytes([array("k", U32, HUGE, b"")]), "brings the items of arrays to"),
    "long array": (gguf_bytes([array("k", U32, 1 << 20, b"")]), "ends inside"),
    "many arrays": (
        gguf_bytes([array("k", U32, 3, b"\0" * 12), array("l", STRING, 1 << 21, b"")]),
        "brings the items of arrays to 2,097,155",
    ),
    "key twice": (gguf_bytes([number("k", 1), number("k", 2)]), 'the key "k" is there twice'),
    "no text": (gguf_bytes([number("k", 1), text(b"\xff")]), "text that is not UTF-8"),
    "terminal": (gguf_bytes([number("\x1b[2J\n", 1)] * 2), r'the key "\x1b[2J\n" is there twice'),
    "alignment": (gguf_bytes([number("general.alignment", 0)]), "must be from 1 to 1 MiB"),
    "no dimension": (gguf_bytes([], [tensor("t", ())], DATA), '"t" has 0 dimensions'),
    "dimensions": (gguf_bytes([], [tensor("t", (1,) * 5)], DATA), '"t" has 5 dimensions'),
    "empty tensor": (gguf_bytes([], [tensor("t", (8, 0))], DATA), '"t" has the shape (0, 8)'),
    "huge tensor": (gguf_bytes([], [tensor("t", (1 << 63, 2))], DATA), '"t" has the shape (2, 92'),
    "tensor twice": (gguf_bytes([], [ONE, ONE], DATA), 'the tensor "t" is there twice'),
    "tensor type": (gguf_bytes([], [tensor("t", (8,), 99)], DATA), '"t" has the unknown type 99'),
    "half a block": (gguf_bytes([], [tensor("t", (8,), Q4_0)], DATA), "rows of 8, Q4_0 blocks 32"),
    "crooked": (gguf_bytes([], [tensor("t", (8,), F32, 4)], DATA), "begin at a multiple of 32"),
    "cut short": (gguf_bytes([], [tensor("t", (17,))], DATA), '"t" ends after the file'),
    "far away": (gguf_bytes([], [tensor("t", (8,), F32, 1 << 62)], DATA), "ends after the file"),
    "overlap": (gguf_bytes([], [tensor("t", (9,)), tensor("u", (8,), F32, 32)], DATA), "overlap"),
}  # fmt: skip  # a table


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_one_line(name, tmp_path):
    raw, message = LIES[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(raw)
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        read_gguf(path)
    assert message in str(caught.value)
    assert "a.gguf" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small dense model, half its rows in Q8_0 blocks."""
    folder = tmp_path_factory.mktemp("sound")
    raw = {**DENSE, "num_hidden_layers": 1}
    hub = write_folder(folder / "hub", raw, hub_tensors(reference_model(raw)))
    return write_gguf(folder / "a.gguf", hub, "Q8_0").read_bytes()


def open_whole(path: Path) -> None:
    """All that opening a file does: header, plan, tokenizer, every tensor."""
    checkpoint = GgufCheckpoint(path)
    family = family_of(checkpoint.config)
    readings = plan_readings(checkpoint, family, family.parse_config(checkpoint.config))
    checkpoint.vocabulary.build()
    checkpoint.vocabulary.special_tokens()
    assert checkpoint.chat_templates is not None
    assert checkpoint.generation_config
    for reading in readings:
        reading.stored.read()


def peak_of_opening(path: Path) -> int:
    """Bytes of memory that opening takes at most; an error must be one of ours and one line."""
    tracemalloc.start()
    try:
        open_whole(path)
    except ErnieChatError as exc:
        if not str(exc).isprintable():
            raise ValueError(f"not one printable line: {exc!r}") from exc
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


FUZZ = settings(
    max_examples=150,
    deadline=2000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EDGES = [0, 1, 9, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, HUGE]
EDITS = st.tuples(
    st.floats(0, 1),  # where, by preference near the front, where the header is
    st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from(EDGES).map(lambda n: struct.pack("<Q", n)),
    ),
    st.booleans(),
)


@FUZZ
@given(edits=st.lists(EDITS, min_size=1, max_size=4), keep=st.one_of(st.none(), st.floats(0, 1)))
def test_a_damaged_file_is_one_line_in_little_memory(sound, tmp_path, edits, keep):
    raw = bytearray(sound)
    for place, new, in_header in edits:
        at = int(place * (6000 if in_header else len(raw) - 1))
        raw[at : at + len(new)] = new
    path = tmp_path / "a.gguf"
    path.write_bytes(raw if keep is None else raw[: int(keep * len(raw))])
    assert peak_of_opening(path) < MAX_PEAK_NBYTES


NAMES = st.sampled_from(
    ["general.architecture", "general.alignment", "tokenizer.ggml.tokens", "token_embd.weight",
     "blk.0.ffn_gate_exps.weight", "blk.0.attn_qkv.weight", "split.count", "ä\x1b\n", ""]
)  # fmt: skip  # a list to read
COUNTS = st.one_of(st.integers(0, 4), st.sampled_from(EDGES))
VALUES = st.builds(
    lambda key, kinds, count, rest: text(key) + struct.pack("<IIQ", *kinds, count) + rest,
    NAMES, st.tuples(st.integers(0, 14), st.integers(0, 14)), COUNTS, st.binary(max_size=40),
)  # fmt: skip  # one call
ENTRIES = st.builds(
    tensor, NAMES, st.lists(COUNTS, max_size=6), st.integers(0, 45), st.sampled_from(EDGES)
)


@FUZZ
@given(
    keys=st.lists(VALUES, max_size=4),
    tensors=st.lists(ENTRIES, max_size=4),
    num_keys=st.one_of(st.none(), COUNTS),
    num_tensors=st.one_of(st.none(), COUNTS),
    data=st.binary(max_size=200),
)
def test_an_invented_header_is_one_line_in_little_memory(tmp_path, data, **parts: Any):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(data=data, **parts))
    assert peak_of_opening(path) < MAX_PEAK_NBYTES


def encoded(key: str, value: Any) -> bytes:
    """A metadata value in the type that suits it."""
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<IQ", 10, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STRING) + text(value)
    if value and isinstance(value[0], str):
        return array(key, STRING, len(value), b"".join(map(text, value)))
    code, kind = ("f", 6) if value and isinstance(value[0], float) else ("I", U32)
    return array(key, kind, len(value), struct.pack(f"<{len(value)}{code}", *value))


VALUES_OF_ANY_TYPE = st.one_of(
    st.sampled_from(EDGES),
    st.floats(width=32),
    st.text(max_size=8),
    st.booleans(),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
)
KEYS = [
    "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "rope.freq_base", "feed_forward_length", "context_length",
    "attention.layer_norm_rms_epsilon", "vocab_size",
]  # fmt: skip  # a list to read
OTHER_KEYS = [
    "general.architecture", "general.sampling.temp", "general.alignment", "split.count",
    "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges", "tokenizer.ggml.model", "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_space_prefix",
    "tokenizer.huggingface.json", "tokenizer.chat_template",
]  # fmt: skip  # a list to read


@FUZZ
@given(
    key=st.sampled_from([f"ernie4_5.{key}" for key in KEYS] + OTHER_KEYS),
    value=VALUES_OF_ANY_TYPE,
)
def test_metadata_of_any_type_is_one_line(sound, tmp_path, key, value):
    path = tmp_path / "a.gguf"
    path.write_bytes(sound)
    file = read_gguf(path)
    start = file.entries[0].offset
    tensors = [tensor(e.name, e.shape[::-1], e.kind, e.offset - start) for e in file.entries]
    keys = [encoded(name, old) for name, old in (file.metadata | {key: value}).items()]
    path.write_bytes(gguf_bytes(keys, tensors, sound[start:]))
    assert peak_of_opening(path) < MAX_PEAK_NBYTES


def test_a_file_put_together_anew_opens(sound, tmp_path):
    """Else the test before would see one and the same error for every value."""
    path = tmp_path / "a.gguf"
    path.write_bytes(sound)
    file = read_gguf(path)
    start = file.entries[0].offset
    tensors = [tensor(e.name, e.shape[::-1], e.kind, e.offset - start) for e in file.entries]
    keys = [encoded(name, value) for name, value in file.metadata.items()]
    path.write_bytes(gguf_bytes(keys, tensors, sound[start:]))
    open_whole(path)
