"""Writing a quantized copy so that it can be gone on with: what is written once is not lost.

While a copy grows it is the folder ``.NAME.partial`` beside the final one: the data file, locked by
its writer, and a journal with a line for each weight, written after the weight's bytes. A thread
keeps putting both on the disk and says in the journal how far it has come; so after kill -9 at most
the weight at work is lost, and after a power cut what was written in the last moment. The next
writer checks what the journal does not know to be on the disk, cuts off what is not whole, and
goes on behind it.
"""

import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from quant.copy import Weight, part_bytes, weight_parts
from quant.copy_index import ALIGNMENT
from quant.copy_journal import JOURNAL_FILE, Syncer, append_line, read_journal, write_all
from quant.copy_names import COPY_VERSION, DATA_FILE, INDEX_FILE
from quant.file_lock import try_lock
from quant.tensor import QuantTensor

POLL_SECONDS = 0.2
SUMMED_BESIDE_NBYTES = 1 << 20  # a checksum takes a third of the time of writing
LARGE_PAGE_NBYTES = 2 << 20


def partial_folder(folder: Path) -> Path:
    """Where a copy grows."""
    return folder.with_name(f".{folder.name}.partial")


class CopyWriter:
    """Writes a copy weight by weight, after those that an earlier writer has left.

    Use as a context manager. Without `finish` what is written stays for the next writer.

    Args:
        folder: Final name of the copy; its parent is made if needed.
        meta: What the copy is of; given back by `QuantizedCopy.meta`.
        waiting: Called again and again while another process writes this copy, with the bytes
            that it has written; what it raises ends the waiting.

    Attributes:
        is_finished: Whether the copy is there, made by another process in the meantime.

    Raises:
        OSError: If the folder cannot be written.
    """

    def __init__(
        self, folder: Path, meta: Mapping[str, Any], waiting: Callable[[int], None] | None = None
    ) -> None:
        self._folder = folder
        self._meta = dict(meta)
        self._entries: dict[str, Any] = {}
        self._is_named = False
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = _open_locked(folder, waiting or (lambda nbytes: None))
        self.is_finished = opened is None
        if opened is None:
            return
        self._temporary, self._file = opened
        try:
            self._journal = (self._temporary / JOURNAL_FILE).open("r+b", buffering=0)
        except FileNotFoundError:
            self._journal = (self._temporary / JOURNAL_FILE).open("x+b", buffering=0)
        self._go_on()
        self._syncer = Syncer(self._file, self._journal)
        self._summing = ThreadPoolExecutor(1, "copy-checksum")

    def __enter__(self) -> "CopyWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_finished:
            return
        self._summing.shutdown()
        self._syncer.close()
        self._journal.close()
        is_of_use = self._entries and self._temporary == partial_folder(self._folder)
        if not self._is_named and not is_of_use:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._file.close()

    def __contains__(self, name: str) -> bool:
        """Whether a weight is written."""
        return name in self._entries

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return self._file.tell()

    def _go_on(self) -> None:
        """Take over what an earlier writer has left, as far as it is sound."""
        size = self._file.seek(0, os.SEEK_END)
        lines = read_journal(self._journal, size)
        header = {"version": COPY_VERSION}
        if not lines or lines[0][0] != header:
            lines = []
        synced = max((line["synced"] for line, _ in lines if "synced" in line), default=0)
        end_of_data, end_of_journal = 0, lines[0][1] if lines else 0
        for line, end in lines[1:]:
            if "entry" in line:
                parts = line["entry"]["parts"].values()
                stop = max((part["offset"] + part["nbytes"] for part in parts), default=0)
                if stop < end_of_data or (stop > synced and not self._is_sound(parts)):
                    break
                self._entries[line["name"]] = line["entry"]
                end_of_data = stop
            end_of_journal = end
        os.ftruncate(self._file.fileno(), end_of_data)
        self._file.seek(end_of_data)
        self._paged = end_of_data
        os.ftruncate(self._journal.fileno(), end_of_journal)
        self._journal.seek(end_of_journal)
        if not end_of_journal:
            append_line(self._journal, header)

    def _is_sound(self, parts: Any) -> bool:
        return all(
            zlib.crc32(os.pread(self._file.fileno(), part["nbytes"], part["offset"]))
            == part["crc32"]
            for part in parts
        )

    def __setitem__(self, name: str, weight: Weight) -> None:
        """Append a weight.

        Raises:
            OSError: If the disk is full, now or when earlier weights were put on it.
        """
        self._syncer.check()
        parts = weight_parts(weight)
        entry: dict[str, Any] = {"parts": {n: self._append(part) for n, part in parts.items()}}
        if isinstance(weight, QuantTensor):
            entry |= {"format": weight.format, "layout": weight.layout, "shape": weight.shape}
        self._syncer.journal({"name": name, "entry": entry})
        self._entries[name] = entry

    def _append(self, part: Tensor) -> dict[str, Any]:
        position = self._file.tell()
        offset = position + -position % ALIGNMENT
        data = part_bytes(part)
        is_large = len(data) >= SUMMED_BESIDE_NBYTES
        checksum = self._summing.submit(zlib.crc32, data) if is_large else None
        if is_large:
            self._make_pages(position, offset + len(data))
        write_all(self._file, bytes(offset - position))
        write_all(self._file, data)
        return {
            "offset": offset,
            "nbytes": len(data),
            "shape": list(part.shape),
            "dtype": str(part.dtype).removeprefix("torch."),
            "crc32": zlib.crc32(data) if checksum is None else checksum.result(),
        }

    def _make_pages(self, position: int, end: int) -> None:
        """Let the page cache hold what comes from `position` to `end` in large pages.

        A file system makes pages as large as a write is long and aligned. Whoever maps them has
        one fault in 2 MB instead of one in 64 KB, and products read past fewer tables.
        """
        self._paged = max(self._paged, position + -position % LARGE_PAGE_NBYTES)
        while self._paged < end:
            with suppress(OSError):  # a full disk is told where the data is written
                os.pwrite(self._file.fileno(), bytes(LARGE_PAGE_NBYTES), self._paged)
            self._paged += LARGE_PAGE_NBYTES

    def sync(self) -> None:
        """Put all weights on the disk now, before what they were made from is deleted."""
        self._syncer.check()
        os.fsync(self._file.fileno())
        os.fsync(self._journal.fileno())

    def finish(self) -> None:
        """Put everything on the disk and give the copy its name."""
        self._syncer.close()
        self._syncer.check()
        os.ftruncate(self._file.fileno(), self._file.tell())
        os.fsync(self._file.fileno())
        index = {
            "version": COPY_VERSION,
            "meta": self._meta,
            "nbytes": self._file.tell(),
            "entries": self._entries,
        }
        text = json.dumps(index)
        with (self._temporary / INDEX_FILE).open("w", encoding="utf-8") as file:
            json.dump({"crc32": zlib.crc32(text.encode()), "index": index}, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            self._temporary.rename(self._folder)
        except OSError:
            if not (self._folder / INDEX_FILE).exists():
                raise
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._is_named = True
        # Not earlier: without its journal an unnamed copy would be begun anew.
        (self._folder / JOURNAL_FILE).unlink(missing_ok=True)
        parent = os.open(self._folder.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def _open_locked(folder: Path, waiting: Callable[[int], None]) -> tuple[Path, FileIO] | None:
    """The partial folder and its locked data file; None if the copy gets finished meanwhile."""
    partial = partial_folder(folder)
    while True:
        if (folder / INDEX_FILE).exists():
            return None
        partial.mkdir(exist_ok=True, mode=0o700)
        descriptor = os.open(partial / DATA_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            is_ours = try_lock(file.fileno())
        except OSError:
            file.close()
            return _open_unlocked(folder)
        if not is_ours:
            size = os.fstat(file.fileno()).st_size
            file.close()
            waiting(size)
            time.sleep(POLL_SECONDS)
            continue
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(partial / DATA_FILE)):
                return partial, file
        file.close()  # finished or deleted between opening and locking


def _open_unlocked(folder: Path) -> tuple[Path, FileIO]:
    """A folder of its own, where the file system has no locks: nothing is gone on with there."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    return temporary, (temporary / DATA_FILE).open("w+b", buffering=0)
