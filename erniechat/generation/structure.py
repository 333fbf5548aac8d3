"""Answers that obey a structure: its masks narrow the choice of the next token."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erniechat.generation.guide import only


@dataclass(frozen=True, slots=True)
class AnswerFrame:
    """The tokens around an answer, which the grammar knows nothing of.

    Attributes:
        opening_ids: Written before the answer.
        closing_ids: Written after it.
        stop_ids: End the reply.
        markup_ids: Tags and turn marks, which no answer may hold.
    """

    stop_ids: Collection[int]
    opening_ids: Sequence[int] = ()
    closing_ids: Sequence[int] = ()
    markup_ids: Collection[int] = field(default_factory=frozenset)


class StructureGuide:
    """Holds the answer section to a structure, then ends the reply.

    Args:
        matcher: llguidance's; see `erniechat.chat.structures`.
        frame: The tokens around the answer.
        in_answer: Whether the next token is part of the answer section.
    """

    def __init__(self, matcher: Any, frame: AnswerFrame, in_answer: Callable[[], bool]) -> None:
        self.is_complete = False
        self._matcher = matcher
        self._frame = frame
        self._in_answer = in_answer
        self._forced = list(frame.opening_ids)
        self._is_closing = False

    def constrain(self, logits: Tensor) -> Tensor:
        """See `erniechat.generation.guide.Guide`."""
        if not self._in_answer():
            return logits
        if self._forced:
            return only(logits, self._forced[:1])
        if self._is_closing:
            return only(logits, self._frame.stop_ids)
        return logits.masked_fill(~self._allowed(len(logits)).to(logits.device), -torch.inf)

    def _allowed(self, num_tokens: int) -> Tensor:
        """Which tokens may come next: bool ``[num_tokens]``."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(mask, bitorder="little")[:num_tokens].astype(bool)
        bits = np.pad(bits, (0, num_tokens - len(bits)))
        bits[list(self._frame.markup_ids)] = False
        if self._matcher.is_accepting():
            bits[[*self._frame.stop_ids, *self._frame.closing_ids[:1]]] = True
        if not bits.any():  # a grammar that leads nowhere
            bits[list(self._frame.stop_ids)] = True
        return torch.from_numpy(bits)

    def accept(self, token_id: int) -> None:
        """See `erniechat.generation.guide.Guide`."""
        if not self._in_answer():
            return
        if self._forced:
            self._forced.pop(0)
        elif not self._is_closing:
            self._consume(token_id)

    def _consume(self, token_id: int) -> None:
        is_end = token_id in self._frame.stop_ids
        if not is_end and self._matcher.validate_tokens([token_id]) == 1:
            self._matcher.consume_token(token_id)
            self.is_complete = bool(self._matcher.is_accepting())
        else:
            self._is_closing = True
            self._forced = [] if is_end else list(self._frame.closing_ids[1:])
