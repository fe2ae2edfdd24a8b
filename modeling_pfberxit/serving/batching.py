"""What the engine runs next: which of the waiting rows run together, and under which point each of them is answered.

Rows that run together are of similar length, the oldest always among them. A row's point is its request's own, or goes
by the request's latency budget and how fast batches have lately run, or is the server's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..model.validation import real, whole
from .calls import Point, Request, Row, Served
from .ladder import FULL


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


# ---- under which point -----------------------------------------------------------------------------------------------


def chosen_points(rows: Sequence[Row], now: float, pace: Pace, tokens: int) -> list[Point]:
    """A point for each row in the queue, oldest first.

    Args:
        now: seconds, as `arrived` is.
        pace: what batches take.
        tokens: of a full batch.
    """
    waited = now - rows[0].request.arrived
    crowd = min(tokens, sum(row.length for row in rows))  # tokens that a row probably shares a batch with
    shared: dict[tuple[int, float | None], Point] = {}
    points = []
    for row in rows:
        request, key = row.request, (id(row.request.model), row.request.differ)
        if request.point is not None:
            points.append(request.point)
        elif request.budget is not None:
            points.append(within_budget(request, now, pace, max(crowd, row.length)))
        else:
            if key not in shared:
                shared[key] = server_point(request.model, now, waited, request.differ)
            points.append(shared[key])
    return points


def server_point(served: Served, now: float, waited: float, differ: float | None) -> Point:
    """What the controller says, or the server's fixed rule."""
    if served.controller is None:
        return served.point
    return served.predictor.point(served.controller.rung(now, waited, differ))


def within_budget(request: Request, now: float, pace: Pace, tokens: int) -> Point:
    """The most careful point of the ladder that will probably be in time; where none will, the fastest."""
    served, left = request.model, (request.budget or 0.0) - (now - request.arrived)
    ladder = [FULL] if served.controller is None else list(served.controller.within(request.differ))
    points = [served.predictor.point(name) for name in ladder]
    in_time = (each for each in points if pace.seconds(tokens, layers_of(each, served)) <= left)
    return next(in_time, points[-1])


def layers_of(point: Point, served: Served) -> float:
    """The layers that rows run under a point, on average; all where nobody has measured it."""
    return served.predictor.depth if point.layers is None else point.layers


# ---- how fast --------------------------------------------------------------------------------------------------------

MEMORY = 0.9  # what the past weighs against the last batch
LONGEST_RETRY = 60  # seconds


@dataclass
class Pace:
    """Running means over batches.

    Args:
        unit: seconds that one layer takes for one token, padding included; 0 before the first batch.
        row: seconds that one row takes.
    """

    unit: float = 0.0
    row: float = 0.0

    def saw(self, seconds: float, rows: int, longest: int, layers: Sequence[int]) -> None:
        """Learn from a batch: its rows, the longest's tokens, and the layers that each row ran."""
        work = longest * sum(layers)
        self.unit = mixed(self.unit, seconds / max(work, 1))
        self.row = mixed(self.row, seconds / rows)

    def seconds(self, tokens: int, layers: float) -> float:
        """What so many tokens through so many layers will probably take."""
        return self.unit * tokens * layers

    def retry_after(self, rows: int) -> int:
        """Whole seconds until so many rows will have run: at least one, at most a minute."""
        return min(LONGEST_RETRY, max(1, math.ceil(self.row * rows)))


def mixed(before: float, now: float) -> float:
    """The running mean with one value more; the first is taken as it is."""
    return MEMORY * before + (1 - MEMORY) * now if before else now
