"""How much traffic a core carries, by length of texts and operating point, and what a trace would do: simulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.bounds import share
from ..evaluation.tables import table
from ..model.validation import each, entry_of, real, whole
from ..serving.batching import Limits
from ..serving.controller import Controller, Fixed, Reaction, Steering
from ..serving.ladder import Ladder
from .batch_times import BatchTimes
from .runs import TARGET, Outcome
from .simulator import Simulator, Texts
from .traces import GAPS, SHAPES, Trace, steady

SHARE = 0.7  # of what a core carries that one plans with, so that a burst finds room
Steer = Callable[[], Steering]


@dataclass(frozen=True)
class Machine:
    """What a simulation knows of a server.

    Args:
        times: of batches, on one core.
        request: seconds of the core that a request takes beside its batch.
        outside: seconds that a client waits for what is not the server's.
    """

    times: BatchTimes
    request: float = 0.002
    limits: Limits = Limits()
    outside: float = 0.0

    def simulator(self, texts: Texts, seed: int = 0) -> Simulator:
        """The server, asked some texts."""
        return Simulator(texts, self.times, self.limits, self.request, self.outside, seed)

    def outcome(
        self, texts: Texts, trace: Trace, rate: float, steer: Steer, workers: int = 1, gaps: str = "poisson",
        seed: int = 0,
    ) -> Outcome:  # fmt: skip
        """What a trace comes to, at a usual rate for each worker."""
        arrivals = trace.arrivals(rate * workers, gaps, seed)
        run = self.simulator(texts, seed).run(arrivals, trace.seconds, [steer() for _ in range(workers)])
        return Outcome.of(run)

    def most(self, texts: Texts, rung: str) -> float:
        """Requests a second that a core could run in full batches: no queue carries more."""
        lengths, layers = texts.lengths, texts.layers[rung]
        size = max(1, min(self.limits.rows, int(self.limits.tokens // max(1.0, lengths.mean()))))
        order = np.argsort(lengths, kind="stable")
        parts = [order[begin : begin + size] for begin in range(0, len(order), size)]
        seconds = sum(self.times.seconds(lengths[part], layers[part]) for part in parts)
        return 1 / (seconds / len(lengths) + self.request)

    def carries(self, texts: Texts, ladder: Ladder, rung: str, requests: int = 4_000, steps: int = 7) -> float:
        """The highest steady rate at which 99 of 100 answers are in time and none is refused, in requests a second.

        Args:
            requests: simulated at each rate that is tried, about.

        Returns:
            0.0 where a single request is too slow.
        """
        low, high = 0.0, self.most(texts, rung)
        seconds = requests / high
        for _ in range(steps):
            rate = (low + high) / 2
            found = self.outcome(texts, steady(seconds), rate, lambda: Fixed(ladder, rung))
            in_time = found.p99 <= 1000 * TARGET and not found.refused
            low, high = (rate, high) if in_time else (low, rate)
        return low


# ---- tables ----------------------------------------------------------------------------------------------------------


def capacities(machine: Machine, texts: Texts, ladder: Ladder, lengths: Sequence[int]) -> dict[tuple[str, str], float]:
    """What a core carries, by length (`as they are`: a mix) and rung."""
    cases = {str(length): texts.of_length(length) for length in lengths}
    cases["as they are"] = texts
    return {
        (name, rung.name): machine.carries(case, ladder, rung.name) for name, case in cases.items() for rung in ladder
    }


def sizes(found: dict[tuple[str, str], float], rates: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)) -> str:
    """What a core carries, and the cores that so many requests a minute take, as a table."""
    titles = ["tokens", "operating point", "requests/s a core", *(f"cores for {rate:,}/min" for rate in rates)]
    rows = []
    for names, carries in found.items():
        cores = [f"{math.ceil(rate / 60 / (SHARE * carries)):,}" if carries else "too slow" for rate in rates]
        rows.append([*names, f"{carries:.1f}", *cores])
    return table(titles, rows, align="ll")


@dataclass(frozen=True)
class Plan:
    """Which traffic is simulated.

    Args:
        rate: the usual requests a second for each worker.
        shapes, gaps: names in `SHAPES` and `GAPS`.
        workers: servers of one core each.
        floor: of the controller.
        seeds: traces drawn; outcomes are means.
    """

    rate: float
    seconds: float = 120.0
    shapes: Sequence[str] = tuple(SHAPES)
    gaps: Sequence[str] = ("poisson", "pareto")
    workers: Sequence[int] = (1, 4)
    floor: float | None = None
    reaction: Reaction = Reaction()
    seeds: int = 3

    def __post_init__(self) -> None:
        for name, check in (("shapes", entry_of(SHAPES)), ("gaps", entry_of(GAPS)), ("workers", whole(1))):
            each(check)(name, getattr(self, name))
        real(0.0)("rate", self.rate)
        if self.floor is not None:
            share("differ", self.floor)

    def steered(self, ladder: Ladder) -> dict[str, Steer]:
        """Every certified rung down to the floor on its own, and the controller among them; full depth without any."""
        within = Controller(ladder, self.floor).within()
        found: dict[str, Steer] = {name: lambda name=name: Fixed(ladder, name) for name in within}  # type: ignore[misc]
        if len(within) > 2:
            found["controller"] = lambda: Controller(ladder, self.floor, self.reaction)
        return found


def outcomes(machine: Machine, texts: Texts, ladder: Ladder, plan: Plan) -> dict[tuple[str, ...], Outcome]:
    """What each trace comes to, by shape, gaps, workers and what chose the rungs."""
    found = dict[tuple[str, ...], Outcome]()
    for shape in plan.shapes:
        for gaps in plan.gaps:
            for workers in plan.workers:
                for name, steer in plan.steered(ladder).items():
                    trace = SHAPES[shape](plan.seconds)
                    runs = [
                        machine.outcome(texts, trace, plan.rate, steer, workers, gaps, seed)
                        for seed in range(plan.seeds)
                    ]
                    found[shape, gaps, str(workers), name] = mean(runs)
    return found


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean of every number."""
    values: dict[str, Any] = {
        name: float(np.mean([getattr(one, name) for one in outcomes])) for name in vars(outcomes[0])
    }
    return Outcome(**{**values, "requests": int(values["requests"])})
