"""What decoded tokens read from each place, in how long: what /stats and bench tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from erniechat.backend import PlaceReads
from quant.experts.store import TierUse


@dataclass(slots=True)
class DecodeReads:
    """Sums over replies.

    Attributes:
        fixed_place: Where the weights are that every token reads.
        fixed_nbytes: Of these.
        speeds: Measured bytes a second by place, in lower case; a place may be missing.
        num_tokens: Decoded.
        seconds: That they took.
        nbytes: By place what was read of routed experts.
        runs: By place how many of them were run from there.
    """

    fixed_place: str = "RAM"
    fixed_nbytes: int = 0
    speeds: Mapping[str, float] = field(default_factory=dict)
    num_tokens: int = 0
    seconds: float = 0.0
    nbytes: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def anew(self) -> "DecodeReads":
        """The same before the first reply."""
        return DecodeReads(self.fixed_place, self.fixed_nbytes, self.speeds)

    def add(
        self,
        before: Sequence[TierUse],
        after: Sequence[TierUse],
        num_tokens: int,
        seconds: float,
    ) -> None:
        """Count a reply.

        Args:
            before: What a store had counted when its first token began.
            after: The same after its last token.
            num_tokens: Of the reply.
            seconds: That they took.
        """
        begun = {use.name: use for use in before}
        for use in after:
            known = begun.get(use.name, TierUse(use.name, 0, 0))
            nbytes, runs = use.nbytes_read - known.nbytes_read, use.experts_run - known.experts_run
            self.nbytes[use.name] = self.nbytes.get(use.name, 0) + nbytes
            self.runs[use.name] = self.runs.get(use.name, 0) + runs
        self.num_tokens += num_tokens
        self.seconds += seconds

    @property
    def hit_rate(self) -> float:
        """Share of the experts run that were in the memory of the model's device; 1 without any."""
        total = sum(self.runs.values())
        return self.runs.get(self.fixed_place, 0) / total if total else 1.0

    def reads(self) -> dict[str, PlaceReads]:
        """By place what a token reads there, and how fast; places without reads left out."""
        if not self.num_tokens:
            return {}
        places = {self.fixed_place: self.fixed_nbytes * self.num_tokens}
        for place, nbytes in self.nbytes.items():
            places[place] = places.get(place, 0) + nbytes
        return {
            place: PlaceReads(
                nbytes / self.num_tokens,
                nbytes / self.seconds if self.seconds else 0.0,
                self.speeds.get(place.lower()),
            )
            for place, nbytes in places.items()
            if nbytes
        }
