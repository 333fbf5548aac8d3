"""Keys and values of saved conversations on disk, so that coming back need not read them again.

A file is a magic word, the length of the head, the head (JSON) and the tokens' ids, a checksum of
both, and then pieces of 256 tokens, each with its own checksum. Pieces follow each other from the
first token on, so that a conversation that has changed since is read back as far as it is the same.

The rule: a conversation is read back for as long as bringing a token back takes less time than
the model took to read one, which the head tells. What would be read again within KEEP_SECONDS is
not kept.
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from torch import Tensor

from erniechat.model.kv_cache import KVCache, common_length

MAGIC = b"erniekv1"
SUFFIX = ".kv"
HEAD_NBYTES = 4  # of a token's id
PIECE_TOKENS = 256
KEEP_SECONDS = 0.2
STALE_SECONDS = 3600.0  # after which an unfinished file is nobody's any more


class _DamagedError(Exception):
    """A file is not what was written."""


@dataclass(frozen=True, slots=True)
class KeptCaches:
    """The folder of kept caches, for one model.

    Args:
        folder: Where they are; made when first needed.
        key: All that keys and values depend on: checkpoint, format, kernels, dtype, device.
        limit_nbytes: Most bytes of all files together; the oldest go first.
        warn: Told, in one line, what did not work and is not needed.
    """

    folder: Path
    key: str
    limit_nbytes: int
    warn: Callable[[str], None]

    def path(self, name: str) -> Path:
        """The file of a session."""
        return self.folder / f"{name}{SUFFIX}"

    def restore(self, name: str, kv_cache: KVCache, input_ids: Sequence[int]) -> int:
        """Bring back what was kept of a prompt, as far as that is worth it.

        Args:
            name: The session.
            kv_cache: Afterwards holds the prompt's beginning, and nothing else.
            input_ids: The prompt.

        Returns:
            Tokens brought back.
        """
        begin = kv_cache.keep_prefix(input_ids)
        try:
            with self.path(name).open("rb") as file:
                _restore(file, self.key, kv_cache, input_ids)
        except FileNotFoundError:
            pass
        except OSError as exc:
            self.warn(f"what was read of session {name} cannot be had ({exc.strerror})")
        except _DamagedError:
            with suppress(OSError):
                self.path(name).unlink()
            self.warn(f"what was kept of session {name} is damaged; the rest is read again")
        return len(kv_cache) - begin

    def keep(self, name: str, kv_cache: KVCache, seconds_per_token: float) -> None:
        """Write what a cache holds, unless that is too little or is there already.

        Args:
            name: The session.
            kv_cache: Of its conversation.
            seconds_per_token: What the model takes to read a token.
        """
        if not math.isfinite(seconds_per_token):  # nothing of it was read
            return
        nbytes_per_token = kv_cache.nbytes_per_token
        num_tokens = min(len(kv_cache), self.limit_nbytes // nbytes_per_token)
        if not num_tokens or num_tokens * seconds_per_token < KEEP_SECONDS:
            return
        path = self.path(name)
        token_ids = kv_cache.token_ids[:num_tokens]
        if self._has(path, token_ids):
            return
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(path, num_tokens * (nbytes_per_token + HEAD_NBYTES))
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                _write(file, self.key, kv_cache, num_tokens, seconds_per_token)
            os.replace(temporary, path)
        except OSError as exc:
            self.warn(f"what was read of session {name} is not kept: {exc.strerror}")
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _has(self, path: Path, token_ids: Sequence[int]) -> bool:
        try:
            with path.open("rb") as file:
                head, held = _read_head(file)
        except (OSError, _DamagedError):
            return False
        return head["key"] == self.key and held[: len(token_ids)] == token_ids

    def _make_room(self, path: Path, nbytes: int) -> None:
        """Delete the oldest files of others until so many bytes more are within the limit."""
        found = []
        for other in self.folder.iterdir():
            stat = other.stat()
            if other.suffix != SUFFIX:
                if time.time() - stat.st_mtime > STALE_SECONDS:
                    other.unlink(missing_ok=True)
            elif other != path:
                found.append((stat.st_mtime, stat.st_size, other))
        total = nbytes + sum(size for _, size, _ in found)
        for _, size, other in sorted(found):
            if total <= self.limit_nbytes:
                return
            other.unlink(missing_ok=True)
            total -= size


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _DamagedError
    return data


def _checked(file: BinaryIO, size: int) -> bytes:
    data = _read(file, size)
    if zlib.crc32(data) != int.from_bytes(_read(file, 4), "little"):
        raise _DamagedError
    return data


def _put(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.write(zlib.crc32(data).to_bytes(4, "little"))


def _read_head(file: BinaryIO) -> tuple[dict[str, Any], list[int]]:
    if _read(file, len(MAGIC)) != MAGIC:
        raise _DamagedError
    size = int.from_bytes(_checked(file, 8), "little")
    try:
        head = json.loads(_checked(file, size))
        ids = numpy.frombuffer(_checked(file, 4 * head["num_tokens"]), numpy.int32)
    except (ValueError, LookupError, TypeError) as exc:
        raise _DamagedError from exc
    return head, ids.tolist()


@torch.inference_mode()
def _restore(file: BinaryIO, key: str, kv_cache: KVCache, input_ids: Sequence[int]) -> None:
    head, held = _read_head(file)
    wanted = list(input_ids[:-1])  # the logits of the last are needed, so it is read
    num_same = common_length(held, wanted)
    begin, began = len(kv_cache), time.perf_counter()
    if head["key"] != key:
        return
    for piece in range(0, num_same, PIECE_TOKENS):
        end = min(piece + PIECE_TOKENS, len(held))
        size = (end - piece) * kv_cache.nbytes_per_token
        if end <= begin:
            file.seek(size + 4, os.SEEK_CUR)
            continue
        data = kv_cache.stored(_checked(file, size), end - piece)
        have, end = len(kv_cache), min(end, num_same)
        kv_cache.append_stored(wanted[have:end], data[..., have - piece : end - piece, :])
        spent = time.perf_counter() - began
        if spent > (end - begin) * head["seconds_per_token"]:
            return


@torch.inference_mode()
def _write(
    file: BinaryIO, key: str, kv_cache: KVCache, num_tokens: int, seconds_per_token: float
) -> None:
    ids = numpy.array(kv_cache.token_ids[:num_tokens], numpy.int32)
    head = {"key": key, "num_tokens": num_tokens, "seconds_per_token": seconds_per_token}
    text = json.dumps(head).encode()
    file.write(MAGIC)
    for data in (len(text).to_bytes(8, "little"), text, ids.tobytes()):
        _put(file, data)
    for piece in range(0, num_tokens, PIECE_TOKENS):
        end = min(piece + PIECE_TOKENS, num_tokens)
        _put(file, _bytes_of(kv_cache.data[..., piece:end, :]))


def _bytes_of(data: Tensor) -> bytes:
    return data.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
