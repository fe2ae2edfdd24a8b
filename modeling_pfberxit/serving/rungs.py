"""Under which point each waiting row will be answered: the request's own, by its latency budget, or the server's."""

from __future__ import annotations

from collections.abc import Sequence

from .calls import FULL, Point, Request, Row, Served
from .pace import Pace


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
