"""What a worker process does: make batches and put them into a queue."""

import argparse
import json
from multiprocessing.queues import Queue
from pathlib import Path

from erniechat.mini.mixture import Batch, Source


class MixtureFile:
    """A mixture in a file that may change while training runs."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.read_at: float | None = None

    def changed(self) -> dict[str, float] | None:
        """The mixture if the file is new or has changed; None too while it is half written."""
        try:
            modified = self.path.stat().st_mtime
            if modified == self.read_at:
                return None
            mixture: dict[str, float] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        self.read_at = modified
        return mixture


def produce(queue: "Queue[Batch]", worker_idx: int, args: argparse.Namespace) -> None:
    """Put the batches worker_idx, worker_idx + workers, … without end.

    This module needs no torch, so a worker starts fast and stays small.
    """
    source = Source(args.facts, args.tokenizer, num_tokens=args.tokens, seed=args.seed)
    mixture_file = MixtureFile(args.mixture) if args.mixture else None
    batch_idx = worker_idx
    while True:
        if mixture_file and (mixture := mixture_file.changed()):
            source.mixture = mixture
        queue.put(source.batch(batch_idx))
        batch_idx += args.workers
