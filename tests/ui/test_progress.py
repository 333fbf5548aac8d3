"""The load in words: one line, three bars, or a line for each tenth."""

import io
from collections.abc import Callable

import pytest

from erniechat.errors import DiskLimitError, UsageError
from erniechat.events import Progress, StartNotice
from erniechat.options import LoadOptions
from erniechat.ui import announce as announcing
from erniechat.ui.announce import announce
from erniechat.ui.progress import LoadProgress
from erniechat.ui.terminal import Terminal
from erniechat.ui.worker import Worker

GB = 10**9


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("erniechat.ui.progress.time.monotonic", clock)
    return clock


def terminal() -> Terminal:
    return Terminal(io.StringIO(), io.StringIO(), io.StringIO())


def lines(shown: Terminal) -> list[str]:
    assert isinstance(shown.stderr, io.StringIO)
    return shown.stderr.getvalue().splitlines()


def test_download_quantizing_and_loading_are_three_bars(clock: Clock) -> None:
    progress = LoadProgress(terminal(), "owner/model")
    assert progress.bars(80) == ["loading owner/model"]
    progress(Progress("download", 0, 44 * GB))
    assert progress.bars(80)[1:] == [
        "quantize   waiting for the first file",
        "load       waiting      Ctrl-C stops; what is done is kept",
    ]
    clock.now += 10
    progress(Progress("download", GB, 44 * GB))
    progress(Progress("quantize", 0, 43 * GB))
    clock.now += 1
    progress(Progress("quantize", GB // 2, 43 * GB))
    first, second, _ = progress.bars(80)
    assert first.startswith("download   ───")
    assert first.endswith("1.0/44.0 GB   100 MB/s   7 min 10 s left")
    assert second.endswith("0.5/43.0 GB   500 MB/s   85.0 s left")
    assert all(len(line) < 80 for line in progress.bars(80))
    clock.now += 30
    progress(Progress("download", 44 * GB, 44 * GB))
    progress(Progress("quantize", 43 * GB, 43 * GB))
    assert progress.bars(80)[2] == "load       now"


def test_without_a_terminal_there_is_a_line_for_each_tenth(clock: Clock) -> None:
    shown = terminal()
    progress = LoadProgress(shown, "owner/model")
    for percent in range(0, 101, 2):
        clock.now += 3
        progress(Progress("download", percent * GB, 100 * GB))
        progress(Progress("quantize", percent * GB // 2, 100 * GB))
        progress.draw()
    found = lines(shown)
    assert len(found) == 11
    assert found[1].startswith("downloading owner/model · 9.3 GiB of 93.1 GiB · 10 % · quantized 5")


def test_a_first_start_says_at_the_end_what_it_took(clock: Clock) -> None:
    shown = terminal()
    progress = LoadProgress(shown, "owner/model")
    progress(Progress("download", 0, 44 * GB))
    clock.now += 422
    progress(Progress("download", 44 * GB, 44 * GB))
    progress(Progress("quantize", 40 * GB, 43 * GB))
    clock.now += 41
    progress(Progress("quantize", 43 * GB, 43 * GB))
    progress.say_warnings()
    progress.say_warnings()
    assert lines(shown) == [
        "note: downloaded 44.0 GB in 7 min 02 s, quantized in 41.0 s more; the next start needs "
        "neither"
    ]


NOTICE = StartNotice(("plan   download 43.7 GB",), 43_700_000_000, 11 * GB, {})


def ask(
    notice: StartNotice | None, typed: str = "", *, yes: bool = False, tty: bool = True
) -> list[str]:
    shown = terminal()
    shown.stdin_is_tty = shown.stderr_is_tty = tty
    get: Callable[[LoadOptions], StartNotice | None] = lambda options: notice  # noqa: E731  typed
    announce(LoadOptions(model="a/b"), get, Worker(), shown, io.StringIO(typed), yes=yes)
    return lines(shown)


@pytest.mark.parametrize("typed", ["\n", "y\n", "Yes\n"])
def test_a_large_download_is_asked_about(typed: str) -> None:
    assert ask(NOTICE, typed) == ["plan   download 43.7 GB", "fetch 43.7 GB now? [Y/n] "]


@pytest.mark.parametrize("typed", ["", "n\n", " NO \n"])
def test_without_a_yes_nothing_is_fetched(typed: str) -> None:
    with pytest.raises(UsageError, match=r"nothing was fetched of a/b"):
        ask(NOTICE, typed)


def test_where_no_one_can_be_asked_a_yes_is_needed() -> None:
    with pytest.raises(
        UsageError, match=r"would fetch 43\.7 GB, and no one can .* --yes"
    ) as caught:
        ask(NOTICE, tty=False)
    assert caught.value.exit_status == 2
    assert ask(NOTICE, tty=False, yes=True) == ["plan   download 43.7 GB"]


def test_little_is_fetched_without_a_question_and_nothing_without_a_word() -> None:
    small = StartNotice(("plan",), announcing.ASK_NBYTES - 1, 1, {})
    assert ask(small, tty=False) == ["plan"]
    assert ask(None, tty=False) == []


def test_what_does_not_fit_is_told_after_the_plan_and_not_asked_about() -> None:
    problem = DiskLimitError("too large", "free 3 GB")
    with pytest.raises(DiskLimitError, match="too large"):
        ask(StartNotice(("plan",), 10 * GB, 1, {}, problem), "y\n")


def test_a_line_of_the_plan_breaks_between_words_on_a_terminal_and_not_elsewhere() -> None:
    line = "disk   download 43.7 GB + copy 11.7 GB at most, 212 GB free at /home/a/.cache/b   ok"
    plan = StartNotice((line,), 10, 1, {})
    assert ask(plan) == [
        "disk   download 43.7 GB + copy 11.7 GB at most, 212 GB free at /home/a/.cache/b",
        "       ok",
    ]
    assert ask(plan, tty=False) == [line]
