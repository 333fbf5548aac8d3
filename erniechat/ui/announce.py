"""A first start: what it will fetch is said, and asked about, before the first byte."""

from collections.abc import Callable
from typing import TextIO

from erniechat.errors import UsageError
from erniechat.events import StartNotice
from erniechat.options import LoadOptions
from erniechat.sizes import shown_file_size
from erniechat.ui.terminal import Terminal
from erniechat.ui.text import visible
from erniechat.ui.worker import Worker

ASK_NBYTES = 1_000_000_000  # what takes longer than a moment is asked about
POLL_SECONDS = 0.05
NO_WORDS = ("n", "no")

GetNotice = Callable[[LoadOptions], StartNotice | None]


def announce(
    options: LoadOptions,
    get_notice: GetNotice,
    worker: Worker,
    terminal: Terminal,
    stdin: TextIO | None,
    *,
    yes: bool,
) -> None:
    """Say what a start will fetch, if anything, and go on only with a yes where that is much.

    Args:
        options: Which model.
        get_notice: What the start will do; None if nothing is to be fetched.
        worker: The thread to find that out on.
        terminal: To say it on.
        stdin: To read the answer from, if it is a terminal.
        yes: Given already.

    Raises:
        UsageError: If no one can be asked, or the answer is no.
        ErnieChatError: If the model cannot be had or does not fit.
    """
    task = worker.submit(lambda: get_notice(options))
    while not task.wait(POLL_SECONDS):
        terminal.live.show(f"planning {options.model}")
    terminal.live.wipe()
    notice = task.result()
    if notice is None:
        return
    if not terminal.quiet:
        terminal.write_error("".join(f"{terminal.wrap(visible(line))}\n" for line in notice.lines))
    if notice.problem is not None:
        raise notice.problem
    if yes or notice.download_nbytes < ASK_NBYTES:
        return
    size = shown_file_size(notice.download_nbytes)
    if stdin is None or not (terminal.stdin_is_tty and terminal.stderr_is_tty):
        raise UsageError(
            f"{options.model} would fetch {size}, and no one can be asked",
            "give --yes; `erniechat plan` shows what it takes",
        )
    terminal.write_error(f"fetch {size} now? [Y/n] ")
    answer = stdin.readline()
    if not answer or answer.strip().lower() in NO_WORDS:
        raise UsageError(f"nothing was fetched of {options.model}")
