"""From the hub to an engine: what is fetched, in which order, and what every failure says."""

import json
from pathlib import Path

import pytest

from erniechat.errors import (
    CheckpointError,
    DiskLimitError,
    ErnieChatError,
    ModelError,
    ModelNotFoundError,
    UsageError,
)
from erniechat.events import Progress, TextDelta
from erniechat.loader import load_engine
from erniechat.mini import checkpoint_folder
from erniechat.options import LoadOptions, SamplingOptions
from tests.hub.loopback import Hub

OPTIONS = LoadOptions(model="owner/mini", quant="int8")
SHARDS = sorted(path.name for path in checkpoint_folder().glob("*.safetensors"))
SHARD_NBYTES = [(checkpoint_folder() / name).stat().st_size for name in SHARDS]


def cached_shards(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("hub/models--*/snapshots/*/*.safetensors"))


def blobs(home: Path) -> list[Path]:
    return sorted(home.glob("hub/models--*/blobs/*"))


def answer(options: LoadOptions) -> str:
    sampling = SamplingOptions(temperature=0, max_tokens=8)
    events = load_engine(options).stream_completion("17 + 25 =", sampling)
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_the_model_of_the_hub_is_that_of_the_folder(hub: Hub, home: Path) -> None:
    reports: list[Progress] = []
    load_engine(OPTIONS, reports.append)
    assert answer(OPTIONS) == answer(LoadOptions(quant="int8"))
    assert cached_shards(home) == SHARDS
    assert not [path for path in blobs(home) if path.name.endswith(".incomplete")]
    downloads = [p for p in reports if p.stage == "download"]
    assert downloads[-1].done == downloads[-1].total == sum(SHARD_NBYTES)
    quantized = [p for p in reports if p.stage == "quantize"]
    assert quantized[-1].done == quantized[-1].total


def test_the_second_start_asks_the_network_nothing(hub: Hub) -> None:
    load_engine(OPTIONS)
    hub.log.clear()
    load_engine(OPTIONS)
    load_engine(LoadOptions(model="owner/mini", quant="nf4"))
    load_engine(LoadOptions(model="owner/mini", quant="int8", offline=True))
    load_engine(LoadOptions(model="owner/mini", quant="int8", revision=hub.commit))
    assert hub.log == []


def test_a_branch_that_is_named_is_asked_for(hub: Hub) -> None:
    load_engine(OPTIONS)
    hub.log.clear()
    load_engine(LoadOptions(model="owner/mini", quant="int8", revision="main"))
    assert [path for _, path, _ in hub.log] != []
    assert not hub.requests(".safetensors")


def test_quantizing_begins_before_the_download_has_ended(hub: Hub) -> None:
    hub.fault(SHARDS[2], "stall", after=1_000_000, seconds=2, times=2)  # once for the header
    reports: list[Progress] = []
    load_engine(OPTIONS, reports.append)
    done = {"download": 0, "quantize": 0}
    overlap = 0
    for report in reports:
        done[report.stage] = report.done
        if done["download"] < sum(SHARD_NBYTES):
            overlap = done["quantize"]
    assert overlap > 0


def test_originals_are_discarded_as_their_weights_are_in_the_copy(hub: Hub, home: Path) -> None:
    options = LoadOptions(model="owner/mini", quant="int8", discard_originals=True)
    peak = 0

    def watch(progress: Progress) -> None:
        nonlocal peak
        files = [p.stat() for p in home.glob("hub/models--*/blobs/*") if p.exists()]
        peak = max(peak, sum(stat.st_blocks * 512 for stat in files if stat.st_size > 1 << 20))

    load_engine(options, watch)
    assert cached_shards(home) == []
    assert not [path for path in blobs(home) if path.stat().st_size > 4 << 20]
    assert peak <= sum(sorted(SHARD_NBYTES)[-2:]) + (1 << 20)
    hub.log.clear()
    assert answer(options) == answer(LoadOptions(quant="int8"))
    assert answer(OPTIONS) == answer(LoadOptions(quant="int8"))
    assert hub.log == []


def test_offline_what_is_missing_is_counted_and_nothing_is_asked(hub: Hub, home: Path) -> None:
    load_engine(OPTIONS)
    for path in list(home.glob("hub/models--*/snapshots/*/*.safetensors"))[:2]:
        path.resolve().unlink()
        path.unlink()
    hub.log.clear()
    text = r"offline \(--offline\), and 2 of 3 files of owner/mini are not in .* \(20\.4 MB\); go"
    with pytest.raises(ModelNotFoundError, match=text):
        load_engine(LoadOptions(model="owner/mini", quant="nf4", offline=True))
    load_engine(LoadOptions(model="owner/mini", quant="int8", offline=True))
    assert hub.log == []


