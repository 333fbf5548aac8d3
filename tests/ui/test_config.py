"""Settings from files: where each comes from, and what is wrong with a file."""

import json
from pathlib import Path

import pytest

from erniechat.errors import UsageError
from erniechat.options import OPTIONS
from erniechat.ui.arguments import parse_arguments
from erniechat.ui.config import config_layer, preset_layer, project_layer
from erniechat.ui.settings import environment_layer, merge_layers
from tests.test_cli import run

TOML = {str: '"x"', int: "3", float: "0.5", bool: "true"}
TEXT = {str: "x", int: "3", float: "0.5", bool: "yes"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "erniechat" / "presets").mkdir(parents=True)
    return tmp_path / "erniechat" / "config.toml"


def example(name: str) -> str | None:
    """A value that the setting's choices and limits allow."""
    spec = OPTIONS[name].spec
    if spec.is_size:
        return "6GiB"
    return spec.choices[-1] if spec.choices else {"ctx": "64"}.get(name)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_has_a_flag_a_variable_and_a_key_of_one_name(name: str, config: Path):
    option = OPTIONS[name]
    text = example(name) or TEXT[option.type]
    toml = f'"{text}"' if option.type is str else example(name) or TOML[option.type]
    config.write_text(f"{name.replace('_', '-')} = {toml}\n")
    expected = option.parse(text)
    assert config_layer()[0].values == {name: expected}
    assert environment_layer({option.variable: text})[0].values == {name: expected}
    words = [option.flag] if option.type is bool else [option.flag, text]
    assert parse_arguments(words).flags.values == {name: expected}


def test_the_nearest_source_wins_and_is_named(config: Path):
    config.write_text("seed = 1\ntop_k = 1\ntop_p = 0.1\nmin_p = 0.1\n")
    (config.parent / "presets" / "p.toml").write_text("seed = 3\ntop_p = 0.3\n")
    environment = environment_layer({"ERNIECHAT_SEED": "2", "ERNIECHAT_TOP_K": "2",
                                     "ERNIECHAT_TOP_P": "0.2"})[0]  # fmt: skip
    flags = parse_arguments(["--seed", "4"]).flags
    settings = merge_layers([config_layer()[0], environment, preset_layer("p")[0], flags])
    assert [(name, settings.values[name], settings.origin(name)) for name in
            ("seed", "top_p", "top_k", "min_p", "temperature") if name in settings.values] == [
        ("seed", 4, "flag"),
        ("top_p", 0.3, "preset p"),
        ("top_k", 2, "environment"),
        ("min_p", 0.1, "config.toml"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("seed = \n", r"config\.toml is not TOML: .*at line 1, column 8"),
        ("\nseed = 'x'\n", r'config\.toml, line 2: seed must be a whole number at least 0.*"x"'),
        ("top_p = 7\n", r'config\.toml, line 1: top_p must be a number above 0.*got "7"'),
        (
            "temperature = 8\n",
            r'line 1: temperature must be .* at least 0 and at most 5, got "8"',
        ),
        ("plain = 1\n", r"config\.toml, line 1: plain must be true or false"),
        ("seed = true\n", r"config\.toml, line 1: seed must be a whole number"),
        ("quant = 'int3'\n", r"config\.toml, line 1: quant must be one of auto"),
        ("ctx = '64'\n", r'line 1: ctx must be .* at least 16, got "64"; write it without quotes'),
        ("top_k = true\n", r'line 1: top_k must be a whole number at least 0, got "true"'),
    ],
)
def test_a_wrong_file_is_named_with_its_line(config: Path, text: str, error: str):
    config.write_text(text)
    with pytest.raises(UsageError, match=error):
        config_layer()


def test_a_value_beyond_its_limits_is_refused_from_every_source(config: Path):
    rule = "must be a number at least 0 and at most 5, got"
    (config.parent / "presets" / "p.toml").write_text("temperature = 3000\n")
    with pytest.raises(UsageError, match=rule):
        preset_layer("p")
    with pytest.raises(UsageError, match=f'ERNIECHAT_TEMPERATURE {rule} "3e3"'):
        environment_layer({"ERNIECHAT_TEMPERATURE": "3e3"})
    with pytest.raises(UsageError, match=f'--temperature {rule} "3000"'):
        parse_arguments(["--temperature", "3000"])


def test_an_unknown_key_is_a_warning_with_the_nearest(config: Path):
    config.write_text("temprature = 1\n")
    layer, warnings = config_layer()
    assert layer.values == {}
    assert warnings == [
        f"{config}, line 1: there is no setting temprature; ignored. Did you mean temperature?"
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[sampling]\nseed = 1\n", "line 1: settings stand without a table; [sampling] is ignored"),
        ("preset = 'x'\n", "line 1: there is no setting preset; ignored."),  # seed is not near
    ],
)
def test_what_is_ignored_is_said(config: Path, text: str, warning: str):
    config.write_text(text)
    assert config_layer()[1] == [f"{config}, {warning}"]


def test_what_cannot_be_read_is_not_passed_over(config: Path):
    config.write_bytes(b"seed = \xff")
    with pytest.raises(UsageError, match="is not UTF-8 text: byte 0xff at offset 7"):
        config_layer()
    config.unlink()
    config.mkdir()
    with pytest.raises(UsageError, match=r"cannot read .*Is a directory"):
        config_layer()


