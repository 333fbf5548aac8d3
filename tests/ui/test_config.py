"""Settings from files: where each comes from, and what is wrong with a file."""

from pathlib import Path

import pytest

from erniechat.errors import UsageError
from erniechat.options import OPTIONS
from erniechat.ui.arguments import parse_arguments
from erniechat.ui.config import config_layer, preset_layer
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
        ("top_p = 7\n", r'config\.toml, line 1: top_p must be a number above 0.*got "7\.0"'),
        ("plain = 1\n", r"config\.toml, line 1: plain must be true or false"),
        ("seed = true\n", r"config\.toml, line 1: seed must be a whole number"),
        ("quant = 'int3'\n", r"config\.toml, line 1: quant must be one of auto"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(config: Path, text: str, error: str):
    config.write_text(text)
    with pytest.raises(UsageError, match=error):
        config_layer()


def test_an_unknown_key_is_a_warning_with_the_nearest(config: Path):
    config.write_text("temprature = 1\n")
    layer, warnings = config_layer()
    assert layer.values == {}
    assert warnings == [
        f"{config}, line 1: there is no setting temprature; ignored. Did you mean temperature?"
    ]


def test_a_missing_preset_is_answered_with_those_there_are(config: Path):
    (config.parent / "presets" / "code.toml").write_text("")
    with pytest.raises(UsageError, match=r'no preset "cod" in .*; did you mean code\?'):
        preset_layer("cod")
    with pytest.raises(UsageError, match="there are: code"):
        preset_layer("../x")


def test_negative_variables_and_the_screen_readers():
    values = environment_layer({"ERNIECHAT_NO_SAVE": "1", "ACCESSIBLE": "1"})[0].values
    assert values == {"save": False, "screen_reader": True}
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
    assert run("plain", "config", XDG_CONFIG_HOME=home).stdout.decode() == f"{config}\n"


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
