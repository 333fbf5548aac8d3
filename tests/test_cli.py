"""The command line as a process: streams, signals, exit statuses, environment."""

import contextlib
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
        timeout=60,
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


@pytest.mark.timed
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


def test_the_line_of_the_thoughts_says_what_the_statistics_say():
    done = run("reads-and-thinks", "-p", "hi", "--thoughts", "summary", "--stats", *MODEL)
    first, *others = done.stderr.decode().splitlines()
    assert first.startswith("thought for 2.0 s · ")  # the prompt's time is not part of it
    (thinking,) = [line.split() for line in others if line.startswith("think ")]
    assert thinking[1:5] == [first.split()[5], "tok", "2.0", "s"]


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


@pytest.mark.timed
def test_a_reader_that_leaves_ends_the_program_quietly_with_141():
    script = f"{' '.join(command('endless', '-p', 'x', *MODEL))} | head -1; echo ${{PIPESTATUS[0]}}"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, env=clean_environ(), cwd=ROOT, timeout=60
    )
    assert (done.stdout, done.stderr) == (b"line of text\n141\n", b"")
    assert time.monotonic() - began < 5  # the whole reply would take 60 s


def test_a_reader_that_leaves_is_noticed_while_nothing_is_written():
    with started("silent", "-p", "x", *MODEL) as process:
        assert process.stdout is not None
        time.sleep(0.8)
        process.stdout.close()
        assert process.wait(timeout=60) == 141


def test_a_full_disk_is_an_error():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("plain", "-p", "hi", *MODEL),
            stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            env=clean_environ(), cwd=ROOT,
        )  # fmt: skip  # one thought a line
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write the answer to stdout: No space left on device\n"


@pytest.mark.timed
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


def test_arguments_are_utf8_whatever_the_locale_and_refused_where_they_are_no_text():
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("plain", "--dry-run", "-p", "12 × 13 你好", PYTHONIOENCODING="utf-8", **c_locale)
    assert "<user> 12 × 13 你好 </user>".encode() in done.stdout
    bad = "caf\udce9 is?"  # the byte 0xe9, as a Latin-1 terminal sends it
    done = run("plain", "-p", bad, *MODEL)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: the prompt is not UTF-8 text: byte 0xe9 at offset 3\n"
    done = run("plain", "-p", "x", "--system", bad, *MODEL)
    assert b"the system prompt is not UTF-8 text: byte 0xe9 at offset 3" in done.stderr


def test_stdin_that_is_not_text_is_refused_with_the_offset():
    done = run("plain", "-p", "x", *MODEL, stdin=b"abc\xff\xfe")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"byte 0xff at offset 3" in done.stderr
    done = run("plain", "-p", "x", *MODEL, stdin="hi".encode("utf-16-le"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"character 1 is 0; name its --encoding" in done.stderr
    assert run("plain", *MODEL, "--encoding", "utf-16-le", stdin="hi".encode("utf-16-le")).stdout
    done = run("plain", "-p", "x", *MODEL, "--tools", "/bin/sh")  # a file has no --encoding
    assert b"text: byte 0x" in done.stderr
    assert b"--encoding" not in done.stderr
    done = run("plain", "-p", "x", *MODEL, "--encoding", "utf-99")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b'--encoding must be a text encoding that Python knows, got "utf-99"' in done.stderr


@pytest.mark.parametrize("arguments", [(), ("-p", ""), ("-p", "  \n"), ("--no-stdin",)])
def test_an_empty_prompt_is_a_usage_error(arguments: Sequence[str]):
    done = run("plain", *arguments, *MODEL, stdin=b"\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: the prompt is empty")


@pytest.mark.timed
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
        assert process.wait(timeout=60) == 0
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


@pytest.mark.timed
@pytest.mark.parametrize("scenario", ["stuck", "silent"])
def test_sigint_ends_a_program_whose_kernel_does_not_return(scenario: str):
    with started(scenario, "-p", "hi", *MODEL) as process:
        time.sleep(0.8)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
        assert time.monotonic() - began < 0.8


@pytest.mark.timed
def test_sigint_ends_a_load():
    with started("plain", "-p", "hi", *MODEL, env=clean_environ(FAKE_LOAD_SECONDS="20")) as process:
        time.sleep(0.8)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=15)
        assert (process.returncode, stdout, stderr) == (130, b"", b"")
