"""A loopback hub that serves the built-in model as owner/mini."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from erniechat.mini import checkpoint_folder
from tests.hub.loopback import Hub, client_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with (
        Hub({"owner/mini": checkpoint_folder()}) as server,
        client_of(server, home, monkeypatch),
    ):
        yield server
