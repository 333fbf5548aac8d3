"""What a run tells: JSON, calls, exit statuses, the environment's part, bench."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.test_cli import MODEL, POEM, ROOT, command, run


def test_json_is_one_object_with_every_field():
    done = run("thinks", "-p", "hi", "--json", "--seed", "11", *MODEL)
    found = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    assert list(found) == [
        "text", "thinking", "tool_calls", "finish_reason", "usage", "time", "memory",
        "seed", "model", "quant",
    ]  # fmt: skip
    assert found["text"] == POEM.strip()
    assert found["thinking"] == "Let me think about it now"
    assert found["usage"] == {"prompt": 4, "cached": 0, "thinking": 6, "answer": 14}
    assert found["time"] == {"load": 0.25, "read": 0.5, "think": 2.0, "write": 4.0}
    assert list(found["memory"]) == [
        "weights", "kv_cache", "host", "host_peak", "gpu", "gpu_peak",
    ]  # fmt: skip
    assert (found["seed"], found["model"], found["quant"]) == (11, "some-model", "nf4")
    assert found["finish_reason"] == "stop"


def test_an_error_with_json_is_an_object_and_a_line():
    done = run("too-long", "-p", "hi", "--json", *MODEL)
    assert json.loads(done.stdout) == {
        "error": {
            "code": "context_length",
            "message": "the message is 5,000 tokens, the context 4,096",
            "hint": "",
            "exit_status": 5,
        }
    }
    assert done.stderr == b"error: the message is 5,000 tokens, the context 4,096\n"
    usage = run("plain", "--json", "--temprature", "1")
    assert json.loads(usage.stdout)["error"]["code"] == "usage"


def test_calls_are_printed_one_object_a_line_after_the_text(tmp_path: Path):
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "get_weather", "parameters": {}}]')
    done = run("calls", "-p", "hi", "--tools", str(tools), *MODEL)
    assert done.stdout.decode() == (
        'Let me look.\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
    )
    found = json.loads(run("calls", "-p", "hi", "--tools", str(tools), "--json", *MODEL).stdout)
    assert found["finish_reason"] == "tool_calls"
    assert found["tool_calls"] == [
        {"id": "call-1", "name": "get_weather", "arguments": {"city": "Paris"}}
    ]


# --- exit statuses and errors


@pytest.mark.parametrize(
    ("scenario", "arguments", "status", "line"),
    [
        ("bug", (), 1, "internal error: ValueError: shapes differ (ERNIECHAT_DEBUG=1 shows where)"),
        ("plain", ("--temperature", "hot"), 2,
         'error: --temperature must be a number at least 0 and at most 5, got "hot"'),
        ("plain", ("--temprature", "1"), 2,
         "error: unknown option --temprature. Did you mean --temperature? (erniechat --help)"),
        ("plain", ("-m", "missing"), 3, 'error: no model "missing" on the hub; check the name'),
        ("breaks", (), 4, "error: the GPU ran out of memory"),
        ("too-long", (), 5, "error: the message is 5,000 tokens, the context 4,096"),
        ("json-cut", (), 6, "error: JSON incomplete"),
        ("too-slow", (), 124, "error: the time limit has passed"),
    ],
)  # fmt: skip
def test_every_failure_is_one_line_and_its_own_status(
    scenario: str, arguments: Sequence[str], status: int, line: str
):
    done = run(scenario, "-p", "hi", *MODEL, *arguments)
    assert done.stderr.decode() == line + "\n"
    assert done.returncode == status
    if scenario != "breaks":
        assert done.stdout == b""


def test_debug_shows_where():
    done = run("bug", "-p", "hi", *MODEL, ERNIECHAT_DEBUG="1")
    assert b"Traceback" in done.stderr
    assert done.stderr.endswith(b"internal error: ValueError: shapes differ\n")


def test_a_reply_without_an_answer_is_a_success_with_a_note():
    done = run("empty", "-p", "hi", *MODEL)
    assert (done.returncode, done.stdout) == (0, b"\n")
    assert done.stderr == b"note: the model ended its reply without an answer\n"


def test_a_length_stop_is_a_success_with_a_note():
    done = run("cut", "-p", "hi", "--max-tokens", "2", *MODEL)
    assert (done.returncode, done.stdout) == (0, b"Half an\n")
    assert done.stderr == b"note: stopped at --max-tokens 2; raise it for the rest\n"
    assert run("cut", "-p", "hi", "-q", *MODEL).stderr == b""


# --- environment


def test_a_flag_beats_the_environment_and_the_environment_the_default():
    done = run("plain", "-p", "hi", "--json", *MODEL, ERNIECHAT_SEED="5")
    assert json.loads(done.stdout)["seed"] == 5
    done = run("plain", "-p", "hi", "--json", "--seed", "6", *MODEL, ERNIECHAT_SEED="5")
    assert json.loads(done.stdout)["seed"] == 6


def test_a_bad_variable_is_named():
    done = run("plain", "-p", "hi", ERNIECHAT_TOP_P="7")
    assert done.returncode == 2
    assert done.stderr == (
        b'error: ERNIECHAT_TOP_P must be a number above 0 and at most 1, got "7"\n'
    )


def test_unknown_variables_get_one_warning():
    done = run("plain", "-p", "hi", *MODEL, ERNIECHAT_TOPP="1", ERNIECHAT_ZZ="1")
    assert done.returncode == 0
    assert done.stderr == (
        b"warning: unknown environment variable ERNIECHAT_TOPP, ERNIECHAT_ZZ; ignored."
        b" Did you mean ERNIECHAT_TOP_P?\n"
    )


def test_ascii_streams_do_not_crash():
    done = run("chinese", "-p", "hi", *MODEL, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"\\u4f60\\u597d\n")


# --- bench


def test_bench_prints_the_table_or_the_object():
    done = run("plain", "bench", "-p", "16", "-n", "4", "--4bit", *MODEL)
    assert done.stdout == b"16 read, 4 written, 5 runs, nf4\n"
    assert done.stderr == b"run 1 of 5\n"
    found = json.loads(run("plain", "bench", "--json", "-r", "2", *MODEL).stdout)
    assert found == {"prompt_tokens": 512, "new_tokens": 128, "runs": 2, "quant": "auto"}


def test_dry_run_with_json_holds_both():
    done = run("plain", "--dry-run", "--json", "-p", "a b")
    assert json.loads(done.stdout) == {
        "prompt": "<user> a b </user>\n<assistant> ",
        "tokens": 5,
    }
    assert run("plain", "--dry-run", "--raw", "-p", "a b").stdout == b"a b\n"


def test_a_missing_chat_template_completes_raw_text_with_one_notice():
    done = run("plain", "-p", "hi", *MODEL, FAKE_TEMPLATE="0")
    assert done.stdout == b"The answer is 42.\n"
    assert done.stderr == (
        b"note: this checkpoint has no chat template; it goes on from the text as it stands\n"
    )


@pytest.mark.parametrize(
    ("redirection", "status", "stdout", "stderr"),
    [
        # An empty environment matters: PYTHONUNBUFFERED would hide what is left in a buffer.
        ("2>/dev/full", 0, b"The answer is 42.\n", b""),
        ("2>&-", 0, b"The answer is 42.\n", b""),
        ("2>/dev/full -m missing", 3, b"", b""),
        (">&-", 1, b"", b"error: cannot write the answer to stdout: Bad file descriptor\n"),
        (">&- -o out", 0, b"", b""),
        (">&- 2>&- <&-", 1, b"", b""),
        (">/dev/full 2>/dev/full", 1, b"", b""),
        ("--help >/dev/full 2>/dev/full", 1, b"", b""),
    ],
)
def test_streams_that_are_closed_or_full(
    redirection: str, status: int, stdout: bytes, stderr: bytes, tmp_path: Path
):
    script = f"{' '.join(command('plain', '-p', 'hi', *MODEL))} {redirection}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, stdin=subprocess.DEVNULL, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )  # fmt: skip  # one thought a line
    assert (done.returncode, done.stdout, done.stderr) == (status, stdout, stderr)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if "-o" in redirection else [])
