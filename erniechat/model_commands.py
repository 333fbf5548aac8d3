"""The commands on models and copies: plan, export, cache verify; pages out, progress on the way."""

import json
from collections.abc import Callable

from erniechat.cache import copy_paths
from erniechat.errors import CheckpointError
from erniechat.export import export
from erniechat.options import LoadOptions
from erniechat.repair import verify_copy
from erniechat.sizes import shown_size
from erniechat.start_notice import full_notice

Show = Callable[[str], None]


def verify(name: str, show: Show, say: Show) -> None:
    """`erniechat cache verify`: check a copy, or all, and make whole what is damaged.

    Args:
        name: Of a copy, or ``all``.
        show: Told how far it is.
        say: Told a line for each copy.

    Raises:
        UsageError: If there is none of that name.
        CheckpointError: If one is damaged beyond repair, once all are checked.
    """
    failure = None
    for path in copy_paths(name):
        try:
            line = verify_copy(
                path,
                lambda done, total: show(f"checking {shown_size(done)} of {shown_size(total)}"),
            )
        except CheckpointError as exc:
            failure, line = exc, str(exc)
        say(line + "\n")
    if failure is not None:
        raise failure


def run(task: tuple[str, ...], load: LoadOptions, show: Show, say: Show, *, as_json: bool) -> None:
    """`erniechat plan` or `erniechat export`.

    Args:
        task: The command and its words after the model's name.
        load: Which model, and how it is held.
        show: Told how far it is.
        say: Told the page.
        as_json: The plan for a script.

    Raises:
        ErnieChatError: If the model cannot be had, does not fit or cannot be written.
    """
    command, *words = task
    if command == "export":
        line = export(
            load, words[0], lambda done, total: show(f"writing {done:,} of {total:,} tensors")
        )
        say(line + "\n")
        return
    show(f"planning {load.model}")
    notice = full_notice(load)
    facts = json.dumps(dict(notice.facts)) + "\n"
    say(facts if as_json else "".join(f"{line}\n" for line in notice.lines))
    if notice.problem is not None:
        raise notice.problem
