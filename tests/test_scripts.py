"""One-shot runs for scripts: events as lines, files, limits, sessions, commands without a model."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_cli import MODEL, POEM, ROOT, clean_environ, run, started

HI = ("-p", "hi", *MODEL)


def lines(stdout: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in stdout.splitlines()]


# --- jsonl


def test_jsonl_has_a_line_for_each_event():
    done = run("thinks", *HI, "--jsonl", "--seed", "11")
    start, *events, end = lines(done.stdout)
    assert start == {
        "type": "start", "session": None, "model": "some-model", "quant": "nf4",
        "seed": 11, "prompt_tokens": 4,
    }  # fmt: skip
    kinds = [event["type"] for event in events]
    assert kinds == ["thinking"] * 6 + ["text"] * 14
    assert "".join(str(e["text"]) for e in events if e["type"] == "text") == POEM.strip()
    assert end["finish_reason"] == "stop"
    assert end["usage"] == {"prompt": 4, "cached": 0, "thinking": 6, "answer": 14}
    assert set(end) >= {"type", "time", "memory", "seed", "model", "quant"}


def test_a_context_that_grew_is_told_where_it_does_not_disturb_the_answer():
    said = b"note: context grew to 16,384 tokens; 212 experts left the GPU\n"
    done = run("grows", *HI)
    assert done.stdout == b"The answer is 42.\n"
    assert done.stderr.endswith(said)
    assert done.stderr.count(said) == 1
    assert said not in run("grows", *HI, "--quiet").stderr
    assert said in run("grows", *HI, "--json").stderr
    events = lines(run("grows", *HI, "--jsonl").stdout)
    assert [event for event in events if event["type"] == "context"] == [
        {"type": "context", "tokens": 16384, "experts_left": 212}
    ]


def test_a_seed_is_chosen_and_told_where_none_is_given():
    start, *_, end = lines(run("plain", *HI, "--jsonl").stdout)
    assert isinstance(start["seed"], int)
    assert end["seed"] == start["seed"]


def test_an_error_with_jsonl_is_the_last_line():
    done = run("breaks", *HI, "--jsonl")
    *_, text, error = lines(done.stdout)
    assert text["type"] == "text"
    assert error == {
        "type": "error", "code": "memory_limit", "message": "the GPU ran out of memory",
        "hint": "", "exit_status": 4,
    }  # fmt: skip
    assert done.returncode == 4
    assert lines(run("plain", "--jsonl", "--temprature", "1").stdout)[0]["code"] == "usage"


def test_calls_are_lines_too():
    (call,) = (e for e in lines(run("calls", *HI, "--jsonl").stdout) if e["type"] == "tool_call")
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Paris"})


# --- output, time limit, statistics, overflow


def test_output_writes_the_file_whole_and_leaves_stdout_empty(tmp_path: Path):
    file = tmp_path / "answer.txt"
    done = run("plain", *HI, "-o", str(file))
    assert (done.returncode, done.stdout) == (0, b"")
    assert file.read_text() == "The answer is 42.\n"
    run("plain", *HI, "--json", "--output", str(file))
    assert json.loads(file.read_text())["text"] == "The answer is 42."
    assert list(tmp_path.iterdir()) == [file]


def test_output_is_left_as_it_was_when_the_answer_fails(tmp_path: Path):
    file = tmp_path / "answer.txt"
    file.write_text("before")
    assert run("breaks", *HI, "-o", str(file)).returncode == 4
    assert file.read_text() == "before"
    cut = ("--json-schema", "{}", "--max-tokens", "2", "-o", str(file))
    assert run("json-short", *HI, *cut).returncode == 6
    assert file.read_text() == "before"
    assert run("plain", *HI, "-o", str(tmp_path / "no" / "file")).returncode == 2


@pytest.mark.timed
@pytest.mark.parametrize("scenario", ["slow", "stuck", "silent"])
def test_the_time_limit_ends_with_124_whatever_the_model_does(scenario: str):
    began = time.monotonic()
    done = run(scenario, *HI, "--timeout", "1")
    assert done.returncode == 124
    assert done.stderr == b"error: no complete answer within --timeout 1 seconds\n"
    assert POEM.startswith(done.stdout.decode().strip()) or done.stdout == b"So it begins\n"
    assert time.monotonic() - began < 6


@pytest.mark.timed
def test_the_time_limit_holds_for_the_load_too():
    done = run("plain", *HI, "--timeout", "0.5", FAKE_LOAD_SECONDS="20")
    assert (done.returncode, done.stdout) == (124, b"")


def test_stats_go_to_stderr():
    done = run("thinks", *HI, "--stats", "--seed", "5")
    assert done.stdout.decode() == POEM
    told = [" ".join(line.split()) for line in done.stderr.decode().splitlines()]
    assert told == [
        "read 4 tok 0.5 s 8.0 tok/s",
        "think 6 tok 2.0 s 3.0 tok/s",
        "write 14 tok 4.0 s 3.5 tok/s",
        "context 24 of 4,096 tok, 0 from cache",
        "memory weights 1.5 GiB · ram 2.0 GiB",
        "sampling temperature 0.8 top_p 0.8 seed 5",
    ]


@pytest.mark.parametrize(
    ("policy", "first", "last"), [("head", "w0", None), ("tail", None, "w9999"),
                                  ("middle", "w0", "w9999")]
)  # fmt: skip
def test_a_document_is_cut_on_purpose_only(policy: str, first: str | None, last: str | None):
    document = " ".join(f"w{number}" for number in range(10_000)).encode()
    script = (
        "import sys; from tests.ui import drive_fake; from tests.fakes import FakeBackend;"
        "from erniechat import cli; backend = FakeBackend([[]]);"
        "cli.main(sys.argv[1:], services=cli.Services(load_engine=lambda *a: backend));"
        "print(backend.asked[0].messages[0].content, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "-q", "-p", "sum up", *MODEL, "--overflow", policy],
        input=document, capture_output=True, env=clean_environ(), cwd=ROOT, check=True,
    )  # fmt: skip
    words = done.stderr.decode().split()
    assert 3500 < len(words) <= 4096 - 512
    assert words[-2:] == ["sum", "up"]
    assert (first is None) != (words[0] == "w0")
    assert (last is None) != ("w9999" in words)


# --- structures


@pytest.mark.parametrize("flag", ["--json-schema", "--grammar", "--regex"])
def test_a_structure_reaches_the_engine(flag: str, tmp_path: Path):
    text = {"--json-schema": "{}", "--grammar": 'start: "x"', "--regex": "x"}[flag]
    (tmp_path / "s").write_text(text)
    value = text if flag == "--regex" else f"@{tmp_path}/s"
    assert run("plain", *HI, flag, value).stdout == b"The answer is 42.\n"
    if flag != "--regex":
        assert run("plain", *HI, flag, text, "--regex", "y").returncode == 2


def test_a_structure_that_makes_no_sense_is_refused_before_the_load():
    done = run("plain", *HI, "--regex", "(", FAKE_LOAD_SECONDS="60")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: --regex cannot be used: ")
    assert run("plain", *HI, "--json-schema", "{", FAKE_LOAD_SECONDS="60").returncode == 2


# --- stdin and bytes


def test_other_encodings_and_bad_bytes_are_taken_on_request():
    done = run("plain", "--dry-run", "--encoding", "latin-1", stdin=b"gr\xfc\xdfe")
    assert "<user> grüße </user>" in done.stdout.decode()
    done = run("plain", "--dry-run", "--errors", "replace", stdin=b"a\xffb")
    assert "<user> a\ufffdb </user>" in done.stdout.decode()
    assert run("plain", "--dry-run", "--encoding", "klingon", stdin=b"x").returncode == 2


def test_a_silent_stdin_can_be_given_up():
    with started("plain", *HI, "--stdin-timeout", "0.5", stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=60) == 2


def test_a_pipe_is_made_harmless_on_request():
    assert run("evil", *HI, "--sanitize").stdout.decode() == "␛[2Jwiped ‹9b›m ␇bell\n"


def test_an_answer_that_breaks_its_structure_ends_with_6():
    done = run("json-short", *HI, "--json-schema", "{}", "--max-tokens", "2")
    assert done.returncode == 6
    assert done.stdout == b'{"a":\n'
    assert done.stderr == (
        b"error: JSON incomplete: stopped at --max-tokens 2; raise it for the rest\n"
    )


# --- sessions of one-shot runs


def test_one_shots_are_saved_only_if_asked_and_go_on_with_c(tmp_path: Path):
    home = {"XDG_DATA_HOME": str(tmp_path)}
    run("plain", *HI, **home)
    assert not list(tmp_path.iterdir())
    run("plain", "-p", "first", *MODEL, "--save", **home)
    done = run("plain", "-p", "second", "-c", "--jsonl", **home)
    start = lines(done.stdout)[0]
    assert start["model"] == "some-model"  # the session's own
    assert start["prompt_tokens"] == 3 + 6 + 3 + 1
    show = run("plain", "sessions", "show", str(start["session"]), **home).stdout.decode()
    assert show == (
        "## You\n\nfirst\n\n## Answer\n\nThe answer is 42.\n\n"
        "## You\n\nsecond\n\n## Answer\n\nThe answer is 42.\n"
    )
    (row,) = json.loads(run("plain", "sessions", "--json", **home).stdout)
    assert (row["turns"], row["begins"]) == (2, "first")
    assert run("plain", "sessions", "rm", row["id"], **home).returncode == 0
    assert run("plain", "sessions", **home).stdout == b"no saved conversations\n"
    assert run("plain", "-p", "x", "-c", **home).returncode == 2


def test_a_killed_one_shot_leaves_its_question(tmp_path: Path):
    environ = clean_environ(XDG_DATA_HOME=str(tmp_path))
    with started("slow", *HI, "--save", env=environ) as process:
        assert process.stdout is not None
        process.stdout.read(3)
        process.kill()
    (path,) = (tmp_path / "erniechat" / "sessions").iterdir()
    assert '"content": "hi"' in path.read_text()
