"""The command line on models of the hub: plan, a first start, cache, export."""

import json
from pathlib import Path

import pytest

from erniechat.cache import copies_folder
from erniechat.cli import main
from erniechat.mini import checkpoint_folder
from quant.copy_names import DATA_FILE
from tests.hub.loopback import Hub

SHARDS = sorted(path.name for path in checkpoint_folder().glob("*.safetensors"))
NBYTES = sum((checkpoint_folder() / name).stat().st_size for name in SHARDS)


class Usage:
    free = 310_000_000  # the copy and two files, not three


def test_plan_tells_all_and_fetches_no_weight(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "owner/mini", "--8bit"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "owner/mini · 0123456789ab · int8 · cpu\nplan   download 30.5 MB (3 of 3 f"
    )
    assert "disk   download 30.5 MB + copy 15.8 MB at most" in out
    assert "RAM:" in out
    assert main(["plan", "owner/mini", "--8bit", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["download_nbytes"] == NBYTES
    assert facts["commit"] == hub.commit
    assert facts["keep_nbytes"] == pytest.approx(15.8e6, rel=0.05)
    assert facts["fits"] is True
    assert sum(hub.sent.get(name, 0) for name in SHARDS) <= 3 * (128 << 10)


def test_plan_of_what_does_not_fit_has_status_4_and_tells_what_does(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erniechat.start_plan.shutil.disk_usage", lambda path: Usage)
    assert main(["plan", "owner/mini", "--8bit"]) == 4
    captured = capsys.readouterr()
    assert "too little" in captured.out
    assert "does not fit on the disk of" in captured.err
    assert "what fits here: --discard-originals (weights 15" in captured.err


def test_plan_after_a_start_has_nothing_to_fetch(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ["-p", "What is 2 + 3?", "--no-stdin", "--max-tokens", "40"]
    assert main(["-m", "owner/mini", "--8bit", *question]) == 0
    captured = capsys.readouterr()
    assert "plan   download 30.5 MB (3 of 3 files), quantize, keep 15.8 MB" in captured.err
    assert captured.out.strip()
    assert main(["plan", "owner/mini", "--8bit"]) == 0
    assert "start from the finished copy; nothing to fetch" in capsys.readouterr().out


def test_a_large_download_needs_a_yes_where_no_one_can_be_asked(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erniechat.ui.announce.ASK_NBYTES", 1_000_000)
    question = ["-m", "owner/mini", "--8bit", "-p", "2 + 3 =", "--max-tokens", "4", "--no-stdin"]
    assert main(question) == 2
    assert "would fetch 30.5 MB, and no one can be asked; give --yes" in capsys.readouterr().err
    assert sum(hub.sent.get(name, 0) for name in SHARDS) <= 3 * (128 << 10)
    assert main([*question, "--yes"]) == 0


def test_verify_repairs_and_tells(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["-m", "owner/mini", "--8bit", "-p", "2 + 3 =", "--max-tokens", "4", "--no-stdin"]
    assert main(start) == 0
    (folder,) = copies_folder().iterdir()
    with (folder / DATA_FILE).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"oops")
    capsys.readouterr()
    assert main(["cache", "verify", "all"]) == 0
    assert "made again from the original" in capsys.readouterr().out
    assert main(["cache", "verify", folder.name]) == 0
    assert capsys.readouterr().out == f"{folder.name}: sound\n"
    assert main(["cache", "verify", "nothing"]) == 2


def test_export_writes_a_folder(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exported"
    assert main(["export", "owner/mini", str(target), "--8bit"]) == 0
    assert f"{target}: 27.5 MB, int8 as bitsandbytes has it" in capsys.readouterr().out
    assert (target / "tokenizer.json").is_file()
    config = json.loads((target / "config.json").read_text())
    assert config["quantization_config"]["load_in_8bit"] is True


def test_no_such_model_has_status_3(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["plan", "owner/none"], ["-m", "owner/none", "-p", "x", "--no-stdin"]):
        assert main(words) == 3
        assert 'no model "owner/none" on the hub' in capsys.readouterr().err


@pytest.mark.parametrize("words", [["plan"], ["plan", ""], ["plan", "a", "b"], ["export", "mini"]])
def test_words_too_many_or_too_few_are_usage(words: list[str]) -> None:
    assert main(words) == 2
