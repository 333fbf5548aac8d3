"""The journal of a growing copy: a line for each weight that is written, with its checksum.

Lines ``synced`` between them say how many bytes of the data file are on the disk.
"""

import json
import os
import threading
import zlib
from collections.abc import Mapping
from io import FileIO
from typing import Any

from quant.copy_index import is_entry

JOURNAL_FILE = "journal"


class Syncer:
    """A thread that puts a data file and its journal on the disk, one after the other, always.

    Args:
        data: The data file.
        journal: Gets a line ``synced`` once the data before it is on the disk.
    """

    def __init__(self, data: FileIO, journal: FileIO) -> None:
        self._data = data
        self._journal = journal
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._is_closed = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="copy-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._dirty.wait() and not self._is_closed:
            self._dirty.clear()
            position = self._data.tell()
            try:
                _sync(self._data)
                with self._lock:
                    append_line(self._journal, {"synced": position})
                _sync(self._journal)
            except OSError as exc:
                self._error = exc
                return

    def journal(self, line: Mapping[str, Any]) -> None:
        """Add a line for data that is written."""
        with self._lock:
            append_line(self._journal, line)
        self._dirty.set()

    def check(self) -> None:
        """Raise what has gone wrong."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread."""
        self._is_closed = True
        self._dirty.set()
        self._thread.join()


def _sync(file: FileIO) -> None:
    """Put a file's data on the disk; macOS has no call that leaves out its times."""
    getattr(os, "fdatasync", os.fsync)(file.fileno())


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of it, in as many calls as the system needs."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def append_line(journal: FileIO, line: Mapping[str, Any]) -> None:
    """Write a line, which `read_journal` knows from a part of one by its checksum."""
    text = json.dumps(line).encode()
    write_all(journal, b"%08x " % zlib.crc32(text) + text + b"\n")


def _is_line(line: Any, data_nbytes: int) -> bool:
    """Whether a journal may have such a line beside so many bytes of data."""
    if not isinstance(line, dict):
        return False
    if "entry" in line:
        return isinstance(line.get("name"), str) and is_entry(line["entry"], data_nbytes)
    return type(line.get("synced", line.get("version"))) is int


def read_journal(journal: FileIO, data_nbytes: int) -> list[tuple[dict[str, Any], int]]:
    """Its sound lines up to the first that is not, each with the offset where it ends."""
    lines: list[tuple[dict[str, Any], int]] = []
    end = 0
    for raw in journal.readall().splitlines(keepends=True):
        end += len(raw)
        try:
            checksum, text = raw[:8], raw[9:-1]
            if not raw.endswith(b"\n") or int(checksum, 16) != zlib.crc32(text):
                break
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not _is_line(line, data_nbytes):
            break
        lines.append((line, end))
    return lines
