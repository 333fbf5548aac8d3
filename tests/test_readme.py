"""Every command of the README runs; the few that cannot here are named with their reason."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BENCHMARKS = sorted((README.parent / "tests/bench").glob("*.py"))
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


def wrong_programs(text: str) -> list[str]:
    """Modules that a text says to run and that are not there, and flags that they do not have."""
    wrong = []
    for name, arguments in re.findall(r"python -m (tests\.[a-z_.]+)([^`\n]*)", text):
        source = README.parent / f"{name.replace('.', '/')}.py"
        if not source.exists():
            wrong.append(name)
            continue
        known = set(re.findall(r'"[^"\n]*"', source.read_text("utf-8")))
        for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", arguments):
            if not {f'"{flag}"', f'"{flag.replace("--no-", "--")}"'} & known:
                wrong.append(f"{name} {flag}")
    return wrong


def test_programs_that_the_readme_names_exist_and_have_the_flags_that_it_gives_them() -> None:
    text = README.read_text("utf-8").replace("\n", " ")
    assert text.count("python -m tests.bench.") > 30
    assert not wrong_programs(text)


@pytest.mark.parametrize("source", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_has_the_flags_that_its_docstring_gives_it(source: Path) -> None:
    text = source.read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert not wrong_programs(docstring.replace("\n        ", " "))
    assert ("ArgumentParser" in text) == (f"python -m tests.bench.{source.stem}" in docstring)


def test_footnotes_of_tables_are_numbered_in_order_and_each_is_told_once() -> None:
    lines = README.read_text("utf-8").splitlines()
    tables = "\n".join(line for line in lines if line.lstrip().startswith("|"))
    others = "\n".join(line for line in lines if not line.lstrip().startswith("|"))
    mark = r"(?<!\S)[¹²³⁴⁵⁶⁷⁸⁹](?!\S)"
    named = list(dict.fromkeys(re.findall(mark, tables)))
    assert named == re.findall(mark, others) == list("¹²³⁴⁵⁶⁷⁸⁹")[: len(named)]
