"""What replicas count, in Ray's own metrics: every node of a cluster exports them for Prometheus on one port."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ray.util.metrics import Counter, Histogram

from .calls import Answer, Row

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
WHERE = b"# Counted by every node of the cluster: scrape the port of Ray's metrics (docs: Scaling).\n"


class RayMeter:
    """A `calls.Meter`; it knows too which share of the time its replica computes.

    Args:
        clock: seconds, as `time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.ran, self.asked = clock, 0.0, clock()
        self.requests = Counter("pfberxit_requests", "answered, by route and status", ("route", "status"))
        self.latency = Histogram("pfberxit_request_seconds", "until the answer", SECONDS, ("route",))
        self.computing = Histogram("pfberxit_batch_seconds", "of a batch", SECONDS, ("model",))
        self.tokens = Counter("pfberxit_batch_tokens", "run, padding included", ("model",))
        self.exits = Counter("pfberxit_exit_layer", "rows, by the layer they left after", ("model", "layer", "rung"))
        self.lost = Counter("pfberxit_rows_left", "the queue without an answer, and why", ("model", "why"))

    def request(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request has its answer."""
        self.requests.inc(tags={"route": route, "status": str(status)})
        self.latency.observe(seconds, {"route": route})

    def batch(self, model: str, rows: Sequence[Row], answers: Sequence[Answer], tokens: int, seconds: float) -> None:
        """A batch was run."""
        self.ran += seconds
        self.computing.observe(seconds, {"model": model})
        self.tokens.inc(tokens, {"model": model})
        for answer in answers:
            self.exits.inc(tags={"model": model, "layer": str(answer.exit_layer), "rung": answer.rung})

    def left(self, model: str, rows: int, why: str) -> None:
        """Rows left the queue without an answer."""
        self.lost.inc(rows, {"model": model, "why": why})

    def text(self) -> tuple[bytes, str]:
        """For `/metrics`, which reaches one replica of many: where the numbers are."""
        return WHERE, "text/plain"

    def busy(self) -> float:
        """The share of the time since this was last asked in which batches ran."""
        now, ran = self.clock(), self.ran
        share, self.asked, self.ran = min(1.0, ran / max(now - self.asked, 1e-9)), now, self.ran - ran
        return share
