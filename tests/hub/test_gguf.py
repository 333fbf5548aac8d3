"""GGUF files on the hub: which one is meant, and that it starts as any other model does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from erniechat.cli import main
from erniechat.errors import UsageError
from erniechat.hub.gguf import choose, split_name
from erniechat.hub.listing import HubFile
from erniechat.loader import load_engine, load_prompt_tools
from erniechat.mini import checkpoint_folder
from erniechat.options import LoadOptions
from tests.hub.loopback import Hub, client_of
from tests.model.gguf_files import write_gguf

NAME = "owner/mini-GGUF"
QUESTION = ["-p", "What is 17 + 25?", "--no-stdin", "--max-tokens", "80"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "mini-Q8_0.gguf", checkpoint_folder(), "Q8_0")
    write_gguf(folder / "mini-Q4_0.gguf", checkpoint_folder(), "Q4_0")
    (folder / "F16").mkdir()
    shutil.copy(folder / "mini-Q8_0.gguf", folder / "F16" / "mini-F16.gguf")  # by its name
    (folder / "mmproj-F16.gguf").write_bytes(b"no model")
    (folder / "README.md").write_text("a card")
    return folder


@pytest.fixture
def hub(repository: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("erniechat.hub.fetch.GGUF_HEAD_NBYTES", 16 << 10)  # grows to 128 KiB
    with Hub({NAME: repository}) as server, client_of(server, home, monkeypatch):
        yield server


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ([NAME], "mini-Q4_0.gguf"),
        ([NAME, "--8bit"], "mini-Q8_0.gguf"),
        ([f"{NAME}:q8_0"], "mini-Q8_0.gguf"),
        ([f"{NAME}/F16/mini-F16.gguf"], "mini-F16.gguf"),
    ],
)
def test_a_file_is_planned_by_its_head_and_then_answers(
    hub: Hub, repository: Path, home: Path, words: list[str], file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (path,) = repository.rglob(file)
    assert main(["plan", *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["download_nbytes"], facts["fits"]) == (path.stat().st_size, True)
    assert 0 < sum(hub.sent.values()) < 300_000 < path.stat().st_size
    assert main(["-m", *words, *QUESTION]) == 0
    assert capsys.readouterr().out == "17 + 25 = 42\n"
    assert [p.name for p in home.glob("hub/models--*/snapshots/**/*.gguf")] == [file]


def test_the_second_start_asks_the_network_nothing(hub: Hub) -> None:
    load_engine(LoadOptions(model=NAME, discard_originals=True))
    hub.log.clear()
    load_engine(LoadOptions(model=NAME))
    load_engine(LoadOptions(model=NAME, offline=True))
    tools = load_prompt_tools(LoadOptions(model=NAME))  # --dry-run
    assert tools.count_tokens("17 + 25", raw=True) > 2
    assert hub.log == []


def test_a_download_that_breaks_off_goes_on(hub: Hub, repository: Path) -> None:
    nbytes = (repository / "mini-Q4_0.gguf").stat().st_size
    main(["plan", NAME])
    hub.sent.clear()
    hub.fault("mini-Q4_0", "drop", after=3_000_000)
    load_engine(LoadOptions(model=NAME))
    assert sum(hub.sent.values()) == nbytes


def test_one_line_says_what_there_is(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for words, status, text in [
        ([f"{NAME}:Q5_K"], 2, f'"Q5_K" is none; name one: {NAME}:F16, {NAME}:Q4_0, {NAME}:Q8_0'),
        ([f"{NAME}/other.gguf"], 2, 'of the 3 GGUF files of owner/mini-GGUF "other.gguf" is none'),
        (["owner/none:Q4_0"], 3, 'no model "owner/none" on the hub'),
        ([f"{NAME}:Q4_0", "--offline"], 3, "and 1 of 1 files of owner/mini-GGUF are not in"),
        ([f"{NAME}:"], 2, "--model must be a folder or owner/name"),
    ]:
        assert main(["plan", *words]) == status
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert not hub.sent


def test_a_head_that_is_no_gguf_is_refused_before_the_rest(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault("mini-Q4_0", "corrupt")
    assert main(["-m", NAME, *QUESTION]) == 3
    assert "mini-Q4_0.gguf is not a sound GGUF file" in capsys.readouterr().err
    assert sum(hub.sent.values()) <= 64 << 10


def files(*names: str) -> list[HubFile]:
    return [HubFile(name, 1, "0" * 64) for name in names]


def test_parts_belong_together_and_the_type_suits_the_format() -> None:
    found = files("a-Q4_K_M-00002-of-00002.gguf", "a-Q4_K_M-00001-of-00002.gguf", "a-Q8_0.gguf")
    four = choose("o/a", found, "", "auto")
    assert [file.name for file in four] == [
        "a-Q4_K_M-00001-of-00002.gguf",
        "a-Q4_K_M-00002-of-00002.gguf",
    ]
    assert choose("o/a", found, "", "int8") == (found[2],)
    assert choose("o/a", found[2:], "", "nf4") == (found[2],)
    assert choose("o/a", found, "a-Q4_K_M-00001-of-00002.gguf", "nf4") == four


def test_what_is_ambiguous_is_listed() -> None:
    with pytest.raises(UsageError, match=r"2 could be meant; name one: o/a:Q5_K_M, o/a:Q6_K"):
        choose("o/a", files("a-Q6_K.gguf", "a-Q5_K_M.gguf"), "", "nf4")
    with pytest.raises(UsageError, match=r"one: o/a/x/a-Q8_0.gguf, o/a/y/a-Q8_0.gguf"):
        choose("o/a", files("x/a-Q8_0.gguf", "y/a-Q8_0.gguf"), "Q8_0", "nf4")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("owner/name", ("owner/name", "")),
        ("owner/name:UD-Q4_K_XL", ("owner/name", "UD-Q4_K_XL")),
        ("owner/name/sub/x.gguf", ("owner/name", "sub/x.gguf")),
        ("owner/name/sub", ("owner/name/sub", "")),
        ("mini", ("mini", "")),
    ],
)
def test_names_are_taken_apart(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts
