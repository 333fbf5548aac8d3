"""A quantized tensor of a GGUF file, read as floats a range of rows at a time."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from erniechat.errors import UnsupportedModelError
from erniechat.model.family import shown
from erniechat.model.gguf_file import GgufEntry, gguf_library
from erniechat.model.stored import StoredTensor

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCKED = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS",
)  # fmt: skip  # a list to read


@dataclass(frozen=True, slots=True)
class GgufTensor(StoredTensor):
    """A tensor in blocks of codes and scales; `dtype` is what reading gives, float32.

    Attributes:
        kind: Number of the ggml type.
        block: Neighbouring weights of a row that are stored together.
        block_nbytes: Bytes of such a block.
    """

    kind: int = 0
    block: int = 1
    block_nbytes: int = 4

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() // self.block * self.block_nbytes

    def read(self, index: tuple[int | slice, ...] = ()) -> Tensor:
        """See `StoredTensor.read`; dequantized to float32.

        Raises:
            CheckpointError: If the file ends early.
        """
        library = gguf_library()
        codes = self._codes().read(index)
        kind = library.GGMLQuantizationType(self.kind)
        # Blocks of a hostile file may hold any scales; what is not finite is refused later.
        with np.errstate(all="ignore"):
            floats = library.dequantize(codes.numpy(), kind)
        return torch.from_numpy(np.ascontiguousarray(floats, np.float32))

    def _codes(self) -> StoredTensor:
        """The same tensor as rows of bytes."""
        row_nbytes = self.shape[-1] // self.block * self.block_nbytes
        shape = (*self.shape[:-1], row_nbytes)
        return StoredTensor(self.name, self.path, torch.uint8, shape, self.offset)


def stored(entry: GgufEntry, name: str) -> StoredTensor:
    """A tensor of the file under another name.

    Raises:
        UnsupportedModelError: If its type cannot be read.
    """
    if entry.kind_name in PLAIN:
        dtype = PLAIN[entry.kind_name]
        return StoredTensor(name, entry.path, dtype, entry.shape, entry.offset)
    if entry.kind_name not in BLOCKED:
        raise UnsupportedModelError(
            f"{entry.path.name}: {shown(entry.name)} is stored as {entry.kind_name}",
            f"use a file of {', '.join(PLAIN)}, {', '.join(BLOCKED)}",
        )
    return GgufTensor(
        name, entry.path, torch.float32, entry.shape, entry.offset,
        entry.kind, entry.block, entry.block_nbytes,
    )  # fmt: skip
