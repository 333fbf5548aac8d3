"""What a model family is: how its configs read and which of its tensors goes where."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from erniechat.model.config import ModelConfig

MAX_SHOWN = 80  # characters of a value in an error

Role = Literal["linear", "embedding", "norm", "router", "correction_bias", "bias"]


@dataclass(frozen=True, slots=True)
class Dense:
    """A tensor of the part that every token uses.

    Attributes:
        target: Name of the model's weight that it is part of.
        shape: What it must have.
        role: Decides its format: "linear" is quantized, "embedding" (the head too) is kept in at
            least 8 bits, "router" and "correction_bias" in float32, "norm" and "bias" as stored.
        piece: Its place where the weight is several tensors stacked by rows (q, k, v).
        num_pieces: How many there are.
        optional: Whether a checkpoint may lack it.
    """

    target: str
    shape: tuple[int, ...]
    role: Role
    piece: int = 0
    num_pieces: int = 1
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Routed:
    """A matrix of one routed expert."""

    layer_idx: int
    expert_idx: int
    part: Literal["gate", "up", "down"]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unused:
    """A tensor that is known and not needed, and why."""

    reason: str


Slot = Dense | Routed


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor, or a box of it, that fills the slot of one tensor name.

    Attributes:
        name: Name in the family's table of tensors.
        index: Which part of the stored tensor: leading indices, then a row range; empty for all.
        stored_shape: What the stored tensor must have if the piece is a part of it.
    """

    name: str
    index: tuple[int | slice, ...] = ()
    stored_shape: tuple[int, ...] = ()


class Family(Protocol):
    """Reads one kind of checkpoint. Stateless; a new one is a file and a line in FAMILIES."""

    @property
    def model_type(self) -> str:
        """The key in ``FAMILIES`` and in config.json."""
        ...

    def parse_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """The shape that a config.json describes.

        Raises:
            UnsupportedModelError: For a value that this program does not run.
            CheckpointError: For a value that makes no sense.
        """
        ...

    def tensors(self, config: ModelConfig) -> Mapping[str, Slot]:
        """Every tensor that a checkpoint of this shape has, by its name on the hub."""
        ...

    def pieces(self, config: ModelConfig, name: str) -> tuple[Piece, ...] | Unused | None:
        """What a stored tensor of another name holds, None if it is not known.

        Covers other spellings: tensors renamed or fused by newer versions of transformers.
        """
        ...


def routed_name(layer_idx: int, expert_idx: int, matrix: Literal["gate_up", "down"]) -> str:
    """Name of an expert's weight in the model."""
    return f"layers.{layer_idx}.experts.{expert_idx}.{matrix}"


def shown(value: object) -> str:
    """A value from a file as one short printable line; text in double quotes.

    Names and values of files that others wrote can hold line breaks and terminal escapes.
    """
    if isinstance(value, str):
        text = value if value.isprintable() else ascii(value)[1:-1]
        return f'"{_cut(text)}"'
    return _cut(ascii(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
