"""Bytes from the hub: the header of a shard by a range request, a whole shard with resume.

huggingface_hub finds, authorizes and caches; what it does not do is go on with a file after the
process was killed. So a shard grows as ``blobs/<identity>.incomplete`` in the hub's own cache,
under the hub's own lock, gets its name once size and hash are right, and huggingface_hub links it.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from erniechat.errors import CheckpointError
from erniechat.hub.failures import (
    NUM_DOWNLOAD_TRIES,
    Stopped,
    hub_errors,
    is_passing,
    patiently,
    wait_seconds,
)
from erniechat.hub.gguf import SUFFIX
from erniechat.hub.listing import HubFile, HubModel, write_whole
from erniechat.model.gguf_file import HeadTooShort, read_gguf
from erniechat.model.stored import LENGTH_NBYTES, ShardHeader, header_nbytes, read_header

GGUF_HEAD_NBYTES = 4 << 20  # holds a published vocabulary; doubled until the header is whole
FIRST_RANGE_NBYTES = 128 << 10  # holds the header of nearly every shard
HASH_CHUNK_NBYTES = 8 << 20
LOCK_POLL_SECONDS = 0.2
SHA256_DIGITS = 64

Report = Callable[[int], None]


def has_header(model: HubModel, shard: HubFile) -> bool:
    """Whether `shard_header` needs no network."""
    here = (model.folder / shard.name).exists()
    return here or (model.record / f"{shard.name}.header").exists()


def shard_header(model: HubModel, shard: HubFile) -> ShardHeader:
    """The header of a shard: from the file, from the record, or from the hub.

    Raises:
        ModelError: If it cannot be had, or is none.
    """
    path, is_gguf = model.folder / shard.name, shard.name.lower().endswith(SUFFIX)
    if path.exists() and not is_gguf:
        return read_header(path)
    kept = model.record / f"{shard.name}.header"
    with suppress(OSError):
        return ShardHeader(kept.read_bytes(), shard.nbytes)
    with hub_errors(model.name, model.commit):
        text = _gguf_head(model, shard) if is_gguf else _header_text(model, shard)
    write_whole(kept, lambda path: path.write_bytes(text))
    return ShardHeader(text, shard.nbytes)


def _header_text(model: HubModel, shard: HubFile) -> bytes:
    """The header of a safetensors file, its length left out."""
    start = patiently(lambda: read_range(model, shard, 0, FIRST_RANGE_NBYTES))
    try:
        length = header_nbytes(start, shard.nbytes)
    except ValueError as exc:
        raise CheckpointError(
            f"{shard.name} is not a sound safetensors file ({exc})", "do not trust this model"
        ) from exc
    begin, end = len(start), LENGTH_NBYTES + length
    if end > begin:
        start += patiently(lambda: read_range(model, shard, begin, end))
    return start[LENGTH_NBYTES:end]


def _gguf_head(model: HubModel, shard: HubFile) -> bytes:
    """The beginning of a GGUF file up to where its header ends, or somewhat more."""
    path, data, wanted = model.folder / shard.name, b"", GGUF_HEAD_NBYTES
    while True:
        begin, end = len(data), min(wanted, shard.nbytes)
        data += patiently(partial(read_range, model, shard, begin, end))
        try:
            read_gguf(path, ShardHeader(data, shard.nbytes))
            return data
        except HeadTooShort:
            wanted *= 2


def read_range(model: HubModel, shard: HubFile, begin: int, end: int) -> bytes:
    """Bytes begin to end of a file, fewer only where it ends.

    Raises:
        Exception: Of huggingface_hub or its HTTP library; see `hub_errors` and `patiently`.
    """
    wanted = min(end, shard.nbytes) - begin
    data = bytearray()
    with _stream(model, shard, f"bytes={begin}-{begin + wanted - 1}") as response:
        skip = begin if response.status_code == 200 else 0  # a server without ranges
        for chunk in response.iter_bytes():
            data += chunk[skip:]
            skip = max(skip - len(chunk), 0)
            if len(data) >= wanted:
                return bytes(data[:wanted])
    raise ConnectionError(f"{shard.name} ended after {len(data)} of {wanted} bytes")


@contextmanager
def _stream(model: HubModel, shard: HubFile, byte_range: str) -> Any:
    """A response whose status is good and whose body is not read yet."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public by its documents
        build_hf_headers,
        hf_raise_for_status,
    )

    url = hf_hub_url(model.name, shard.name, revision=model.commit)
    headers = {**build_hf_headers(), "Range": byte_range, "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        yield response


def fetch_shard(
    model: HubModel, shard: HubFile, report: Report, is_stopped: Callable[[], bool]
) -> Path:
    """Bring a shard into the hub's cache, going on where an earlier attempt has ended.

    Args:
        model: The model.
        shard: One of its shards.
        report: Told how many bytes of it are here.
        is_stopped: Asked often; if true, the download ends and keeps what it has.

    Returns:
        Its path in the snapshot.

    Raises:
        Stopped: If it was told to.
        ModelError: If the hub does not give it, or gives something else.
        DiskLimitError: If the disk is full.
    """
    from huggingface_hub import hf_hub_download

    path = model.folder / shard.name
    with hub_errors(model.name, model.commit):
        blob = model.folder.parent.parent / "blobs" / shard.identity
        if not path.exists() and not blob.exists():
            with _locked(blob, shard, report, is_stopped):
                if not blob.exists():
                    _complete(model, shard, blob, report, is_stopped)
        report(shard.nbytes)
        # Makes the link, of a blob that is there.
        link = patiently(lambda: hf_hub_download(model.name, shard.name, revision=model.commit))
    return Path(link)


@contextmanager
def _locked(blob: Path, shard: HubFile, report: Report, is_stopped: Callable[[], bool]) -> Any:
    """The lock under which all users of the hub's cache download this file."""
    from filelock import FileLock, Timeout

    repository = blob.parent.parent
    lock_path = repository.parent / ".locks" / repository.name / f"{shard.identity}.lock"
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path)
    while True:
        if is_stopped():
            raise Stopped
        try:
            lock.acquire(timeout=LOCK_POLL_SECONDS)
        except Timeout:  # another process downloads it: its progress is ours
            incomplete = _incomplete(blob)
            report(incomplete.stat().st_size if incomplete.exists() else 0)
            continue
        break
    try:
        yield
    finally:
        lock.release()


