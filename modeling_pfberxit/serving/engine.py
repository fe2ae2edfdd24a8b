"""The engine: one thread that forms batches of waiting rows, runs them, and hands every request its answers.

A request is answered, refused when it comes (`Busy`, `Closed`), given up at its deadline (`Late`), or fails with a
reason (`Failed`): never dropped. Rows of requests that are late or whose client has gone leave the queue unrun.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from .batching import Limits, Pace, Waiting, chosen_points, form
from .calls import Answer, Meter, Point, Request, Row, Served, Watcher
from .ladder import FULL
from .outcomes import Busy, Closed, Failed, Late, attempt, report, settle, settle_by

Result = TypeVar("Result")
Job = tuple[list[Row], list[Point]]


class Engine:
    """Answers requests from one thread of its own.

    Args:
        limits: of batches and the queue.
        meter: told what happens.
        clock: seconds, as `time.monotonic`.
    """

    def __init__(
        self, limits: Limits | None = None, meter: Meter | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits, self.meter, self.clock, self.pace = limits or Limits(), meter, clock, Pace()
        self.changed = threading.Condition()
        self.queue: list[Row] = []
        self.tasks: list[Callable[[], None]] = []
        self.watched: list[Served] = []
        self.owed = False  # a batch, since a task was called
        self.judging = 0  # batches of rows that are due and not yet run to full depth
        self.draining = self.stopped = False
        self.thread = threading.Thread(target=self.work, name="engine", daemon=True)

    # ---- asked by others -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer."""
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers and takes requests."""
        return self.thread.is_alive() and not self.draining

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self.queue)

    def oldest_wait(self, now: float) -> float:
        """Seconds that the oldest row has waited; 0 where none waits."""
        with self.changed:
            return now - self.queue[0].request.arrived if self.queue else 0.0

    def submit(self, request: Request) -> Future[list[Answer]]:
        """Queue all rows of a request; its future has the answers in their order. Never blocks.

        Raises:
            Busy: the rows do not all fit. Closed: the engine is draining, or was never started.
        """
        rows = request.rows()
        with self.changed:
            if not self.alive:
                raise Closed("the server is shutting down")
            if len(self.queue) + len(rows) > self.limits.queue:
                raise Busy(self.pace.retry_after(len(self.queue)))
            if (watcher := request.model.watcher) is not None:
                for row in rows:
                    attempt(watcher.arrived, row)
            self.queue += rows
            self.changed.notify()
        return request.done

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Have the engine's thread call a function between two batches."""
        done: Future[Result] = Future()
        with self.changed:
            if not self.alive:
                raise Closed("the server is shutting down")
            self.tasks.append(partial(settle_by, done, function))
            self.changed.notify()
        return done

    def drain(self, seconds: float) -> bool:
        """Take no more requests and answer those there are; what is left after the time is given up.

        Returns:
            Whether all were answered.
        """
        with self.changed:
            self.draining = True
            self.changed.notify()
        if self.thread.ident is not None:
            self.thread.join(seconds)
        with self.changed:
            self.stopped, left, self.queue = True, self.queue, []
            self.changed.notify()
        for row in left:
            settle(row.request.done, Closed("the server has shut down"))
        return not left and not self.thread.is_alive()

    # ---- the thread ------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Run jobs until drained."""
        while self.run_next():
            pass

    def run_next(self) -> bool:
        """Run a job when there is one; False once drained. Its rows are forgotten before the next is waited for."""
        if (job := self.next_job()) is None:
            return False
        rows, points = job
        if rows:
            self.run(rows, points)
        return True

    def next_job(self) -> Job | None:
        """Wait for a batch; None once drained. An empty one where something else was done."""
        with self.changed:
            while not self.tasks or (self.owed and self.queue):
                now = self.clock()
                self.leave_out(now)
                if not self.draining:
                    self.look_back(now)
                job, pause = self.formed(now) if self.queue else (None, None)
                self.owed = False
                if job is not None:
                    return job
                if self.tasks:
                    break
                if not self.queue and (self.draining or self.stopped):
                    return None
                self.changed.wait(pause)
            task, self.owed = self.tasks.pop(0), True
        task()
        del task  # it holds the error that it raised, whose frames lead back here: a circle
        return [], []

    def leave_out(self, now: float) -> None:
        """Take rows of requests that are gone or late out of the queue."""
        for row in self.queue:
            if now >= row.request.deadline:
                settle(row.request.done, Late("the deadline has passed"))
        queued, self.queue = self.queue, []
        for row in queued:
            self.count_left(row) if row.request.done.done() else self.queue.append(row)

    def formed(self, now: float) -> tuple[Job | None, float]:
        """The next batch, out of the queue; or None and the seconds after which to look again."""
        waited = now - self.queue[0].request.arrived
        points = attempt(chosen_points, self.queue, now, self.pace, self.limits.tokens)
        points = points or [row.request.point or most_careful(row.request.model) for row in self.queue]
        model = self.queue[0].request.model.predictor
        batch = form([waiting(row, point) for row, point in zip(self.queue, points)], self.limits, model.together)
        if not (batch.full or self.draining or waited >= self.limits.wait):
            return None, self.limits.wait - waited
        taken = set(batch.places)
        rows = [self.queue[place] for place in batch.places]
        self.queue = [row for place, row in enumerate(self.queue) if place not in taken]
        return (rows, [points[place] for place in batch.places]), 0.0

    def run(self, rows: list[Row], points: list[Point]) -> None:
        """Answer a batch."""
        served, started = rows[0].request.model, self.clock()
        try:
            found = served.predictor.run([row.tokens for row in rows], points)
        except Exception as error:
            report(error)
            return self.run_again(rows, points)
        seconds, longest = self.clock() - started, max(row.length for row in rows)
        self.pace.saw(seconds, len(rows), longest, found.exit_layer)
        answers = [
            Answer(logits, int(layer), point.name, started - row.request.arrived, seconds)
            for row, point, logits, layer in zip(rows, points, found.logits, found.exit_layer)
        ]
        self.deliver(rows, answers)
        self.tell(served, rows, answers, longest * len(rows), seconds)

    def run_again(self, rows: list[Row], points: list[Point]) -> None:
        """Answer each row of a batch that failed alone, so that one row cannot fail others; give up one that was."""
        if len(rows) > 1:
            for row, point in zip(rows, points):
                self.run([row], [point])
        else:
            settle(rows[0].request.done, Failed("the model could not answer"))
            self.count_left(rows[0])

    def deliver(self, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
        """Hand each request its answers as soon as it has them all."""
        for row, answer in zip(rows, answers):
            row.request.answers[row.number] = answer
        for request in dict.fromkeys(row.request for row in rows):
            if None not in (found := request.answers):
                settle(request.done, list(found))

    def tell(self, served: Served, rows: Sequence[Row], answers: Sequence[Answer], tokens: int, seconds: float) -> None:
        """Tell meter and watcher of a batch."""
        if self.meter is not None:
            attempt(self.meter.batch, served.name, rows, answers, tokens, seconds)
        if (watcher := served.watcher) is not None:
            for row, answer in zip(rows, answers):
                attempt(watcher.answered, row, answer, answer.rung)

    def count_left(self, row: Row) -> None:
        """Tell the meter that a row leaves without an answer, and why."""
        if self.meter is not None:
            done = row.request.done
            why = "gone" if done.cancelled() else "late" if isinstance(done.exception(0), Late) else "failed"
            attempt(self.meter.left, row.request.model.name, 1, why)

    # ---- rows that are held against full depth ---------------------------------------------------------------------

    def look_back(self, now: float) -> None:
        """Have what watchers are due run at full depth, a batch at a time, between those of the queue."""
        for served in self.watched:
            if (watcher := served.watcher) is not None and not self.judging:
                rows = list(attempt(watcher.due, now, not self.queue) or ())
                while rows:
                    lengths = [Waiting(None, row.length) for row in rows]
                    taken = set(form(lengths, self.limits, served.predictor.together).places)
                    batch = [rows[place] for place in sorted(taken)]
                    rows = [row for place, row in enumerate(rows) if place not in taken]
                    self.judging += 1
                    self.tasks.append(partial(self.judge, served, watcher, batch))

    def judge(self, served: Served, watcher: Watcher, rows: list[Row]) -> None:
        """Run rows to full depth and give their answers to the watcher."""
        self.judging -= 1
        full = most_careful(served)
        found = attempt(served.predictor.run, [row.tokens for row in rows], [full] * len(rows))
        for row, logits, layer in zip(rows, *(found or ((), ()))):
            attempt(watcher.judged, row, Answer(logits, int(layer), full.name))


def most_careful(served: Served) -> Point:
    """Full depth where a model has it, or else the rule it is served by."""
    return served.predictor.known.get(FULL, served.point)


def waiting(row: Row, point: Point) -> Waiting:
    """A row as batches see it: rows of one model share them, under one policy unless its predictor mixes policies."""
    served = row.request.model
    return Waiting((id(served), None if served.predictor.mixes else point.policy), row.length)