NAME = SHARDS[1]
FAULTS = {
    "dropped": {"kind": "drop", "after": 100_000},
    "stalled": {"kind": "stall", "after": 100_000, "seconds": 1.5},
    "dropped often": {"kind": "drop", "after": 300_000, "times": 12},
    "truncated": {"kind": "truncate", "after": 100_000},
    "too many requests": {"kind": 429, "headers": (("Retry-After", "0"),), "times": 3},
    "bad gateway": {"kind": 502, "times": 3},
    "no ranges": {"kind": "no-ranges", "times": 9},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_waited_for_and_no_byte_is_fetched_twice(hub: Hub, fault: str) -> None:
    hub.fault("/resolve/" + hub.commit + "/" + NAME, **FAULTS[fault])  # type: ignore[arg-type]
    load_engine(OPTIONS)
    extra = hub.sent[NAME] - SHARD_NBYTES[1]
    assert extra <= (64 << 20 if fault == "no ranges" else 400_000)  # the header's range is extra


REFUSALS: dict[str, tuple[str, str | int, dict[str, str], str]] = {
    "no such model": ("/api/models", 404, {"X-Error-Code": "RepoNotFound"}, 'no model "own'),
    "gated": ("/api/models", 403, {"X-Error-Code": "GatedRepo"}, "asks for consent on its page"),
    "denied": ("/api/models", 403, {}, r"denies access to owner/mini \(status 403\); set HF_TOKEN"),
    "private": ("/api/models", 401, {"X-Error-Code": "RepoNotFound"}, "or it is private"),
    "busy": ("/api/models", 429, {}, r"too many requests from here \(status 429\)"),
    "down": ("/api/models", 503, {}, r"could not be fetched \(status 503\)"),
    "shard denied": (NAME, 403, {}, "denies access"),
    "shard gone": (NAME, 500, {}, r"\(status 500\); start again later; what is here is kept"),
    "other bytes": (NAME, "corrupt", {}, "not a sound safetensors file"),
    "another size": ("/api/models", "lie", {}, r"not a sound|shorter than"),
}  # fmt: skip  # a table


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_pass_is_one_line_with_status_3(hub: Hub, name: str) -> None:
    where, kind, headers, text = REFUSALS[name]
    hub.fault(where, kind, times=99, headers=tuple(headers.items()))
    with pytest.raises(ModelError, match=text) as caught:
        load_engine(OPTIONS)
    assert caught.value.exit_status == 3
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_content_that_is_not_what_the_hub_lists_is_not_used(hub: Hub, home: Path) -> None:
    load_engine(OPTIONS)  # headers are known now
    for path in home.glob("hub/models--*/snapshots/*/*.safetensors"):
        path.resolve().unlink()
        path.unlink()
    hub.fault(NAME, "corrupt", times=1)
    options = LoadOptions(model="owner/mini", quant="nf4")
    with pytest.raises(CheckpointError, match="does not have the hash that the hub lists"):
        load_engine(options)
    assert answer(options) == answer(LoadOptions(quant="nf4"))


def test_an_unknown_revision_is_named(hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match='owner/mini has no revision "v9"; leave'):
        load_engine(LoadOptions(model="owner/mini", revision="v9"))


def test_a_name_near_one_in_the_cache_is_told(hub: Hub) -> None:
    load_engine(OPTIONS)
    with pytest.raises(ModelNotFoundError, match="in your cache: owner/mini"):
        load_engine(LoadOptions(model="owner/minni"))


def test_a_token_is_sent_and_its_lack_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    with pytest.raises(ModelNotFoundError, match=r"or it is private; .*HF_TOKEN"):
        load_engine(OPTIONS)
    monkeypatch.setenv("HF_TOKEN", "secret")
    load_engine(OPTIONS)


def test_weights_come_from_where_the_hub_sends_us_and_the_token_does_not_go_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.token = "secret"
    with Hub(hub.repositories) as store:
        hub.redirect_to = store.url.replace("127.0.0.1", "localhost")
        store.fault(NAME, "drop", after=100_000, times=2)
        load_engine(OPTIONS)
        assert set(store.tokens) == {""}
        assert set(hub.tokens) == {"Bearer secret"}
        assert sum(hub.sent.get(name, 0) for name in SHARDS) == 0
        assert store.sent[NAME] <= SHARD_NBYTES[1] + 400_000


@pytest.mark.parametrize(
    ("endpoint", "token", "text"),
    [
        ("hub", "", 'HF_ENDPOINT must be an http or https address, got "hub"'),
        ("http://[::1", "", r"the hub cannot be asked \(Invalid port.*; check HF_ENDPOINT"),
        (None, "geh\u00e4im", "the token for the hub has characters that no token has; set HF_"),
    ],
)
def test_what_no_request_can_be_made_with_is_usage(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, token: str, text: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint or hub.url)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match=text) as caught:
        load_engine(OPTIONS)
    assert "geh" not in str(caught.value)
    assert hub.log == []


def test_whoever_is_not_online_learns_it_soon(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("erniechat.hub.failures.FIRST_WAIT_SECONDS", 0.5)
    monkeypatch.setattr("erniechat.hub.failures.time.sleep", waited.append)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError, match="the hub cannot be reached"):
        load_engine(OPTIONS)
    assert waited == [0.5, 1.0]


def test_an_impossible_name_is_usage(hub: Hub) -> None:
    with pytest.raises(UsageError, match="--model must be a folder or owner/name"):
        load_engine(LoadOptions(model="owner/na me"))


def test_what_the_disk_does_not_hold_is_refused_before_the_first_shard(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = (256 << 20) + 40_000_000  # 30.5 MB to fetch, of which two shards are 20.4; 15.8 to keep
    monkeypatch.setattr("erniechat.start_plan.shutil.disk_usage", lambda path: Usage(free))
    with pytest.raises(DiskLimitError, match=r"download 30\.5 MB \+ copy .* free") as caught:
        load_engine(OPTIONS)
    assert caught.value.exit_status == 4
    assert "--discard-originals" in caught.value.hint
    assert sum(hub.sent.get(name, 0) for name in SHARDS) <= 3 * (128 << 10)
    load_engine(LoadOptions(model="owner/mini", quant="int8", discard_originals=True))


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_weights_that_the_config_does_not_need_are_said_before_the_download(
    hub: Hub, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(checkpoint_folder(), tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = 320
    (folder / "config.json").write_text(json.dumps(config))
    hub.repositories["owner/other"] = folder
    with pytest.raises(ErnieChatError, match=r"config\.json says"):
        load_engine(LoadOptions(model="owner/other", quant="int8"))
    assert sum(hub.sent.get(name, 0) for name in SHARDS) <= 3 * (128 << 10)
