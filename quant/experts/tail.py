"""Experts of a model on a GPU for which neither its memory nor pinned memory has a place.

They are in the copy on disk, as many of them in RAM as a budget allows, and the CPU runs them. A
token's request that finds one missing is answered by reading it, on the thread that answers; what
a prompt needs is read by whoever reads the prompt. The two never run at the same time: the device
works in the order of one stream, and who reads a prompt has waited for it.
"""

import threading
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from quant.experts.disk import DiskExpertStore
from quant.experts.placement import ExpertKey
from quant.kernels.base import ExpertWeights
from quant.kernels.native.serve import ExpertServer

NUM_AHEAD = 4  # experts of the disk on their way while one that came before is copied


class ExpertTail:
    """Who is in the tail, and in RAM of these.

    Args:
        disk: Has the experts and the RAM for some.
        keys: Experts that are in the tail.

    Attributes:
        num_prompt_uses: Executions of experts for prompts.
    """

    def __init__(self, disk: DiskExpertStore, keys: Collection[ExpertKey]) -> None:
        self._disk = disk
        self._keys = set(keys)
        disk.may_ask = self._keys.__contains__
        self._lock = threading.Lock()
        self._server: ExpertServer | None = None
        self._uses = torch.empty(0)
        self._num_requests = 0
        self.num_prompt_uses = 0

    def serve(self, server: ExpertServer) -> None:
        """Say who answers requests for the experts; it has `fetch` to find what is missing."""
        self._server = server
        self._uses = server.uses.clone()
        self._disk.on_leave = lambda key: server.forget(*key)

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether an expert is in the tail."""
        return key in self._keys

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in the tail."""
        return not self._keys

    def is_near(self, key: ExpertKey) -> bool:
        """Whether an expert of the tail is in RAM."""
        return key in self._keys and key in self._disk

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        return self._disk.nbytes

    @property
    def num_read(self) -> int:
        """Executions whose expert was read from the disk for them."""
        return self._disk.num_read

    @property
    def nbytes_read(self) -> int:
        """Bytes read from the disk."""
        return self._disk.nbytes_read

    def fetch(self, layer_idx: int, expert_ids: Sequence[int]) -> None:
        """Bring what a token needs, and show it to the server.

        Raises:
            QuantError: If the disk cannot be read.
        """
        if self._server is None:
            return
        with self._lock:
            self._learn(self._server)
            mine = [i for i in expert_ids if ExpertKey(layer_idx, i) in self._keys]
            for expert_idx, weights in zip(mine, self._disk.ensure(layer_idx, mine), strict=True):
                self._server.place(layer_idx, expert_idx, weights)

    def _learn(self, server: ExpertServer) -> None:
        """Count what was asked for since the last time: most of it was found without asking."""
        now = server.uses.clone()
        new, self._uses = (now - self._uses).numpy(), now
        used = {i: new[i] for i in self._disk.layers}
        num_requests = server.use.num_requests
        num_tokens = (num_requests - self._num_requests) / len(self._disk.layers)
        self._num_requests = num_requests
        self._disk.learn(used, num_tokens)

    def forward(
        self, layer_idx: int, hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Tensor:
        """Run experts of the tail for a prompt, all on the CPU; as `ExpertStore.forward`.

        Raises:
            QuantError: If the disk cannot be read.
        """
        with self._lock:
            self.num_prompt_uses += len(set(topk_ids.flatten().tolist()))
            return self._disk.forward(layer_idx, hidden_states, topk_ids, topk_weights)

    def copy(self, key: ExpertKey, write: Callable[[ExpertWeights], None], *, waits: bool) -> bool:
        """Copy an expert that is in RAM; also while tokens ask for others.

        Args:
            key: Whom.
            write: Copies what it is given; it may not be kept.
            waits: Also if it is still on its way.

        Returns:
            Whether it was copied.

        Raises:
            QuantError: If the disk cannot be read.
        """
        with self._lock:
            if not self.is_near(key) or not (waits or self._disk.is_here(key)):
                return False
            write(self._disk.take(key))
            return True

    def warm(self, keys: Sequence[ExpertKey]) -> None:
        """Begin to read experts for which there are free slots in RAM."""
        with self._lock:
            self._disk.warm(keys)

    def join(self, key: ExpertKey) -> None:
        """Have an expert that has no other place any more; it is read when it is asked for."""
        with self._lock:
            self._keys.add(key)

    def bring(self, key: ExpertKey, later: Sequence[ExpertKey] = ()) -> ExpertWeights:
        """An expert, read if it is not in RAM; to be copied at once.

        Args:
            key: Whom.
            later: Who will be asked for next: some of these are read meanwhile.

        Raises:
            QuantError: If the disk cannot be read.
        """
        with self._lock:
            disk = self._disk
            ahead = later[: min(NUM_AHEAD, disk.num_slots - 1)]
            num_read = disk.num_read
            for one in (key, *ahead):
                disk.fetch(one, (key, *ahead))
            found = disk.ensure(key.layer_idx, [key.expert_idx])[0]
            disk.num_read = num_read  # nobody has run it
            return found

    def part(self, key: ExpertKey) -> None:
        """Let an expert go that has another place now."""
        with self._lock:
            self._disk.drop(key)
            self._keys.discard(key)

    @property
    def keys(self) -> set[ExpertKey]:
        """Who is in the tail."""
        return set(self._keys)
