"""Tab in real shells: what bash, zsh and fish make of the scripts, where they are installed."""

import shutil
import subprocess
from pathlib import Path

import pexpect
import pytest

from erniechat.ui.shell_completion import possible_values
from tests.test_cli import clean_environ, command, run

# What is typed before Tab, and the word that it becomes.
TYPED = {
    "erniechat -m bai": "baidu/ERNIE-4.5-21B-A3B-PT",
    "erniechat --resume 0101": "0101-a",
    "erniechat --preset c": "code",
    "erniechat --color al": "always",
    "erniechat --no-markd": "--no-markdown",
    "erniechat sess": "sessions",
    "erniechat cache ver": "verify",
    "erniechat sessions show 01": "0101-a",
    "erniechat plan baidu": "baidu/ERNIE-4.5-21B-A3B-PT",
}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A home with a model, a session, a preset, and a program of this tree in the path."""
    (tmp_path / "hub" / "models--baidu--ERNIE-4.5-21B-A3B-PT").mkdir(parents=True)
    (tmp_path / "config" / "erniechat" / "presets").mkdir(parents=True)
    (tmp_path / "config" / "erniechat" / "presets" / "code.toml").write_text("")
    (tmp_path / "data" / "erniechat" / "sessions").mkdir(parents=True)
    (tmp_path / "data" / "erniechat" / "sessions" / "0101-a.jsonl").write_text("")
    program = tmp_path / "bin" / "erniechat"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(command("plain"))} "$@"\n')
    program.chmod(0o755)
    environ = clean_environ(
        XDG_DATA_HOME=str(tmp_path / "data"),
        XDG_CONFIG_HOME=str(tmp_path / "config"),
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HOME=str(tmp_path),
        TERM="dumb",
    )
    return environ | {"PATH": f"{program.parent}:{environ['PATH']}"}


def script(shell: str, home: dict[str, str]) -> Path:
    path = Path(home["HOME"]) / f"complete.{shell}"
    path.write_bytes(run("plain", "--completion", shell).stdout)
    return path


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes_flags_values_and_commands(home: dict[str, str]):
    asked = "".join(f"complete -C '{typed}'; echo '|';" for typed in TYPED)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script('fish', home)}; {asked}"],
        capture_output=True, text=True, env=home, check=True,
    )  # fmt: skip
    offered = [part.split("\t")[0].strip() for part in done.stdout.split("|\n")[:-1]]
    assert dict(zip(TYPED, offered, strict=True)) == TYPED


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
@pytest.mark.parametrize("load", ["source {}", 'eval "$(cat {})"'])
def test_zsh_completes_flags_values_and_commands(home: dict[str, str], load: str):
    with pexpect.spawn("zsh", ["-f", "-i"], env=home, encoding="utf-8", timeout=60) as zsh:
        zsh.sendline(
            "PS1='> '; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D"
        )
        zsh.sendline(load.format(script("zsh", home)))
        zsh.sendline("echo rea''dy")
        zsh.expect("\nready")
        found = {}
        for typed in TYPED:
            # Tab, then the whole line becomes what an echo is given.
            zsh.send(f"{typed}\t\x01echo '<' \x05 '>'\r")
            zsh.expect(r"\n< ([^>\r\n]*)>")
            found[typed] = str(zsh.match.group(1)).split()[-1]
    assert found == TYPED


def test_bash_completes_flags_values_and_commands(home: dict[str, str]):
    asked = "".join(
        f"COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}; COMPREPLY=();"
        f" $complete erniechat {typed.split()[-1]}; echo ${{COMPREPLY[@]}};"
        for typed in TYPED
    )
    find = "complete=$(complete -p erniechat | sed 's/.*-F \\([^ ]*\\) .*/\\1/')"
    done = subprocess.run(
        ["bash", "-c", f"source {script('bash', home)}; {find}; {asked}"],
        capture_output=True, text=True, env=home, check=True,
    )  # fmt: skip
    assert dict(zip(TYPED, done.stdout.splitlines(), strict=True)) == TYPED


def test_models_are_those_of_the_hubs_cache_and_mini(tmp_path: Path):
    (tmp_path / "models--baidu--ERNIE-4.5-21B-A3B-PT").mkdir()
    (tmp_path / "datasets--x--y").mkdir()
    found = possible_values("models", {"HF_HUB_CACHE": str(tmp_path)})
    assert found == ["mini", "baidu/ERNIE-4.5-21B-A3B-PT"]


def test_what_follows_a_command_is_known_and_after_text_nothing():
    assert "doctor" in possible_values("words", {}, [])
    assert possible_values("words", {}, ["--json", "cache"]) == ["ls", "rm", "verify"]
    assert "bench" in possible_values("words", {}, ["help"])
    assert possible_values("words", {}, ["cache", "rm"], lambda action: [action]) == ["rm"]
    assert possible_values("words", {}, ["what", "is"]) == []
