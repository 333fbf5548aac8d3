"""Every command of the README runs; the few that cannot here are named with their reason."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
NOT_RUN = {
    "git clone": "needs the network",
    "make": "would run this suite inside itself, and make demo is CI's own first step",
    "erniechat --model baidu/ERNIE-4.5-21B-A3B-PT": "fetches 43.7 GB",
    "TORCH=torch make": "fetches another torch",
    "erniechat bench --synthetic DIR": "DIR stands for a folder",
    "erniechat bench --quality FILE": "FILE stands for a file",
    "erniechat --model FILE.gguf": "FILE stands for a file",
    "python -m tests.bench": "takes minutes",
    "python -m tests.model.gguf_llama": "needs llama.cpp",
}


def commands() -> list[str]:
    """Lines of the shell blocks without comments, and the commands in tables."""
    text = README.read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    tables = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    return [line for line in [*lines, *tables] if line]


def reason_not_to_run(command: str) -> str:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")


def test_the_readme_has_commands_that_run() -> None:
    assert sum(not reason_not_to_run(command) for command in commands()) >= 4


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(command: str) -> None:
    if reason := reason_not_to_run(command):
        pytest.skip(reason)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    short = command.replace("erniechat bench", "erniechat bench -p 16 -n 4 -r 1")
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", short],
        input=b"",
        capture_output=True,
        check=False,
        timeout=120,
        env=environment,
        cwd=README.parent,
    )
    assert result.returncode == (2 if command == "erniechat" else 0), result.stderr.decode()
    if command != "erniechat":  # without a terminal and without input it asks for a prompt
        assert result.stdout
