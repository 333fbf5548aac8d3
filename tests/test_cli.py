"""The command line as a process: streams, signals, exit statuses, environment."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
POEM = "Two roads diverged in a yellow wood, and sorry I could not travel both.\n"
MODEL = ("-m", "some-model")


def clean_environ(**extra: str) -> dict[str, str]:
    base = {key: value for key, value in os.environ.items() if not key.startswith("ERNIECHAT_")}
    return base | {"PYTHONPATH": str(ROOT)} | extra


def command(scenario: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.ui.drive_fake", scenario, *arguments]


def run(
    scenario: str, *arguments: str, stdin: bytes | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    feed = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        command(scenario, *arguments),
        capture_output=True,
        env=clean_environ(**environ),
        cwd=ROOT,
        timeout=20,
        check=False,
        **feed,  # type: ignore[arg-type]  # one of two keywords
    )


@contextlib.contextmanager
def started(
    scenario: str, *arguments: str, **kwargs: object
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that is gone, with its pipes, at the end of the block."""
    process = start(scenario, *arguments, **kwargs)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def start(scenario: str, *arguments: str, **kwargs: object) -> "subprocess.Popen[bytes]":
    options: dict[str, object] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": clean_environ(),
        "cwd": ROOT,
        "bufsize": 0,
    }
    return subprocess.Popen(command(scenario, *arguments), **(options | kwargs))  # type: ignore[call-overload,no-any-return]  # as Popen


# --- help and version


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_is_one_page_that_needs_nothing_heavy(words: Sequence[str]):
    code = (
        "import sys; from erniechat import cli; status = cli.main(sys.argv[1:]);"
        "heavy = {'torch', 'rich', 'prompt_toolkit', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 100
    usage = done.stdout.split("what to answer")[0]
    assert usage.count("\n  erniechat") + usage.count("| erniechat") == 3
    for wanted in ("--temperature", "--4bit", "--no-copy", "exit status", "ERNIECHAT_TOP_P"):
        assert wanted in done.stdout


def test_help_takes_less_than_a_seventh_of_a_second():
    def once() -> float:
        # CPU time, for the machine may be busy; nothing is waited for.
        process = subprocess.Popen(
            [sys.executable, "-m", "erniechat", "--help"], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        return usage.ru_utime + usage.ru_stime

    assert min(once() for _ in range(5)) < 0.15


def test_version_is_one_line():
    done = run("plain", "--version")
    assert done.stdout.startswith(b"erniechat 0.")
    assert done.stdout.count(b"\n") == 1


# --- the streams


def test_stdout_is_the_answer_and_one_newline_and_stderr_silent():
    done = run("plain", "-p", "hi", *MODEL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"The answer is 42.\n", b"")


def test_thoughts_never_reach_stdout():
    done = run("thinks", "-p", "hi", *MODEL)
    assert (done.stdout.decode(), done.stderr) == (POEM, b"")
    done = run("thinks", "-p", "hi", "--thoughts", "full", *MODEL)
    assert done.stdout.decode() == POEM
    assert done.stderr.decode() == "Let me think about it now\n\n"


def test_a_pipe_gets_the_bytes_of_the_model_and_no_escapes_of_ours():
    done = run("evil", "-p", "hi", *MODEL, FORCE_COLOR="1")
    assert done.stdout == "\x1b[2Jwiped \x9bm \x07bell\n".encode()
    done = run("thinks", "-p", "hi", "--thoughts", "full", *MODEL, TERM="xterm-256color")
    assert b"\x1b" not in done.stdout + done.stderr


def test_the_default_model_is_announced_unless_named_or_quiet():
    assert run("plain", "-p", "hi").stderr.decode() == (
        "note: mini is small and built in; the real one:"
        " erniechat --model baidu/ERNIE-4.5-21B-A3B-PT --4bit\n"
    )
    assert run("plain", "-p", "hi", "-q").stderr == b""
    assert run("plain", "-p", "hi", ERNIECHAT_MODEL="mini").stderr == b""


def test_a_reader_that_leaves_ends_the_program_quietly_with_141():
    script = f"{' '.join(command('endless', '-p', 'x', *MODEL))} | head -1; echo ${{PIPESTATUS[0]}}"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, env=clean_environ(), cwd=ROOT, timeout=20
    )
    assert (done.stdout, done.stderr) == (b"line of text\n141\n", b"")
    assert time.monotonic() - began < 5  # the whole reply would take 60 s


def test_a_reader_that_leaves_is_noticed_while_nothing_is_written():
    with started("silent", "-p", "x", *MODEL) as process:
        assert process.stdout is not None
        time.sleep(0.8)
        process.stdout.close()
        assert process.wait(timeout=5) == 141


def test_a_full_disk_is_an_error():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("plain", "-p", "hi", *MODEL),
            stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            env=clean_environ(), cwd=ROOT,
        )  # fmt: skip  # one thought a line
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write the answer to stdout: No space left on device\n"


