"""The training's end of the worker processes that make batches."""

import argparse
import multiprocessing
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erniechat.mini.mixture import LONGEST, MIN_DOCUMENT, Batch
from erniechat.mini.producer import produce

QUEUE_SIZE = 12


class Batches:
    """The batches in order, on the device; a context manager that stops the workers at its end."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.device, self.batch_idx = device, 0
        self.longest = min(LONGEST, args.tokens)
        self.max_documents = args.tokens // MIN_DOCUMENT
        context = multiprocessing.get_context("spawn")
        self.queues: list[Any] = [context.Queue(maxsize=QUEUE_SIZE) for _ in range(args.workers)]
        self.processes = [
            context.Process(target=produce, args=(queue, worker_idx, args), daemon=True)
            for worker_idx, queue in enumerate(self.queues)
        ]

    def __enter__(self) -> "Batches":
        for process in self.processes:
            process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        for queue in self.queues:
            queue.cancel_join_thread()
            queue.close()

    def _to_device(self, array: NDArray[Any], dtype: type[np.integer[Any]]) -> Tensor:
        tensor = torch.from_numpy(array.astype(dtype))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def next(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """The next batch: ids, targets, starts, and the length that no document exceeds."""
        batch: Batch = self.queues[self.batch_idx % len(self.queues)].get()
        self.batch_idx += 1
        # A fixed number of starts keeps the shapes constant; the surplus documents are empty.
        starts = np.full(self.max_documents + 1, len(batch.ids), np.int32)
        starts[: len(batch.starts)] = batch.starts
        return (
            self._to_device(batch.ids, np.int64),
            self._to_device(batch.targets, np.int64),
            self._to_device(starts, np.int32),
            self.longest,
        )