@pytest.fixture
def project(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder deep in a repository whose root has settings."""
    folder = tmp_path / "repository" / "src" / "deep"
    folder.mkdir(parents=True)
    (tmp_path / "repository" / ".git").mkdir()
    monkeypatch.chdir(folder)
    return tmp_path / "repository" / ".erniechat.toml"


def test_a_projects_file_is_between_the_users_and_the_environment(project: Path, config: Path):
    config.write_text("seed = 1\ntop_k = 1\nmin_p = 0.1\n")
    project.write_text("seed = 2\ntop_k = 2\n")
    environment = environment_layer({"ERNIECHAT_SEED": "3"})[0]
    settings = merge_layers([config_layer()[0], project_layer()[0], environment])
    assert [(name, settings.values[name], settings.origin(name)) for name in
            ("seed", "top_k", "min_p")] == [
        ("seed", 3, "environment"),
        ("top_k", 2, ".erniechat.toml"),
        ("min_p", 0.1, "config.toml"),
    ]  # fmt: skip


def test_the_nearest_project_file_counts_and_none_above_the_repository(project: Path):
    project.parent.parent.joinpath(".erniechat.toml").write_text("seed = 9\n")
    assert project_layer()[0].values == {}
    project.write_text("seed = 1\n")
    assert project_layer()[0].values == {"seed": 1}
    Path(".erniechat.toml").write_text("seed = 2\n")
    assert project_layer()[0].values == {"seed": 2}


def test_outside_of_a_repository_only_the_current_folder_counts(project: Path):
    project.write_text("seed = 1\n")
    (project.parent / ".git").rmdir()
    assert project_layer()[0].values == {}


def test_a_project_says_nothing_of_what_is_the_users(project: Path):
    project.write_text("seed = 1\nlog = '/tmp/x'\ndiscard-originals = true\n")
    layer, warnings = project_layer()
    assert layer.values == {"seed": 1}
    assert warnings == [
        f"{project}, line 2: log is not a project's to say; it counts in config.toml",
        f"{project}, line 3: discard-originals is not a project's to say; it counts in config.toml",
    ]


def test_a_file_of_another_user_is_not_read(project: Path, monkeypatch: pytest.MonkeyPatch):
    project.write_text("seed = 1\n")
    monkeypatch.setattr("os.getuid", lambda: project.stat().st_uid + 1)
    expected = [f"{project} belongs to another user; ignored"] if project.stat().st_uid else []
    assert project_layer()[1] == expected


def test_a_missing_preset_is_answered_with_those_there_are(config: Path):
    (config.parent / "presets" / "code.toml").write_text("")
    with pytest.raises(UsageError, match=r'no preset "cod" in .*; did you mean code\?'):
        preset_layer("cod")
    with pytest.raises(UsageError, match="there are: code"):
        preset_layer("../x")


def test_negative_variables_and_the_screen_readers():
    values = environment_layer({"ERNIECHAT_NO_SAVE": "1", "ACCESSIBLE": "1"})[0].values
    assert values == {"save": False, "screen_reader": True}
    warning = "unknown environment variable ERNIECHAT_PRESET; ignored"  # and not: SEED?
    assert environment_layer({"ERNIECHAT_PRESET": "x"})[1] == warning
    assert environment_layer({"ACCESSIBLE": ""}) == (environment_layer({})[0], "")


# --- as a process


def test_config_shows_each_value_with_its_source(config: Path):
    config.write_text("temperature = 0.3\n")
    home = str(config.parent.parent)
    done = run("plain", "config", "show", XDG_CONFIG_HOME=home, ERNIECHAT_TOP_K="9")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.decode().splitlines()}
    assert rows["temperature"] == ["0.3", "config.toml"]
    assert rows["top_k"] == ["9", "environment"]
    assert rows["model"] == ["mini", "built-in"]
    assert rows["adapt"] == ["true", "built-in"]
    assert rows["max_tokens"] == ["what", "fits", "built-in"]
    assert run("plain", "config", XDG_CONFIG_HOME=home).stdout.decode() == f"{config}\n"


def test_config_shows_what_flags_and_a_preset_would_do(config: Path):
    (config.parent / "presets" / "p.toml").write_text("seed = 3\n")
    words = ["config", "show", "--preset", "p", "--4bit", "--json"]
    found = json.loads(run("plain", *words, XDG_CONFIG_HOME=str(config.parent.parent)).stdout)
    assert found["seed"] == {"value": 3, "source": "preset p"}
    assert found["quant"] == {"value": "nf4", "source": "flag"}
    assert found["top_k"] == {"value": None, "source": "built-in"}


def test_a_bad_file_ends_with_2_and_a_preset_counts(config: Path):
    home = str(config.parent.parent)
    (config.parent / "presets" / "p.toml").write_text("seed = 3\n")
    done = run("plain", "-p", "x", "--json", "-m", "m", "--preset", "p", XDG_CONFIG_HOME=home)
    assert b'"seed": 3' in done.stdout
    config.write_text("seed = [\n")
    done = run("plain", "-p", "x", XDG_CONFIG_HOME=home)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"config.toml is not TOML" in done.stderr
    assert run("plain", "--help", XDG_CONFIG_HOME=home).returncode == 0
