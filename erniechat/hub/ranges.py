"""Single tensors of shards that are not here: their bytes and no others, into files with holes."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from erniechat.hub.failures import hub_errors, patiently
from erniechat.hub.fetch import read_range
from erniechat.hub.listing import HubModel
from erniechat.model.checkpoint import Stored
from erniechat.model.stored import StoredTensor

PIECE_NBYTES = 16 << 20  # of one request


class TensorFetcher:
    """Brings tensors here that a model's shards on the hub have.

    A range has no checksum of its own: whoever asks must know what to expect of it.

    Args:
        model: On the hub.
        folder: Gets a file for each shard that something is fetched from, sparse, of its size.

    Attributes:
        nbytes: What was fetched.
    """

    def __init__(self, model: HubModel, folder: Path) -> None:
        self._shards = {model.folder / shard.name: shard for shard in model.shards}
        self._model = model
        self._folder = folder
        self.nbytes = 0

    def bring(self, stored: Stored) -> Stored:
        """The same tensor, to be read from a file here.

        Raises:
            ModelError: If the hub does not give it.
            DiskLimitError: If the disk is full.
        """
        if isinstance(stored, StoredTensor):
            return self._bring(stored)
        companions = {name: self._bring(part) for name, part in stored.companions.items()}
        return replace(stored, codes=self._bring(stored.codes), companions=companions)

    def _bring(self, tensor: StoredTensor) -> StoredTensor:
        if tensor.path.exists():
            return tensor
        shard = self._shards[tensor.path]
        path = self._folder / shard.name
        path.touch()
        end = tensor.offset + tensor.nbytes
        with hub_errors(self._model.name, self._model.commit), path.open("r+b") as file:
            for begin in range(tensor.offset, end, PIECE_NBYTES):
                piece = partial(
                    read_range, self._model, shard, begin, min(begin + PIECE_NBYTES, end)
                )
                file.seek(begin)
                self.nbytes += file.write(patiently(piece))
        return replace(tensor, path=path)
