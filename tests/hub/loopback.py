"""A small hub on loopback for the real huggingface_hub client; it can do all that a hub does wrong.

Made as ``Hub({"owner/name": folder})``, told by ``hub.fault("model-00002", "drop", after=10**5)``.
"""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

CHUNK = 1 << 16
LARGE = (".safetensors", ".gguf")


@dataclass
class Fault:
    """What goes wrong with the next requests whose path has a text in it.

    kind: ``drop`` (the connection breaks), ``stall`` (no byte for a while, then it breaks),
    ``truncate`` (fewer bytes than there are, and no word about it), ``corrupt`` (other bytes),
    ``lie`` (the API tells another size), ``no-ranges``, or an HTTP status.
    """

    where: str
    kind: str | int
    times: int = 1
    after: int = 0
    seconds: float = 1.0
    headers: tuple[tuple[str, str], ...] = ()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Hub:
    """Serves folders as repositories. Use as a context manager.

    Attributes:
        url: For HF_ENDPOINT.
        log: Method, path and range of every request.
        sent: Bytes of files sent, by name.
        bytes_per_second: Of one connection; 0 is as fast as it goes.
        redirect_to: Address of another hub, to which requests for weights are sent on.
        tokens: What came as Authorization with requests for weights.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, str]] = []
        self.sent: dict[str, int] = {}
        self.bytes_per_second = 0.0
        self.commit = "0123456789abcdef0123456789abcdef01234567"
        self.token = ""
        self.redirect_to = ""
        self.tokens: list[str] = []
        self._hashes: dict[Path, str] = {}
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, where: str, kind: str | int, **more: Any) -> None:
        self.faults.append(Fault(where, kind, **more))

    def files(self, repository: str) -> dict[str, Path]:
        folder = self.repositories[repository]
        return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def hash_of(self, path: Path) -> str:
        with self._lock:
            if path not in self._hashes:
                data = path.read_bytes()
                if path.suffix not in LARGE:
                    git = b"blob %d\0" % len(data)
                    self._hashes[path] = hashlib.sha1(git + data).hexdigest()
                else:
                    self._hashes[path] = hashlib.sha256(data).hexdigest()
            return self._hashes[path]

    def requests(self, text: str, method: str = "GET") -> list[str]:
        """Ranges of the requests for a file."""
        return [r for m, path, r in self.log if m == method and text in path]

    def _take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.where in path and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(handler.path).path)
        if path.endswith(LARGE):
            self.tokens.append(handler.headers.get("Authorization", ""))
            if self.redirect_to and body:
                return self._status(handler, 302, {"Location": self.redirect_to + handler.path})
        self.log.append((handler.command, path, handler.headers.get("Range", "")))
        is_file = "/resolve/" in path
        fault = self._take_fault(path) if body or not is_file else None
        if fault and isinstance(fault.kind, int):
            return self._status(handler, fault.kind, dict(fault.headers))
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return self._status(handler, 401, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models/"):
            return self._api(handler, path.removeprefix("/api/models/"), fault)
        repository, _, rest = path[1:].partition("/resolve/")
        _, _, name = rest.partition("/")
        found = self.files(repository).get(name) if repository in self.repositories else None
        if found is None:
            return self._status(handler, 404, {"X-Error-Code": "EntryNotFound"})
        return self._file(handler, found, fault, body)

    def _status(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    def _api(self, handler: BaseHTTPRequestHandler, rest: str, fault: Fault | None) -> None:
        repository = "/".join(rest.split("/")[:2])
        if repository not in self.repositories:
            return self._status(handler, 404, {"X-Error-Code": "RepoNotFound"})
        revision = rest.split("/")[3] if rest.count("/") > 2 else "main"
        if revision not in ("main", self.commit):
            return self._status(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        entries = []
        for name, path in self.files(repository).items():
            size = path.stat().st_size + (7 if fault and fault.kind == "lie" else 0)
            oid = self.hash_of(path)
            lfs = {"sha256": oid, "oid": oid, "size": size, "pointerSize": 130}
            is_lfs = name.endswith(LARGE)
            entries.append(
                {"type": "file", "path": name, "rfilename": name, "size": size}
                | {"oid": oid[:40], "blobId": oid[:40]}
                | ({"lfs": lfs} if is_lfs else {})
            )
        if "/tree/" in rest:
            return self._json(handler, entries)
        return self._json(handler, {"id": repository, "sha": self.commit, "siblings": entries})

    def _json(self, handler: BaseHTTPRequestHandler, value: object) -> None:
        data = json.dumps(value).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _file(
        self, handler: BaseHTTPRequestHandler, path: Path, fault: Fault | None, body: bool
    ) -> None:
        size = path.stat().st_size
        begin, end = 0, size
        asked = handler.headers.get("Range", "").removeprefix("bytes=")
        is_range = bool(asked) and not (fault and fault.kind == "no-ranges")
        if is_range:
            first, _, last = asked.partition("-")
            begin, end = int(first), min(int(last) + 1, size) if last else size
        if begin >= size:
            return self._status(handler, 416, {})
        kind = fault.kind if fault else ""
        length = end - begin
        if fault and kind == "truncate":
            length = min(length, fault.after)
        handler.send_response(206 if is_range else 200)
        for name, value in {
            "Content-Length": str(length),
            "Content-Range": f"bytes {begin}-{end - 1}/{size}",
            "Accept-Ranges": "bytes",
            "ETag": f'"{self.hash_of(path)}"',
            "X-Linked-Etag": f'"{self.hash_of(path)}"',
            "X-Linked-Size": str(size),
            "X-Repo-Commit": self.commit,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        if body:
            self._send(handler, path, begin, begin + length, fault)
        return None

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        path: Path,
        begin: int,
        end: int,
        fault: Fault | None,
    ) -> None:
        kind = fault.kind if fault else ""
        stop = min(end, begin + fault.after) if fault and kind in ("drop", "stall") else end
        with path.open("rb") as file:
            file.seek(begin)
            position = begin
            while position < stop:
                data = file.read(min(CHUNK, stop - position))
                if kind == "corrupt":
                    data = bytes(255 - byte for byte in data)
                try:
                    handler.wfile.write(data)
                except OSError:
                    handler.close_connection = True
                    return
                position += len(data)
                self.sent[path.name] = self.sent.get(path.name, 0) + len(data)
                if self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
        if fault and kind == "stall":
            time.sleep(fault.seconds)
        if stop < end:
            handler.close_connection = True


@contextmanager
def client_of(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within: huggingface_hub in this process talks to a hub and caches under a folder."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DOWNLOAD_TIMEOUT": 0.5,
        "HF_HUB_ETAG_TIMEOUT": 2,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("erniechat.hub.failures.FIRST_WAIT_SECONDS", 0.01)
    yield


def environment_of(hub: Hub, home: Path) -> dict[str, str]:
    """Variables for a program that is to talk to a hub and to cache under a folder."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_OFFLINE": "0",
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
    }
