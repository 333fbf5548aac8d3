"""Sessions that go on where they were left: the engine on the built-in model, its cache on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from erniechat.chat.conversation import Message
from erniechat.chat.session_file import SessionFile, remove_session
from erniechat.chat.sessions import kept_folder
from erniechat.current_session import CurrentSession
from erniechat.engine import Engine
from erniechat.events import TextDelta, TurnEnd
from erniechat.model import kept_cache
from erniechat.model.kv_cache import KVCache
from erniechat.options import SamplingOptions
from erniechat.turn import Turn
from tests.engines import joined, last, load_mini

GREEDY = SamplingOptions(temperature=0)
LONG = "Sort these words: " + " ".join(f"word{number} apple" for number in range(150))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for kind in ("CACHE", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    monkeypatch.setattr(kept_cache, "KEEP_SECONDS", 0.0)
    return tmp_path


class SlowSession(CurrentSession):
    """One to which reading a token seems to take a second."""

    def time_reading(self, turn: Turn, done: int) -> None:
        self.seconds_per_token = 1.0


def slow(engine: Engine) -> Engine:
    engine._session = SlowSession(engine._session.kept, engine._session.kv_cache)
    return engine


def test_a_few_tokens_tell_nothing_of_how_fast_a_prompt_is_read() -> None:
    session = CurrentSession(None, KVCache(1, 1, 2, max_tokens=64))
    session.time_reading(Turn(prompt=40, cached=25, read_seconds=0.015), 40)
    assert session.seconds_per_token == float("inf")
    session.time_reading(Turn(prompt=40, cached=20, read_seconds=0.04), 40)
    assert session.seconds_per_token == pytest.approx(0.002)
    session.time_reading(Turn(prompt=40, cached=0, read_seconds=0.4), 40)  # beside other work
    assert session.seconds_per_token == pytest.approx(0.002)


def reply(engine: Engine, messages: list[Message], session: str = "") -> tuple[str, TurnEnd]:
    events = list(engine.stream_reply(messages, GREEDY, session=session, think="off"))
    return joined(events, TextDelta), last(events)


FIRST = [Message("user", LONG)]


def test_a_session_goes_on_with_what_was_read_before() -> None:
    engine = slow(load_mini("int8"))
    text, end = reply(engine, FIRST, "1121-a")
    more = [*FIRST, Message("assistant", text), Message("user", "What is 17 + 25?")]
    expected, _ = reply(engine, more)
    engine.close()
    assert (kept_folder() / "1121-a.kv").is_file()

    engine = load_mini("int8")
    found, end = reply(engine, more, "1121-a")
    assert found == expected
    assert end.usage.cached > 800
    engine.close()

    other = load_mini("bf16")
    assert reply(other, more, "1121-a")[1].usage.cached == 0


def test_only_saved_conversations_are_kept_each_under_its_name() -> None:
    engine = slow(load_mini("int8"))
    reply(engine, FIRST)
    engine.close()
    assert not kept_folder().exists()
    reply(engine, FIRST, "a")
    reply(engine, [Message("user", "hi " * 50)], "b")
    assert [path.name for path in kept_folder().iterdir()] == ["a.kv"]
    _, end = reply(engine, FIRST, "a")
    assert end.usage.cached == end.usage.prompt - 1
    engine.close()
    assert sorted(path.name for path in kept_folder().iterdir()) == ["a.kv", "b.kv"]


def test_with_no_room_nothing_is_kept() -> None:
    engine = slow(load_mini("int8", session_cache="0B"))
    reply(engine, FIRST, "a")
    engine.close()
    assert not kept_folder().exists()


def test_a_deleted_session_leaves_nothing_behind() -> None:
    file = SessionFile(lambda text: None, {})
    file.add_message(FIRST[0])
    engine = slow(load_mini("int8"))
    reply(engine, FIRST, file.id)
    engine.close()
    file.close()
    assert (kept_folder() / f"{file.id}.kv").is_file()
    remove_session(file.id)
    assert list(kept_folder().iterdir()) == []
