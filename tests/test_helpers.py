"""The commands beside the chat: info, cache, completion, the man page, wrong words."""

import argparse
import json
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from erniechat.cache import copy_paths, remove
from erniechat.chat.conversation import Message
from erniechat.chat.session_file import SessionFile
from erniechat.errors import UsageError
from erniechat.ui.arguments import chat_parser, parse_arguments
from erniechat.ui.commands import COMMANDS
from erniechat.ui.helpers import columns, info_page, sessions_page
from tests.test_cli import ROOT, command, run


def test_info_names_devices_kernels_and_folders():
    found = json.loads(run("plain", "info", "--json").stdout)
    assert set(found) == {"versions", "devices", "kernels", "folders"}
    assert found["kernels"]["reference on cpu"].startswith("bf16")
    assert found["versions"]["python"]
    assert info_page({"a": {"b": "c", "dd": "e"}}, as_json=False) == "a\nb   c\ndd  e\n"


def test_the_cache_is_listed_and_emptied(tmp_path: Path):
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    assert run("plain", "cache", **home).stdout == b"nothing is kept\n"
    copy = tmp_path / "erniechat" / "copies" / "m-abc-nf4"
    copy.mkdir(parents=True)
    (copy / "index.json").write_text(
        '{"index": {"version": 2, "meta": {"model": "m", "quant": "nf4"}}}'
    )
    (copy / "weights.bin").write_bytes(b"0" * 3_000_000)
    assert b"m-abc-nf4  m      nf4    3 MiB\n" in run("plain", "cache", "ls", **home).stdout
    assert run("plain", "cache", "rm", "zz", **home).returncode == 2
    assert run("plain", "cache", "rm", "m-abc-nf4", **home).stdout == b"freed 3 MiB\n"
    assert not copy.exists()


def test_a_copy_of_an_older_version_is_marked_with_the_way_to_be_rid_of_it(tmp_path: Path):
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    for version in (1, 2):
        copy = tmp_path / "erniechat" / "copies" / f"m-v{version}"
        copy.mkdir(parents=True)
        meta = {"model": "m", "quant": "nf4"}
        (copy / "index.json").write_text(json.dumps({"index": {"version": version, "meta": meta}}))
        (copy / "weights.bin").write_bytes(bytes(3 << 20))
    page = run("plain", "cache", "ls", **home).stdout.decode().splitlines()
    assert [line.split() for line in page[1:3]] == [
        ["m-v1", "m", "outdated", "3", "MiB"],
        ["m-v2", "m", "nf4", "3", "MiB"],
    ]
    assert page[-1].startswith("outdated: made by another version of this program, and used by no")
    assert page[-1].endswith("erniechat cache rm NAME frees 3 MiB")
    found = json.loads(run("plain", "cache", "ls", "--json", **home).stdout)
    assert [copy["state"] for copy in found] == ["outdated", "finished"]
    assert run("plain", "cache", "rm", "m-v1", **home).returncode == 0
    assert b"outdated" not in run("plain", "cache", "ls", **home).stdout


def test_what_is_kept_of_sessions_is_listed_and_deleted_too(tmp_path: Path):
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = tmp_path / "erniechat" / "sessions"
    folder.mkdir(parents=True)
    for name in ("1121-a.kv", "1121-b.kv", ".1121-c.77"):
        (folder / name).write_bytes(bytes(2 << 20))
    copy = tmp_path / "erniechat" / "copies" / "m-abc-nf4"
    copy.mkdir(parents=True)
    (copy / "index.json").write_text("{}")
    page = run("plain", "cache", "ls", **home).stdout.decode()
    assert re.search(r"^1121-a\.kv +session 1121-a +kv +2 MiB$", page, re.M)
    assert page.splitlines()[-1].split() == ["in", "all", "6", "MiB"]
    found = json.loads(run("plain", "cache", "ls", "--json", **home).stdout)
    assert [(f["name"], f["state"]) for f in found[1:]] == [
        (".1121-c.77", "unfinished"),
        ("1121-a.kv", "finished"),
        ("1121-b.kv", "finished"),
    ]
    done = run("plain", "cache", "rm", "1121-x.kv", **home)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"did you mean 1121-" in done.stderr
    assert run("plain", "cache", "rm", "1121-a.kv", **home).stdout == b"freed 2 MiB\n"
    assert sorted(path.name for path in folder.iterdir()) == [".1121-c.77", "1121-b.kv"]
    assert run("plain", "cache", "rm", "sessions", **home).stdout == b"freed 4 MiB\n"
    assert list(folder.iterdir()) == []
    assert copy.exists()
    assert run("plain", "cache", "rm", "all", **home).returncode == 0
    assert not copy.exists()


def test_a_name_that_is_no_copy_gets_the_nearest_not_all(monkeypatch: pytest.MonkeyPatch):
    copies = [{"name": f"model-{letter}-nf4", "nbytes": 1, "state": "finished"} for letter in "abc"]
    monkeypatch.setattr("erniechat.cache.list_copies", lambda: copies)
    for call in (remove, copy_paths):
        with pytest.raises(UsageError, match=r'"model-b-nf"; did you mean model-b-nf4\?$'):
            call("model-b-nf")
        with pytest.raises(UsageError, match=r'"zz"; erniechat cache ls lists them$'):
            call("zz")


