"""Whose conversation the KV cache holds: its keys and values are kept when another one comes."""

from collections.abc import Sequence
from dataclasses import dataclass

from erniechat.model.kept_cache import KeptCaches
from erniechat.model.kv_cache import KVCache
from erniechat.turn import Turn

TIMED_TOKENS = 16  # fewer cost as much as one each, and tell nothing of a long prompt


@dataclass(slots=True)
class CurrentSession:
    """The saved conversation that a KV cache holds, and how fast it was read.

    Attributes:
        kept: Where what was read is kept; None keeps nothing.
        kv_cache: Holds one conversation.
        name: The session's, empty for none that is saved.
        seconds_per_token: Of reading, the fastest so far.
    """

    kept: KeptCaches | None
    kv_cache: KVCache
    name: str = ""
    seconds_per_token: float = float("inf")

    def change(self, name: str, input_ids: Sequence[int]) -> None:
        """Keep the conversation until now, and take up another where it was left.

        Args:
            name: The session that comes, empty for one that is not saved.
            input_ids: Its prompt.
        """
        before = self.name
        if self.kept is None or name == before:
            return
        self.name = name
        if before:
            self.kept.keep(before, self.kv_cache, self.seconds_per_token)
        if name:
            self.kept.restore(name, self.kv_cache, input_ids)

    def time_reading(self, turn: Turn, done: int) -> None:
        """Remember how fast a prompt was read, unless too little was read to tell.

        Args:
            turn: Knows the tokens from the cache, and the time.
            done: Tokens of the prompt that were read, those from the cache included.
        """
        num_read = done - turn.cached
        if num_read >= TIMED_TOKENS:
            self.seconds_per_token = min(self.seconds_per_token, turn.read_seconds / num_read)