def _incomplete(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _complete(
    model: HubModel, shard: HubFile, blob: Path, report: Report, is_stopped: Callable[[], bool]
) -> None:
    """Download what is missing, check the whole, give it its name."""
    incomplete = _incomplete(blob)
    with incomplete.open("ab", buffering=0) as file:
        if file.tell() > shard.nbytes:
            file.truncate(0)
        hasher = _hash_of(incomplete, shard, is_stopped)
        _grow(model, shard, file, hasher, report, is_stopped)
        os.fsync(file.fileno())
    if hasher.hexdigest() != shard.identity:
        incomplete.unlink()
        raise CheckpointError(
            f"{shard.name} of {model.name} does not have the hash that the hub lists",
            "start again: it is fetched anew",
        )
    incomplete.chmod(0o644)
    incomplete.replace(blob)


def _hash_of(path: Path, shard: HubFile, is_stopped: Callable[[], bool]) -> Any:
    """A hash of what is there, to be fed with what comes."""
    if len(shard.identity) == SHA256_DIGITS:
        hasher = hashlib.sha256()
    else:
        hasher = hashlib.sha1(f"blob {shard.nbytes}\0".encode(), usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(HASH_CHUNK_NBYTES):
            if is_stopped():
                raise Stopped
            hasher.update(chunk)
    return hasher


def _grow(
    model: HubModel,
    shard: HubFile,
    file: FileIO,
    hasher: Any,
    report: Report,
    is_stopped: Callable[[], bool],
) -> None:
    """Append to a file until it has all bytes; a dropped connection is taken up again."""
    num_failures = 0
    while (position := file.seek(0, os.SEEK_END)) < shard.nbytes:
        report(position)
        try:
            _append(model, shard, file, hasher, report, is_stopped)
        except Exception as exc:
            if not is_passing(exc):
                raise
            num_failures = 1 if file.tell() > position else num_failures + 1
            if num_failures >= NUM_DOWNLOAD_TRIES:
                raise
            _sleep(wait_seconds(exc, num_failures), is_stopped)


def _append(
    model: HubModel,
    shard: HubFile,
    file: FileIO,
    hasher: Any,
    report: Report,
    is_stopped: Callable[[], bool],
) -> None:
    """One request for the rest of a file."""
    position = file.tell()
    with _stream(model, shard, f"bytes={position}-") as response:
        skip = position if response.status_code == 200 else 0
        for received in response.iter_bytes():  # of a size given, a rest would be lost
            if is_stopped():
                raise Stopped
            chunk = received[skip:][: shard.nbytes - position]
            skip = max(skip - len(received), 0)
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
            hasher.update(chunk)
            position += len(chunk)
            report(position)
    if position < shard.nbytes:
        raise ConnectionError(f"{shard.name} ended after {position} of {shard.nbytes} bytes")


def _sleep(seconds: float, is_stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_stopped():
            raise Stopped
        time.sleep(min(0.1, seconds))
