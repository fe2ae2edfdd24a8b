"""Which of the waiting rows run together: those that may, of similar length, the oldest always among them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..model.validation import real, whole


@dataclass(frozen=True)
class Limits:
    """What a batch and the queue may hold.

    Args:
        tokens: of a batch, padding included; a row that is longer runs alone.
        rows: of a batch.
        wait: seconds that the oldest row waits for a batch to fill while nothing runs.
        padding: the share of a batch's tokens that may be padding.
        queue: rows that may wait; a request that does not fit whole is refused.
    """

    tokens: int = 512
    rows: int = 16
    wait: float = 0.0
    padding: float = 0.25
    queue: int = 1024

    def __post_init__(self) -> None:
        for name in ("tokens", "rows", "queue"):
            whole(1)(name, getattr(self, name))
        real(0.0)("wait", self.wait)
        real(0.0, 1.0)("padding", self.padding)


class Waiting(NamedTuple):
    """A waiting row: what rows of its batch must share with it, and how many tokens it has."""

    key: Hashable
    length: int


class Batch(NamedTuple):
    """Places in the queue, and whether waiting could add nothing to them."""

    places: list[int]
    full: bool


def form(waiting: Sequence[Waiting], limits: Limits, together: int | None = None) -> Batch:
    """The batch around the oldest of some waiting rows, which come in the order of their arrival.

    Rows join by how near their length is to the oldest's, the older first. So a row that no batch has room for becomes
    the oldest in the end, and leads one.

    Args:
        together: the most rows of a batch, beside the limits' own.

    Example:
        Of lengths 10, 50, 11, 9 and at most 30 tokens: the first and the third, padded to 22; the fourth makes it 33.
    """
    most = min(limits.rows, together or limits.rows)
    key, length = waiting[0]
    mates = [place for place in range(1, len(waiting)) if waiting[place].key == key]
    mates.sort(key=lambda place: abs(waiting[place].length - length))
    chosen, longest, tokens = [0], length, length
    for place in mates:
        wider = max(longest, waiting[place].length)
        padded, own = (len(chosen) + 1) * wider, tokens + waiting[place].length
        if len(chosen) < most and padded <= limits.tokens and padded - own <= limits.padding * padded:
            chosen.append(place)
            longest, tokens = wider, own
    full = len(chosen) == most or (len(chosen) + 1) * longest > limits.tokens or len(chosen) <= len(mates)
    return Batch(sorted(chosen), full)
