"""The real command on the built-in model: streams, exit statuses, JSON, pipes, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-m", "erniechat"]
COMMAND = [*PROGRAM, "--quant", "int8"]
SUM = "What is 17 + 25?"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Name of the city"}},
                "required": ["city"],
            },
        },
    }
]


def run(*args: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *args], input=stdin, capture_output=True, check=False, timeout=60, **options
    )


def bench(*args: str) -> Any:
    command = [*PROGRAM, "bench", "--quant", "int8", "--json", *args]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def failure(result: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on stderr of a run that must have printed no answer."""
    assert result.stdout == b""
    lines = [line for line in result.stderr.decode().splitlines() if line.startswith("error")]
    assert len(lines) == 1, result.stderr
    assert b"Traceback" not in result.stderr
    return lines[0]


def test_stdout_is_the_answer_and_one_newline() -> None:
    result = run("-p", SUM)
    assert (result.returncode, result.stdout) == (0, b"17 + 25 = 42\n")
    assert b"\x1b" not in result.stderr


def test_the_default_model_says_how_to_run_the_real_one() -> None:
    assert b"--model baidu/ERNIE-4.5-21B-A3B-PT --4bit" in run("-p", SUM).stderr
    assert run("-m", "mini", "-q", "-p", SUM).stderr == b""


def test_thoughts_go_to_stderr() -> None:
    result = run("-p", SUM, "--thoughts", "full")
    assert b"carry 1" in result.stderr
    assert result.stdout == b"17 + 25 = 42\n"


def test_stdin_stands_before_the_prompt() -> None:
    result = run("--dry-run", "-p", "second", stdin=b"first")
    assert b"first\n\nsecond" in result.stdout


def test_piped_stdin_alone_is_the_prompt() -> None:
    assert run(stdin=SUM.encode()).stdout == b"17 + 25 = 42\n"


def test_json_has_every_field() -> None:
    out = json.loads(run("-p", SUM, "--json", "--seed", "5").stdout)
    assert out["text"] == "17 + 25 = 42"
    assert "carry 1" in out["thinking"]
    assert out["tool_calls"] == []
    assert out["finish_reason"] == "stop"
    assert set(out["usage"]) == {"prompt", "cached", "thinking", "answer"}
    assert set(out["time"]) == {"load", "read", "think", "write"}
    assert out["memory"]["weights"] > 1e7
    assert (out["seed"], out["model"], out["quant"]) == (5, "mini", "int8")


def test_tool_calls_are_printed_as_json(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    question = "What is the weather in Paris?"
    result = run("--tools", str(tmp_path / "tools.json"), "-p", question)
    assert json.loads(result.stdout) == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_raw_text_is_continued() -> None:
    result = run("--raw", "-p", "17 + 25", "--max-tokens", "4", "--temperature", "0")
    assert result.returncode == 0
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "text"),
    [
        (["-m", "./nowhere", "-p", "x"], b"", 3, 'no folder "./nowhere"'),
        (["-m", "no/such", "--offline", "-p", "x"], b"", 3, "offline"),
        (["--temprature", "1", "-p", "x"], b"", 2, "--temperature"),
        (["--temp", "1", "-p", "x"], b"", 2, "--temperature"),
        (
            ["--temperature", "hot", "-p", "x"],
            b"",
            2,
            'a number at least 0 and at most 5, got "hot"',
        ),
        (["--4bit", "--8bit", "-p", "x"], b"", 2, "--8bit"),
        (["-p", ""], b"", 2, "empty"),
        ([], b"", 2, "empty"),
        (["-p", "x"], b"abc\xff\xfe", 2, "3"),
        (["--ctx", "64", "-p", "word " * 200], b"", 5, "the context holds 64"),
        (["--device", "cuda", "-p", "x"], b"", 2, "no GPU"),
        (["--tools", "nowhere.json", "-p", "x"], b"", 2, "nowhere.json"),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    arguments: list[str], stdin: bytes, status: int, text: str
) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.returncode == status, result.stderr
    assert text in failure(result)


def test_a_length_stop_is_a_success_with_a_note() -> None:
    result = run("-p", SUM, "--think", "off", "--max-tokens", "5")
    assert result.returncode == 0
    assert b"note: stopped at --max-tokens 5" in result.stderr


def test_a_length_stop_in_the_thinking_says_that_no_answer_began() -> None:
    result = run("-p", SUM, "--max-tokens", "5")
    assert (result.returncode, result.stdout) == (0, b"\n")
    assert b"note: stopped at --max-tokens 5, still thinking: no answer began" in result.stderr


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    command = f"{' '.join(COMMAND)} -q -p 'List the planets.' | head -c 1"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, check=False, timeout=60
    )
    assert result.stderr == b""
    assert result.returncode in (0, 141)  # 0 where the short answer was through before head left


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*COMMAND, "-q", "-p", SUM], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert result.returncode not in (0, 141)
    assert b"Traceback" not in result.stderr


@pytest.mark.timed
def test_sigint_ends_with_130() -> None:
    process = subprocess.Popen(
        [*COMMAND, "-q", "--raw", "--temperature", "2", "-p", "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 3  # 0.3 s to stop, and the interpreter's own way out


def test_bench_prints_json() -> None:
    out = bench("-p", "16", "-n", "4", "-r", "2")
    for stage in ("prefill", "decode"):
        speed = out[stage]["tokens_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert out["experts"]["hit_rate"] == 1.0
    assert out["memory"]["host_peak"] > 0


def test_bench_measures_quality(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sum of two and two is four. " * 8)
    (name, row) = list(bench("--quality", str(text))["formats"].items())[1]
    assert name == "int8"
    assert 0 <= row["kl"] < 0.1
    assert 0.8 < row["top1"] <= 1
