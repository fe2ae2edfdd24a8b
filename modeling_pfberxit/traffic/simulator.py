"""What traffic would do to a server, without one: arrivals, queues, batches and what they take, event by event.

Batches are formed by the engine's own function and rungs are chosen by the server's own controller. A row's exit layer
and whether its answer differs from full depth's were recorded for every rung; what a batch takes was measured.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..evaluation.recording import Recording
from ..evaluation.replay import same_answers
from ..model.exit_policy import ExitPolicy
from ..model.validation import refuse
from ..serving.batching import Limits, Waiting, form
from ..serving.controller import Steering
from .batch_times import BatchTimes
from .runs import Run
from .traces import drawn

TICK = 1e-9  # seconds by which a worker looks too late, so that rounding cannot have it look too early


@dataclass(frozen=True)
class Texts:
    """Rows that requests are drawn from.

    Args:
        lengths: tokens, (N,).
        layers: executed under each rung, by its name, (N,).
        differs: whether the answer is another than full depth's, by rung, (N,).
    """

    lengths: np.ndarray
    layers: dict[str, np.ndarray]
    differs: dict[str, np.ndarray]

    def of_length(self, length: int) -> Texts:
        """The same rows, were all of them so long."""
        return Texts(np.full_like(self.lengths, length), self.layers, self.differs)


def texts_of(recording: Recording, policies: dict[str, ExitPolicy], tolerance: float = 0.0) -> Texts:
    """What a recording says of its rows under each rung's policy."""
    full, layers, differs = recording.evidence.logits[:, -1], {}, {}
    for name, policy in policies.items():
        answers, depths = recording.replay(policy)
        layers[name] = depths.numpy()
        differs[name] = ~same_answers(answers, full, recording.problem_type, tolerance).numpy()
    return Texts(recording.lengths.numpy(), layers, differs)


@dataclass
class Worker:
    """One engine: rows that wait, by number, and whether it runs a batch."""

    steering: Steering
    queue: list[int] = field(default_factory=list)
    running: int = 0  # rows in its batch


class Simulator:
    """Workers with a queue each, behind a router that knows two queues, drawn at random, and takes the shorter.

    Args:
        texts: what requests ask, one row each, drawn at random.
        times: what a batch takes.
        limits: of batches and queues, as the server has them.
        request: seconds that a worker's core spends on each request beside the batch: HTTP and tokens.
        outside: seconds that its client waits for nobody's core: the way there and back.
        seed: of the draws.
    """

    def __init__(
        self, texts: Texts, times: BatchTimes, limits: Limits | None = None, request: float = 0.0,
        outside: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.texts, self.times, self.limits = texts, times, limits or Limits()
        self.request, self.outside, self.seed = request, outside, seed

    def run(self, arrivals: np.ndarray, seconds: float, steering: Sequence[Steering]) -> Run:
        """Serve a trace to its end and beyond, until all that was queued is answered.

        Args:
            arrivals: seconds, sorted, (M,).
            seconds: that the trace lasts.
            steering: what chooses rungs, one for every worker.

        Raises:
            ValueError: no worker.
        """
        if not steering:
            refuse("steering", steering, "one for each worker, of which there is one at least")
        generator = np.random.default_rng(self.seed)
        self.rows = drawn(len(self.texts.lengths), len(arrivals), generator)
        self.pairs = generator.integers(len(steering), size=(len(arrivals), 2))
        self.workers, self.found = [Worker(each) for each in steering], Run.of(arrivals, seconds)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.number = 0
        for number, at in enumerate(arrivals):
            while self.events and self.events[0][0] <= at:
                self.next_event()
            self.arrive(number, float(at))
        while self.events:
            self.next_event()
        return self.found

    def later(self, at: float, what: Callable[[float], None]) -> None:
        """Plan an event; those of one moment happen in the order they were planned."""
        self.number += 1
        heapq.heappush(self.events, (at, self.number, what))

    def next_event(self) -> None:
        """Let the earliest happen."""
        at, _, what = heapq.heappop(self.events)
        what(at)

    def arrive(self, number: int, now: float) -> None:
        """Queue a request at one of its two workers, or refuse it."""
        worker = min((self.workers[each] for each in self.pairs[number]), key=lambda each: len(each.queue))
        if len(worker.queue) < self.limits.queue:
            worker.queue.append(number)
            self.look(worker, now)

    def look(self, worker: Worker, now: float) -> None:
        """Begin a batch if the worker is free and its rows need not wait for more."""
        if worker.running or not worker.queue:
            return
        waited = now - self.found.arrivals[worker.queue[0]]
        rung = worker.steering.rung(now, waited)
        lengths = self.texts.lengths[self.rows[worker.queue]]
        batch = form([Waiting(rung, int(length)) for length in lengths], self.limits)
        if batch.full or waited >= self.limits.wait:
            chosen = [worker.queue[place] for place in batch.places]
            taken = set(chosen)
            worker.queue = [number for number in worker.queue if number not in taken]
            self.begin(worker, np.array(chosen), rung, now)
        else:
            self.later(now + self.limits.wait - waited + TICK, lambda at: self.look(worker, at))

    def begin(self, worker: Worker, chosen: np.ndarray, rung: str, now: float) -> None:
        """Run a batch of requests, by number."""
        rows, found = self.rows[chosen], self.found
        layers = self.texts.layers[rung][rows]
        takes = self.times.seconds(self.texts.lengths[rows], layers) + self.request * len(rows)
        worker.running = len(rows)
        found.latency[chosen] = now + takes + self.outside - found.arrivals[chosen]
        found.layers[chosen], found.differs[chosen] = layers, self.texts.differs[rung][rows]
        found.rungs[chosen] = rung
        found.busy += takes
        self.later(now + takes, lambda at: self.end(worker, at))

    def end(self, worker: Worker, now: float) -> None:
        """A batch has its answers; the next may begin."""
        worker.running = 0
        self.look(worker, now)
