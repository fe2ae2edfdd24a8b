"""What became of traffic, simulated or real, in the numbers one asks for: how long, how many, how deep, how alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..evaluation.tables import table

TARGET = 0.2  # seconds within which an answer is good


@dataclass
class Run:
    """What became of M requests; NaN, 0 and an empty name where one was refused.

    Args:
        seconds: of the trace.
        arrivals, latency: seconds, (M,).
        layers: executed, (M,).
        differs: from full depth, (M,).
        rungs: that answered, (M,).
        busy: seconds that workers ran batches, or a server's CPU seconds, in all; NaN: not known.
    """

    seconds: float
    arrivals: np.ndarray
    latency: np.ndarray
    layers: np.ndarray
    differs: np.ndarray
    rungs: np.ndarray
    busy: float = 0.0

    @classmethod
    def of(cls, arrivals: np.ndarray, seconds: float) -> Run:
        """Before anything was answered."""
        many = len(arrivals)
        nothing = np.zeros(many, int), np.zeros(many, bool), np.full(many, "", object)
        return cls(seconds, arrivals, np.full(many, np.nan), *nothing)

    def between(self, begin: float, end: float) -> Run:
        """The requests that arrived in a part of the trace; `busy` is not known of it."""
        at = (self.arrivals >= begin) & (self.arrivals < end)
        parts = {name: getattr(self, name)[at] for name in ("arrivals", "latency", "layers", "differs", "rungs")}
        return Run(end - begin, **parts, busy=np.nan)


@dataclass(frozen=True)
class Outcome:
    """A run in numbers.

    Args:
        rate: requests a second that arrived.
        p50, p99: milliseconds of those answered.
        goodput: answers a second within the target.
        refused: share of the requests.
        depth: layers, mean.
        agreement: share of the answers that are full depth's.
        busy: milliseconds of work a request.
    """

    requests: int
    rate: float
    p50: float
    p99: float
    goodput: float
    refused: float
    depth: float
    agreement: float
    busy: float

    @classmethod
    def of(cls, run: Run, target: float = TARGET) -> Outcome:
        """Count a run; NaN where there was no request."""
        answered = ~np.isnan(run.latency)
        many, some = len(run.arrivals), answered.any()
        p50, p99 = np.quantile(run.latency[answered], [0.5, 0.99]) * 1000 if some else (np.nan, np.nan)
        return cls(
            many,
            many / run.seconds,
            float(p50),
            float(p99),
            float((run.latency[answered] <= target).sum() / run.seconds),
            float(1 - answered.mean()) if many else np.nan,
            float(run.layers[answered].mean()) if some else np.nan,
            float(1 - run.differs[answered].mean()) if some else np.nan,
            1000 * run.busy / max(1, int(answered.sum())),
        )

    def cells(self) -> list[str]:
        """As a table shows it, under `TITLES`."""
        work = "–" if np.isnan(self.busy) else f"{self.busy:.1f}"
        return [
            f"{self.rate:.1f}", f"{self.p50:.0f}", f"{self.p99:.0f}", f"{self.goodput:.1f}",
            f"{100 * self.refused:.1f} %", f"{self.depth:.2f}", f"{100 * self.agreement:.2f} %", work,
        ]  # fmt: skip


TITLES = ["requests/s", "p50 ms", "p99 ms", "in time/s", "refused", "layers", "agree", "ms work"]


def as_markdown(named: Mapping[tuple[str, ...], Outcome], titles: list[str]) -> str:
    """A row for each outcome, behind what it is of."""
    rows = [[*names, *outcome.cells()] for names, outcome in named.items()]
    return table([*titles, *TITLES], rows, align="l" * len(titles))