def test_a_session_is_shown_with_its_system_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    session = SessionFile(lambda text: None, {})
    session.set_system("Be brief.")
    session.add_message(Message("user", "Hi"))
    session.close()
    page = sessions_page("show", session.id, as_json=False)
    assert page == "## System\n\nBe brief.\n\n## You\n\nHi\n"
    (fact,) = json.loads(sessions_page("ls", "", as_json=True))
    assert (fact["id"], fact["turns"], fact["tokens"]) == (session.id, 1, 0)
    assert datetime.fromisoformat(fact["date"]).tzinfo is not None


def test_numbers_stand_at_the_right_and_wide_characters_take_two_columns():
    rows = [("id", "turns", "begins"), ("1121-a", "2", "Hi"), ("苹果", "1,204", "Bye")]
    assert columns(rows, right=(1,)).splitlines() == [
        "id      turns  begins",
        "1121-a      2  Hi",
        "苹果    1,204  Bye",
    ]


def test_the_numbers_of_sessions_stand_at_the_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    session = SessionFile(lambda text: None, {})
    session.add_message(Message("user", "Hi"))
    session.close()
    header, row = sessions_page("ls", "", as_json=False).splitlines()
    for name in ("turns", "written"):
        assert row[header.index(name) + len(name) - 1] in "01"


def test_the_man_page_has_every_flag_and_the_exit_statuses():
    page = run("plain", "--man").stdout.decode().replace("\\-", "-")
    for action in chat_parser()._actions:
        if action.help != argparse.SUPPRESS:
            assert all(flag in page for flag in action.option_strings)
    assert "124 time limit" in page
    for known in COMMANDS:
        assert f"\n.B {known.usage}\n{known.summary}." in page
    if shutil.which("man"):
        done = subprocess.run(["man", "-l", "-"], input=page.encode(), capture_output=True)
        assert b"temperature" in done.stdout or done.returncode != 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sessions", "zz"), 'erniechat sessions takes ls, show, rm, got "zz"'),
        (("sessions", "rm"), "erniechat sessions rm takes one ID, got 0"),
        (("cache", "ls", "x"), "erniechat cache ls takes nothing more, got 1"),
        (("info", "x"), 'erniechat info takes no words, got "x"; erniechat plan MODEL tells of'),
        (
            ("config", "set"),
            'erniechat config takes path, show, got "set"; erniechat config path names',
        ),
        (("--json", "--jsonl"), "--json and --jsonl contradict"),
        (("-c", "--resume", "x"), "-c and --resume contradict"),
        (("--run-tools",), "--run-tools needs --tools"),
    ],
)
def test_wrong_words_are_refused(arguments: tuple[str, ...], text: str):
    with pytest.raises(UsageError) as caught:
        parse_arguments(arguments)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--resume", "zz"), 'there is no session "zz"'),
        (("--preset", "zz"), 'there is no preset "zz"'),
        (("-p", "x", "--json-schema", "@/nowhere"), 'cannot read --json-schema "/nowhere"'),
    ],
)
def test_wrong_names_are_one_line_and_2(arguments: tuple[str, ...], text: str):
    done = run("plain", *arguments)
    assert done.returncode == 2
    assert f"error: {text}" in done.stderr.decode()


@pytest.mark.parametrize("word", ["sessions", "config", "cache", "info", "bench"])
def test_each_command_has_a_page(word: str):
    page = parse_arguments([word, "--help"]).help
    assert page.startswith(f"usage: erniechat {word}")
    assert parse_arguments(["help", word]).help == page


def test_help_writes_nothing_and_works_in_an_empty_environment(tmp_path: Path):
    done = subprocess.run(
        command("plain", "--help"), env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout
    assert not list(tmp_path.iterdir())


def test_version_tells_more_when_asked():
    lines = run("plain", "--version", "-v").stdout.decode()
    found = json.loads(run("plain", "--version", "--json").stdout)
    for name in ("python", "torch", "cuda", "rich", "erniechat"):
        assert name in found["versions"]
        assert f"\n{name} " in f"\n{lines}"
    assert "cpu" in found["devices"]
    assert not found["versions"]["torch"].startswith("not")


def test_no_secret_is_a_flag():
    flags = [flag for action in chat_parser()._actions for flag in action.option_strings]
    assert "--model" in flags
    assert not [flag for flag in flags if re.search("token$|key|secret|password", flag)]


def test_the_help_page_is_the_one_that_was_agreed_on():
    page = chat_parser().format_help()
    assert page.startswith("usage: erniechat [options] [TEXT ...]\n\n  erniechat  ")
    groups = re.findall(r"(?m)^(\w[^\n]*):$", page)
    assert groups[:6] == [
        "what to answer", "output", "conversation", "display", "model",
        "sampling (default: the checkpoint's own)",
    ]  # fmt: skip
    assert max(map(len, page.splitlines())) <= 100


def test_the_paragraphs_of_help_that_argparse_leaves_alone_fit_80_columns():
    page = run("plain", "--help").stdout.decode()
    assert max(map(len, page[page.index("Every setting") :].splitlines())) < 80
