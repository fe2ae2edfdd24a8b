"""What a server did, as Prometheus reads it at `/metrics`.

Counters and histograms grow as things happen; gauges are read off the engine and its models when they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .calls import Answer, Row, Served
from .watching import CertificateWatcher

SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Queued(Protocol):
    """What the gauges read off an engine."""

    @property
    def waiting(self) -> int:
        """Rows in the queue."""

    def oldest_wait(self, now: float) -> float:
        """Seconds that the oldest row has waited."""


class PrometheusMeter:
    """A `calls.Meter` of one server, in a registry of its own.

    Args:
        clock: seconds, as the engine's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.models: Mapping[str, Served] = {}
        self.engine: Queued | None = None
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "pfberxit_requests", "HTTP requests answered or refused", ["route", "status"], registry=own
        )
        self.latency = Histogram(
            "pfberxit_request_seconds", "from request to answer", ["route"], buckets=SECONDS, registry=own
        )
        self.waited = Histogram(
            "pfberxit_queue_seconds", "a row waited for its batch", ["model"], buckets=SECONDS, registry=own
        )
        self.ran = Histogram("pfberxit_batch_seconds", "a batch ran", ["model"], buckets=SECONDS, registry=own)
        self.rows = Histogram("pfberxit_batch_rows", "rows in a batch", ["model"], buckets=ROWS, registry=own)
        self.tokens = Histogram(
            "pfberxit_batch_tokens", "tokens in a batch, padding included", ["model"], buckets=TOKENS, registry=own
        )
        self.layers = Counter("pfberxit_exit_layer", "rows by executed layers", ["model", "layer"], registry=own)
        self.rungs = Counter("pfberxit_rung_rows", "rows by the point that answered", ["model", "rung"], registry=own)
        self.gone = Counter("pfberxit_left_rows", "rows that left without an answer", ["model", "why"], registry=own)
        own.register(self)
        ProcessCollector(registry=own)

    # ---- what happens ------------------------------------------------------------------------------------------------

    def request(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request has its answer."""
        self.requests.labels(route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def batch(self, model: str, rows: Sequence[Row], answers: Sequence[Answer], tokens: int, seconds: float) -> None:
        """A batch was run; `tokens` with padding."""
        self.ran.labels(model).observe(seconds)
        self.rows.labels(model).observe(len(rows))
        self.tokens.labels(model).observe(tokens)
        for answer in answers:
            self.waited.labels(model).observe(answer.waited)
            self.layers.labels(model, str(answer.exit_layer)).inc()
            self.rungs.labels(model, answer.rung).inc()

    def left(self, model: str, rows: int, why: str) -> None:
        """Rows left the queue without an answer."""
        self.gone.labels(model, why).inc(rows)

    # ---- what is read when asked for ---------------------------------------------------------------------------------

    def follow(self, engine: Queued, models: Mapping[str, Served]) -> None:
        """Read the queue's gauges off an engine, rung and agreement off its models, from now on."""
        self.engine, self.models = engine, models

    def text(self) -> tuple[bytes, str]:
        """All metrics as Prometheus reads them, and their content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """The gauges now; the registry calls it."""
        if self.engine is not None:
            yield GaugeMetricFamily("pfberxit_queue_rows", "rows that wait", self.engine.waiting)
            age = self.engine.oldest_wait(self.clock())
            yield GaugeMetricFamily("pfberxit_queue_age_seconds", "how long the oldest row has waited", age)
        rung = GaugeMetricFamily("pfberxit_rung", "rung that answers now, 0 is full depth", labels=["model"])
        for name, each in self.models.items():
            if each.controller is not None:
                rung.add_metric([name], each.controller.number)
        yield rung
        watched = ((name, each.watcher) for name, each in self.models.items())
        yield from agreement_of({name: each for name, each in watched if isinstance(each, CertificateWatcher)})


def agreement_of(watched: dict[str, CertificateWatcher]) -> Iterator[Metric]:
    """What watchers found, by the model they watch."""
    judged = CounterMetricFamily(
        "pfberxit_judged_rows", "rows held against full depth", labels=["model", "rung", "same"]
    )
    waiting = GaugeMetricFamily("pfberxit_shadow_rows", "rows that wait for full depth", labels=["model"])
    dropped = CounterMetricFamily("pfberxit_shadow_dropped_rows", "rows there was no room for", labels=["model"])
    agreement = GaugeMetricFamily(
        "pfberxit_agreement", "share of judged answers that are full depth's", labels=["model"]
    )
    evidence = GaugeMetricFamily("pfberxit_agreement_evidence", "against the certificates, now", labels=["model"])
    alarm = GaugeMetricFamily("pfberxit_agreement_alarm", "1: the certificates no longer hold", labels=["model"])
    for name, each in watched.items():
        for rung, rows, missed in zip(each.rungs, each.alarm.rows.tolist(), each.alarm.missed.tolist()):
            judged.add_metric([name, rung.name, "yes"], rows - missed)
            judged.add_metric([name, rung.name, "no"], missed)
        waiting.add_metric([name], len(each.waiting))
        dropped.add_metric([name], each.dropped)
        if each.agreement is not None:
            agreement.add_metric([name], each.agreement)
        evidence.add_metric([name], each.alarm.evidence)
        alarm.add_metric([name], float(each.alarm.ringing))
    yield from (judged, waiting, dropped, agreement, evidence, alarm)
