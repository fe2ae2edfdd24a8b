"""Warm-up: a model's first batches, so that no request pays for them and the engine knows its pace."""

from __future__ import annotations

from .batching import Limits
from .calls import Point, Predictor, Request, Row, Served, Tokens
from .engine import Engine

ROUNDS = 3


def warm(engine: Engine, served: Served) -> None:
    """Run short, long and full batches under every point of a model; called on the engine's thread."""
    for _ in range(ROUNDS):
        for batch in batches(served.predictor, engine.limits):
            run(engine, served, batch, served.point)
    for point in served.predictor.known.values():
        run(engine, served, batches(served.predictor, engine.limits)[0], point)


def batches(predictor: Predictor, limits: Limits) -> list[list[Tokens]]:
    """One short text, a full batch of short ones, one as long as is read; longer than a batch only alone."""
    (short,), _ = predictor.read(["warm"])
    longest = min(predictor.max_length, limits.tokens)
    together = min(limits.rows, predictor.together or limits.rows, max(1, limits.tokens // len(short["input_ids"])))
    return [[short], [short] * together, [of_length(short, longest)]]


def of_length(row: Tokens, length: int) -> Tokens:
    """A row with so many tokens: its middle one repeated, or those behind the middle left out."""
    middle, more = len(row["input_ids"]) // 2, length - len(row["input_ids"])
    return {name: [*ids[:middle], *[ids[middle]] * more, *ids[middle - min(more, 0) :]] for name, ids in row.items()}


def run(engine: Engine, served: Served, batch: list[Tokens], point: Point) -> None:
    """Run a batch outside the queue and learn what it took."""
    request, began = Request(served, batch), engine.clock()
    found = served.predictor.run(batch, [point] * len(batch))
    rows: list[Row] = request.rows
    engine.pace.saw(engine.clock() - began, len(rows), max(row.length for row in rows), found.exit_layer)
