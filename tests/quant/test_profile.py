"""Routing counts on disk: merging, fading, two processes at once, and files that are refused."""

import fcntl
import json
import os
import stat
import subprocess
import sys

import pytest

from quant.errors import QuantError
from quant.experts import profile
from quant.experts.profile import (
    HALF_LIFE_TOKENS,
    RoutingProfile,
    add_to_profile,
    load_profile,
    merge_profiles,
    profile_path,
)

MODEL = "baidu/ERNIE-4.5-21B-A3B-PT"
SESSION = RoutingProfile(MODEL, 10, {1: (4.0, 16.0), 2: (20.0, 0.0)})


@pytest.fixture
def path(tmp_path):
    return profile_path(tmp_path / "profiles", MODEL)


def test_a_profile_comes_back_as_it_was_written(path):
    assert load_profile(path, MODEL) is None
    assert add_to_profile(path, SESSION) == SESSION
    assert load_profile(path, MODEL) == SESSION


def test_the_file_is_json_to_be_looked_at_and_its_owners_alone(path):
    add_to_profile(path, SESSION)
    assert path.read_text() == (
        "{\n"
        '  "kind": "routing-profile",\n'
        '  "version": 1,\n'
        f'  "model": "{MODEL}",\n'
        '  "num_tokens": 10,\n'
        '  "counts": {\n'
        '    "1": [4.0, 16.0],\n'
        '    "2": [20.0, 0.0]\n'
        "  }\n"
        "}\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    names = sorted(entry.name for entry in path.parent.iterdir())
    assert names == [path.name, path.name + ".lock"]


def test_a_model_without_routed_experts_has_an_empty_profile(path):
    empty = RoutingProfile(MODEL, 5, {})
    add_to_profile(path, empty)
    assert load_profile(path, MODEL) == empty


def test_layers_are_numbers_in_their_order(path):
    add_to_profile(path, RoutingProfile(MODEL, 1, {10: (1.0,), 9: (2.0,)}))
    loaded = load_profile(path, MODEL)
    assert loaded is not None
    assert list(loaded.counts.items()) == [(9, (2.0,)), (10, (1.0,))]


def test_older_counts_fade_by_half_every_half_life_of_new_tokens():
    new = RoutingProfile(MODEL, 100, {1: (1.0, 2.0), 2: (3.0, 4.0)})
    merged = merge_profiles(SESSION, new, half_life_tokens=100)
    assert merged.counts == {1: (3.0, 10.0), 2: (13.0, 4.0)}
    assert merged.num_tokens == 105
    after_two = merge_profiles(SESSION, RoutingProfile(MODEL, 200, SESSION.counts), 100)
    assert after_two.counts[1] == (5.0, 20.0)  # a quarter of the old, all of the new


def test_many_short_chats_weigh_as_one_long_chat():
    none = {1: (0.0, 0.0), 2: (0.0, 0.0)}
    merged = SESSION
    for _ in range(10):
        merged = merge_profiles(merged, RoutingProfile(MODEL, 40, none), half_life_tokens=200)
    assert merged.counts[1] == pytest.approx((1.0, 4.0))


def test_a_chat_of_the_usual_length_hardly_fades_what_is_there():
    new = RoutingProfile(MODEL, 2000, SESSION.counts)
    assert 0.98 < 0.5 ** (new.num_tokens / HALF_LIFE_TOKENS) < 1
    assert merge_profiles(SESSION, new).counts[1][1] > 1.98 * 16


@pytest.mark.parametrize(
    ("counts", "described"),
    [
        ({1: (1.0, 1.0)}, "1 layers from 1 with 2 experts"),
        ({1: (1.0,), 2: (1.0,)}, "2 layers from 1 with 1 experts"),
        ({2: (1.0, 1.0), 3: (1.0, 1.0)}, "2 layers from 2 with 2 experts"),
    ],
)
def test_counts_of_other_layers_or_experts_are_refused(path, counts, described):
    add_to_profile(path, SESSION)
    before = path.read_bytes()
    with pytest.raises(QuantError, match=f"the model has {described}; delete the profile"):
        add_to_profile(path, RoutingProfile(MODEL, 1, counts))
    assert path.read_bytes() == before


def test_counts_of_another_model_are_refused(path):
    add_to_profile(path, SESSION)
    with pytest.raises(QuantError, match=f"is of the model {MODEL}, not of mini; delete"):
        load_profile(path, "mini")
    with pytest.raises(QuantError, match="cannot add routing counts of mini to those of"):
        merge_profiles(SESSION, RoutingProfile("mini", 1, SESSION.counts))


GOOD = {
    "kind": "routing-profile",
    "version": 1,
    "model": MODEL,
    "num_tokens": 3,
    "counts": {"1": [1, 2]},
}
BAD_FILES = {
    "empty": (b"", "is damaged (it is no JSON); delete it"),
    "cut short": (json.dumps(GOOD).encode()[:-9], "is damaged (it is no JSON); delete it"),
    "nested too deep": (b"[" * 100_000, "is damaged (it is no JSON); delete it"),
    "bytes": (b"\xff\xfe\x00PK", "is damaged (it is no text); delete it"),
    "a list": (b"[1, 2]", "is no routing profile; move it away"),
    "foreign": (b'{"chat": "hello"}', "is no routing profile; move it away"),
}
BAD_FIELDS = {
    "newer": ({"version": 2}, "has version 2, and this program reads 1; update the program"),
    "no tokens": ({"num_tokens": None}, "is damaged (num_tokens or counts is missing or wrong)"),
    "no layers": ({"counts": [1]}, "is damaged (num_tokens or counts is missing or wrong)"),
    "layer's name": ({"counts": {"one": [1]}}, '"one" is no layer'),
    "layer's counts": ({"counts": {"1": 7}}, '"1" is no layer with a list of counts'),
    "negative": ({"counts": {"1": [-1]}}, "a count of layer 1 is not a number from 0 up"),
    "text": ({"counts": {"1": ["1"]}}, "a count of layer 1 is not a number from 0 up"),
    "truth": ({"counts": {"1": [True]}}, "a count of layer 1 is not a number from 0 up"),
    "NaN": ({"counts": {"1": [float("nan")]}}, "a count of layer 1 is not a number from 0 up"),
    "infinite": ({"counts": {"1": [float("inf")]}}, "a count of layer 1 is not a number"),
    "too large": ({"counts": {"1": [10**400]}}, "a count of layer 1 is not a number from 0 up"),
}
for _name, (_changes, _message) in BAD_FIELDS.items():
    BAD_FILES[_name] = (json.dumps(GOOD | _changes).encode(), _message)


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_damaged_or_foreign_file_is_refused_in_one_line_and_kept(path, case):
    content, message = BAD_FILES[case]
    path.parent.mkdir()
    path.write_bytes(content)
    for use in (lambda: load_profile(path, MODEL), lambda: add_to_profile(path, SESSION)):
        with pytest.raises(QuantError) as caught:
            use()
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_an_unknown_field_of_the_same_version_does_not_matter(path):
    path.parent.mkdir()
    path.write_text(json.dumps(GOOD | {"note": "mine"}))
    assert load_profile(path, MODEL) == RoutingProfile(MODEL, 3, {1: (1.0, 2.0)})


ADD = """
import sys
from pathlib import Path
from quant.experts.profile import RoutingProfile, add_to_profile
for _ in range(20):
    add_to_profile(Path(sys.argv[1]), RoutingProfile(sys.argv[2], 1, {1: (1.0, 2.0)}), 10**9)
"""


def test_processes_that_end_together_all_leave_their_counts(path):
    command = [sys.executable, "-c", ADD, str(path), MODEL]
    workers = [subprocess.Popen(command) for _ in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    merged = load_profile(path, MODEL)
    assert merged is not None
    assert merged.counts[1] == pytest.approx((60, 120), rel=1e-4)


def test_a_lock_that_is_never_released_is_told(path, monkeypatch):
    monkeypatch.setattr(profile, "LOCK_TIMEOUT_SECONDS", 0.05)
    path.parent.mkdir()
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(QuantError, match=r"another process has held .*\.lock for 0\.05 s"):
            add_to_profile(path, SESSION)
    add_to_profile(path, SESSION)  # and it is free again once that process is gone


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(path, monkeypatch, step):
    add_to_profile(path, SESSION)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(QuantError, match="No space left on device; this chat's counts are lost"):
        add_to_profile(path, SESSION)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_counts_in_the_file_are_not_told_as_lost(path, monkeypatch):
    """Whoever adds them again would count them twice: so with a folder that cannot be synced."""
    fsync, calls = os.fsync, []

    def fail_on_folders(handle):
        calls.append(handle)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    assert add_to_profile(path, SESSION) == load_profile(path, MODEL) == SESSION
    assert len(calls) == 2


def test_a_folder_that_cannot_be_made_or_read_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantError, match="cannot write the routing profile"):
        add_to_profile(tmp_path / "file" / "sub" / "p.json", SESSION)
    with pytest.raises(QuantError, match="cannot read the routing profile"):
        load_profile(tmp_path, MODEL)  # a folder where a file should be


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(QuantError, match="Permission denied"):
        add_to_profile(tmp_path / "p.json", SESSION)


def test_the_file_name_is_readable_and_keeps_models_apart(tmp_path):
    one, other = profile_path(tmp_path, "a/b"), profile_path(tmp_path, "a-b")
    assert one.name.startswith("a-b-")
    assert one != other
    for key in ("../../etc/passwd", "", "文心", "x" * 500, "/abs"):
        named = profile_path(tmp_path, key)
        assert named.parent == tmp_path
        assert len(named.name) < 110
        assert named.name[0] not in "-."
