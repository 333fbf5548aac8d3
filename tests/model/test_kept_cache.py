"""What is kept of a conversation on disk: as far as it is the same, checked, bounded, private."""

import os
import time
from pathlib import Path

import pytest
import torch

from erniechat.model import kept_cache
from erniechat.model.kept_cache import PIECE_TOKENS, KeptCaches
from erniechat.model.kv_cache import KVCache

IDS = list(range(3 * PIECE_TOKENS + 100))
SLOW = 1.0  # seconds a token: whatever can be brought back is


class Kept:
    """A folder of kept caches, and what was warned of."""

    def __init__(self, folder: Path, *, key: str = "m-nf4", limit: int = 1 << 30) -> None:
        self.warnings: list[str] = []
        self.caches = KeptCaches(folder / "sessions", key, limit, self.warnings.append)

    def restored(self, ids: list[int], name: str = "a", cache: KVCache | None = None) -> KVCache:
        cache = cache or KVCache(2, 1, 4, 4000)
        before = len(cache.token_ids)
        count = self.caches.restore(name, cache, ids)
        assert count == len(cache) - min(before, len(cache))
        return cache


def filled(ids: list[int]) -> KVCache:
    cache = KVCache(2, 1, 4, 4000)
    cache.append_stored(ids, torch.randn(2, 2, 1, len(ids), 4))
    return cache


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def same(one: KVCache, other: KVCache, num_tokens: int) -> bool:
    return torch.equal(one.data[..., :num_tokens, :], other.data[..., :num_tokens, :])


def test_what_was_kept_comes_back_but_the_last_token(kept: Kept) -> None:
    cache = filled(IDS)
    kept.caches.keep("a", cache, SLOW)
    found = kept.restored(IDS)
    assert found.token_ids == IDS[:-1]
    assert same(found, cache, len(IDS) - 1)
    longer = kept.restored([*IDS, 7, 8, 9])
    assert longer.token_ids == IDS
    assert kept.warnings == []


@pytest.mark.parametrize("num_same", [0, 1, PIECE_TOKENS, PIECE_TOKENS + 5])
def test_a_changed_conversation_comes_back_as_far_as_it_is_the_same(
    kept: Kept, num_same: int
) -> None:
    cache = filled(IDS)
    kept.caches.keep("a", cache, SLOW)
    found = kept.restored([*IDS[:num_same], *([-1] * 400)])
    assert found.token_ids == IDS[:num_same]
    assert same(found, cache, num_same)


def test_what_the_cache_holds_already_is_not_read_again(kept: Kept) -> None:
    cache = filled(IDS)
    kept.caches.keep("a", cache, SLOW)
    here = filled(IDS[:300])
    mine = here.data.clone()
    kept.restored(IDS, cache=here)
    assert len(here) == len(IDS) - 1
    assert torch.equal(here.data[..., :300, :], mine[..., :300, :])
    assert torch.equal(
        here.data[..., 300 : len(IDS) - 1, :], cache.data[..., 300 : len(IDS) - 1, :]
    )


def test_another_model_format_or_device_finds_nothing(kept: Kept, tmp_path: Path) -> None:
    kept.caches.keep("a", filled(IDS), SLOW)
    assert len(Kept(tmp_path, key="m-int8").restored(IDS)) == 0
    assert len(kept.restored(IDS, name="b")) == 0
    assert kept.warnings == []


@pytest.mark.parametrize("place", [3, 12, 40, 400, -1])
def test_a_flipped_bit_is_found_and_told_once(kept: Kept, place: int) -> None:
    cache = filled(IDS)
    kept.caches.keep("a", cache, SLOW)
    path = kept.caches.path("a")
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    found = kept.restored([*IDS, 1])
    assert len(found) in (0, 3 * PIECE_TOKENS)  # the pieces before the damage are sound
    assert same(found, cache, len(found))
    assert kept.warnings == ["what was kept of session a is damaged; the rest is read again"]
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 5, 30, 2000, -3])
def test_a_file_that_was_cut_off_is_damaged(kept: Kept, size: int) -> None:
    kept.caches.keep("a", filled(IDS), SLOW)
    path = kept.caches.path("a")
    path.write_bytes(path.read_bytes()[:size])
    kept.restored([*IDS, 1])
    assert len(kept.warnings) == 1


def test_bringing_back_stops_where_reading_is_faster(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_cache, "KEEP_SECONDS", 0.0)
    kept.caches.keep("a", filled(IDS), 1e-9)
    assert len(kept.restored(IDS)) == PIECE_TOKENS  # what has come is kept


def test_what_is_read_again_in_no_time_is_not_kept(kept: Kept) -> None:
    kept.caches.keep("a", filled(IDS), kept_cache.KEEP_SECONDS / len(IDS) * 0.99)
    kept.caches.keep("a", filled(IDS), float("inf"))
    assert not kept.caches.path("a").exists()
    kept.caches.keep("a", filled(IDS), kept_cache.KEEP_SECONDS / len(IDS) * 1.01)
    assert kept.caches.path("a").exists()


def test_files_are_private(kept: Kept) -> None:
    kept.caches.keep("a", filled(IDS), SLOW)
    path = kept.caches.path("a")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path) -> None:
    nbytes = filled(IDS).nbytes_per_token * len(IDS)
    kept = Kept(tmp_path, limit=3 * nbytes)
    for age, name in enumerate("cba"):
        kept.caches.keep(name, filled(IDS), SLOW)
        os.utime(kept.caches.path(name), (1000 - age, 1000 - age))
    old = kept.caches.folder / ".z.123"
    old.write_bytes(b"unfinished")
    os.utime(old, (1000, 1000))
    kept.caches.keep("d", filled(IDS), SLOW)
    names = sorted(path.name for path in kept.caches.folder.iterdir())
    assert names == ["c.kv", "d.kv"]
    assert sum(path.stat().st_size for path in kept.caches.folder.iterdir()) < 3 * nbytes


def test_a_conversation_beyond_the_limit_is_kept_in_part(tmp_path: Path) -> None:
    kept = Kept(tmp_path, limit=filled(IDS).nbytes_per_token * 300)
    kept.caches.keep("a", filled(IDS), SLOW)
    assert len(kept.restored(IDS)) == 300
    Kept(tmp_path / "none", limit=0).caches.keep("a", filled(IDS), SLOW)
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("a file")
    kept = Kept(tmp_path)
    kept.caches.keep("a", filled(IDS), SLOW)
    kept.restored(IDS)
    assert kept.warnings[0].startswith("what was read of session a is not kept: ")


def test_what_is_there_already_is_not_written_again(kept: Kept) -> None:
    kept.caches.keep("a", filled(IDS), SLOW)
    before = kept.caches.path("a").stat().st_mtime_ns
    time.sleep(0.02)
    kept.caches.keep("a", filled(IDS[:400]), SLOW)
    assert kept.caches.path("a").stat().st_mtime_ns == before
    kept.caches.keep("a", filled([*IDS, 5]), SLOW)
    assert kept.caches.path("a").stat().st_mtime_ns > before
