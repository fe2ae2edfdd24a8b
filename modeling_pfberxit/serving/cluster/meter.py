"""What replicas count, in Ray's own metrics: every node of a cluster exports them for Prometheus on one port.

Names are those of `meter.PrometheusMeter`. Gauges are set whenever Ray asks a replica how busy it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from ..calls import Answer, Row, Served
from ..meter import SECONDS, Queued
from ..watching import CertificateWatcher
from .queue_age import BUSY, OLDEST_WAIT

WHERE = b"# Counted by every node of the cluster: scrape the port of Ray's metrics (docs: Beyond one process).\n"


class RayMeter:
    """A `calls.Meter` that also knows which share of the time its replica computes.

    Args:
        clock: seconds, as the engine's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.ran, self.asked = clock, 0.0, clock()
        self.engine: Queued | None = None
        self.models: Mapping[str, Served] = {}
        bounds, model = list(SECONDS), ("model",)
        self.requests = Counter("pfberxit_requests", "HTTP requests answered or refused", ("route", "status"))
        self.latency = Histogram("pfberxit_request_seconds", "from request to answer", bounds, ("route",))
        self.batches = Histogram("pfberxit_batch_seconds", "a batch ran", bounds, model)
        self.layers = Counter("pfberxit_exit_layer", "rows by executed layers", ("model", "layer"))
        self.rungs = Counter("pfberxit_rung_rows", "rows by the point that answered", ("model", "rung"))
        self.gone = Counter("pfberxit_left_rows", "rows that left without an answer", ("model", "why"))
        self.rows = Gauge("pfberxit_queue_rows", "rows that wait")
        self.age = Gauge("pfberxit_queue_age_seconds", "how long the oldest row has waited")
        self.rung = Gauge("pfberxit_rung", "rung that answers now, 0 is full depth", model)
        self.agreement = Gauge("pfberxit_agreement", "share of judged answers that are full depth's", model)
        self.alarm = Gauge("pfberxit_agreement_alarm", "1: the certificates no longer hold", model)

    def request(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request has its answer."""
        self.requests.inc(tags={"route": route, "status": str(status)})
        self.latency.observe(seconds, {"route": route})

    def batch(self, model: str, rows: Sequence[Row], answers: Sequence[Answer], tokens: int, seconds: float) -> None:
        """A batch was run."""
        self.ran += seconds
        self.batches.observe(max(seconds, 1e-9), {"model": model})
        for answer in answers:
            self.layers.inc(tags={"model": model, "layer": str(answer.exit_layer)})
            self.rungs.inc(tags={"model": model, "rung": answer.rung})

    def left(self, model: str, rows: int, why: str) -> None:
        """Rows left the queue without an answer."""
        self.gone.inc(rows, {"model": model, "why": why})

    def follow(self, engine: Queued, models: Mapping[str, Served]) -> None:
        """Read gauges off an engine and its models from now on."""
        self.engine, self.models = engine, models

    def text(self) -> tuple[bytes, str]:
        """For `/metrics`, which reaches one replica of many: where the numbers are."""
        return WHERE, "text/plain"

    def load(self) -> dict[str, float]:
        """Set the gauges; what `queue_age.QueueAge` reads: the queue's age, and the share of the time it computed."""
        now, ran = self.clock(), self.ran
        busy = min(1.0, ran / max(now - self.asked, 1e-9))
        self.asked, self.ran = now, self.ran - ran
        age = 0.0 if self.engine is None else self.engine.oldest_wait(now)
        self.age.set(age)
        self.rows.set(0 if self.engine is None else self.engine.waiting)
        for name, each in self.models.items():
            if each.controller is not None:
                self.rung.set(each.controller.number, {"model": name})
            if isinstance(watcher := each.watcher, CertificateWatcher):
                self.alarm.set(float(watcher.alarm.ringing), {"model": name})
                if watcher.agreement is not None:
                    self.agreement.set(watcher.agreement, {"model": name})
        return {OLDEST_WAIT: age, BUSY: busy}