def test_pieces_are_flushed_as_they_come():
    with started("slow", "-p", "hi", *MODEL) as process:
        assert process.stdout is not None
        arrivals = []
        while piece := process.stdout.read(100):
            arrivals.append((time.monotonic(), piece))
        process.communicate()
        assert b"".join(piece for _, piece in arrivals).decode() == POEM
        assert len(arrivals) >= 10  # fourteen words, 0.15 s apart


# --- stdin


def test_stdin_comes_first_then_a_blank_line_then_the_text():
    done = run("plain", "--dry-run", "-p", "sum up", stdin=b"line 1\nline 2\n")
    assert done.stdout == b"<user> line 1\nline 2\n\nsum up </user>\n<assistant> \n"
    assert done.stderr == b"9 tokens\n"
    assert run("plain", "--dry-run", stdin=b"only\n").stdout.startswith(b"<user> only </user>")
    assert run("plain", "--dry-run", "-p", "-", stdin=b"a\n").stdout.startswith(b"<user> a </user>")


def test_stdin_that_is_not_text_is_refused_with_the_offset():
    done = run("plain", "-p", "x", *MODEL, stdin=b"abc\xff\xfe")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"byte 0xff at offset 3" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("-p", ""), ("-p", "  \n"), ("--no-stdin",)])
def test_an_empty_prompt_is_a_usage_error(arguments: Sequence[str]):
    done = run("plain", *arguments, *MODEL, stdin=b"\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: the prompt is empty")


def test_an_open_silent_stdin_is_said_to_be_waited_for():
    with started("plain", "-p", "hi", *MODEL, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        began = time.monotonic()
        line = process.stderr.readline()
        assert line == b"note: waiting for stdin (Ctrl-D ends it, --no-stdin ignores it)\n"
        assert 1.8 < time.monotonic() - began < 4
        stdout, _ = process.communicate(b"")
        assert (process.returncode, stdout) == (0, b"The answer is 42.\n")


def test_no_stdin_does_not_wait():
    with started("plain", "-p", "hi", "--no-stdin", *MODEL, stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=5) == 0
        process.communicate()


# --- signals


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_at_once_and_ends_the_partial_answer(signum: signal.Signals, status: int):
    with started("slow", "-p", "hi", *MODEL) as process:
        assert process.stdout is not None
        first = process.stdout.read(3)
        began = time.monotonic()
        process.send_signal(signum)
        stdout, stderr = process.communicate()
        assert time.monotonic() - began < 0.6  # 0.3 of ours, and Python's own end
        answer = (first + stdout).decode()
        assert POEM.startswith(answer.removesuffix("\n"))
        assert answer.endswith("\n")
        assert answer != POEM
        assert (process.returncode, stderr) == (status, b"")


@pytest.mark.parametrize("scenario", ["stuck", "silent"])
def test_sigint_ends_a_program_whose_kernel_does_not_return(scenario: str):
    with started(scenario, "-p", "hi", *MODEL) as process:
        time.sleep(0.8)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
        assert time.monotonic() - began < 0.8


def test_sigint_ends_a_load():
    with started("plain", "-p", "hi", *MODEL, env=clean_environ(FAKE_LOAD_SECONDS="20")) as process:
        time.sleep(0.8)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=2)
        assert (process.returncode, stdout, stderr) == (130, b"", b"")


# --- json and tools


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
         'error: --temperature must be a number at least 0, got "hot"'),
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
