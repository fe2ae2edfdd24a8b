"""The engine: every row answered, delayed or given up with a reason, none lost, none mixed up."""

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from scripted import SECRET, Scripted, wait_until

from modeling_pfberxit.serving.batching import Limits, Pace, Waiting, chosen_points, form
from modeling_pfberxit.serving.calls import Point, Request, Served
from modeling_pfberxit.serving.engine import Engine
from modeling_pfberxit.serving.ladder import FULL
from modeling_pfberxit.serving.outcomes import Busy, Closed, Failed, Late


def rows(*lengths: int, key: str = "") -> list[Waiting]:
    return [Waiting(key, length) for length in lengths]


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_oldest_row_and_those_nearest_in_length():
    assert form(rows(10, 50, 11, 9), Limits(tokens=30)).places == [0, 2]
    assert form(rows(10, 50, 11, 9), Limits(tokens=33)).places == [0, 2, 3]


def test_padding_counts_as_tokens_and_has_a_limit_of_its_own():
    assert form(rows(4, 8), Limits(tokens=15)).places == [0]
    assert form(rows(4, 8), Limits(tokens=16, padding=0.25)).places == [0, 1]
    assert form(rows(4, 8), Limits(tokens=16, padding=0.24)).places == [0]


def test_a_row_beyond_the_limit_runs_alone():
    assert form(rows(900, 900), Limits(tokens=512)) == ([0], True)


def test_rows_of_different_keys_share_no_batch():
    assert form([*rows(5, key="a"), *rows(5, key="b"), *rows(5, key="a")], Limits()).places == [0, 2]


def test_a_batch_is_full_when_waiting_could_add_nothing():
    assert not form(rows(10), Limits(tokens=20)).full
    assert form(rows(10, 10), Limits(tokens=20)).full
    assert form(rows(10, 10), Limits(rows=2)).full
    assert form(rows(10), Limits(), together=1).full


def test_every_row_gets_its_turn_whatever_comes_after_it():
    drawn = random.Random(0)
    waiting = rows(*(drawn.choice((5, 6, 7, 300)) for _ in range(60)))
    turns = Counter()
    while waiting:
        taken = set(form(waiting, Limits(tokens=64, rows=8)).places)
        assert 0 in taken
        turns[len(taken)] += 1
        waiting = [row for place, row in enumerate(waiting) if place not in taken]
    assert turns[8] > 3


# ---- the engine ------------------------------------------------------------------------------------------------------


class Counting:
    """A meter that remembers."""

    def __init__(self):
        self.lost, self.answered = Counter(), 0

    def batch(self, model, rows, answers, tokens, seconds):
        self.answered += len(rows)

    def left(self, model, rows, why):
        self.lost[why] += rows


@pytest.fixture
def made():
    """Makes an engine and the model it serves; drains all of them at the end."""
    engines = []

    def make(seconds: float = 0.0, **limits):
        engine = Engine(Limits(**limits), Counting())
        engine.start()
        engines.append(engine)
        return engine, Served("scripted", Scripted(seconds), Point("default", None))

    yield make
    for engine in engines:
        engine.drain(5)


def asked(served: Served, *first: int, **more) -> Request:
    more = {"arrived": time.monotonic(), **more}
    return Request(served, [{"input_ids": [number, 2, 3]} for number in first], **more)


def hold(engine: Engine, served: Served) -> None:
    """Keep the engine busy with a row until `free` is set."""
    served.predictor.free.clear()
    engine.submit(asked(served, 1))
    wait_until(lambda: engine.waiting == 0)


def test_every_request_gets_its_own_answers_in_its_own_order(made):
    engine, served = made(rows=5)
    drawn = random.Random(1)
    requests = [asked(served, *(drawn.randrange(10, 600) for _ in range(drawn.randint(1, 7)))) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(engine.submit, requests))
    for request, future in zip(requests, futures):
        wanted = [row.tokens["input_ids"][0] for row in request.rows()]
        assert [answer.logits[1] for answer in future.result(20)] == wanted
    assert max(len(ids) for ids, _ in served.predictor.batches) == 5


def test_a_request_that_does_not_fit_whole_is_refused_and_none_of_it_runs(made):
    engine, served = made(queue=4)
    hold(engine, served)
    first = engine.submit(asked(served, 10, 11, 12))
    with pytest.raises(Busy) as refused:
        engine.submit(asked(served, 20, 21))
    assert refused.value.retry_after >= 1 and engine.waiting == 3
    served.predictor.free.set()
    assert len(first.result(5)) == 3
    assert 20 not in {row[0] for ids, _ in served.predictor.batches for row in ids}


def test_rows_of_those_who_went_or_came_too_late_leave_the_queue_unrun(made):
    engine, served = made()
    hold(engine, served)
    gone = engine.submit(asked(served, 20, 21))
    late = engine.submit(asked(served, 30, deadline=engine.clock()))
    kept = engine.submit(asked(served, 40))
    assert gone.cancel()
    served.predictor.free.set()
    assert kept.result(5)[0].logits[1] == 40
    assert isinstance(late.exception(5), Late)
    assert {row[0] for ids, _ in served.predictor.batches for row in ids} == {1, 40}
    assert engine.meter.lost == {"gone": 2, "late": 1}


def test_one_row_that_fails_fails_no_other_and_nothing_of_it_is_logged(made, caplog):
    engine, served = made()
    hold(engine, served)
    with caplog.at_level(logging.DEBUG):
        bad, good = engine.submit(asked(served, 666)), engine.submit(asked(served, 40))
        served.predictor.free.set()
        assert good.result(5)[0].logits[1] == 40
        assert isinstance(bad.exception(5), Failed) and SECRET not in str(bad.exception())
    assert "RuntimeError" in caplog.text and SECRET not in caplog.text


def test_draining_answers_all_there_are_and_takes_no_more(made):
    engine, served = made(rows=1)
    hold(engine, served)
    waiting = [engine.submit(asked(served, number)) for number in range(10, 20)]
    drained = ThreadPoolExecutor(1).submit(engine.drain, 10)
    wait_until(lambda: engine.draining)
    with pytest.raises(Closed):
        engine.submit(asked(served, 99))
    served.predictor.free.set()
    assert drained.result(10) is True
    assert [future.result(0)[0].logits[1] for future in waiting] == list(range(10, 20))


def test_what_is_left_after_the_drain_fails_visibly(made):
    engine, served = made(rows=1)
    hold(engine, served)
    left = engine.submit(asked(served, 10))
    assert engine.drain(0.05) is False
    assert isinstance(left.exception(0), Closed)
    served.predictor.free.set()


def test_an_idle_engine_waits_for_a_batch_to_fill_no_longer_than_told(made):
    engine, served = made(wait=0.2, rows=3)
    early, later = engine.submit(asked(served, 10)), engine.submit(asked(served, 11))
    assert early.result(5)[0].waited >= 0 and later.result(5)
    assert [[row[0] for row in ids] for ids, _ in served.predictor.batches] == [[10, 11]]
    full = [engine.submit(asked(served, number, arrived=engine.clock())) for number in (20, 21, 22)]
    assert max(future.result(5)[0].waited for future in full) < 0.2


def test_functions_are_called_between_batches(made):
    engine, served = made()
    assert engine.call(lambda: threading.current_thread().name).result(5) == "engine"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0).result(5)
    assert engine.submit(asked(served, 10)).result(5)


def test_functions_and_batches_take_turns_so_that_neither_starves_the_other(made):
    engine, served = made(rows=1)
    hold(engine, served)
    seen = []
    calls = [engine.call(lambda: seen.append(len(served.predictor.batches))) for _ in range(3)]
    rows = [engine.submit(asked(served, number)) for number in (10, 11)]
    served.predictor.free.set()
    assert all(future.result(5) for future in rows) and [call.result(5) for call in calls] == [None] * 3
    assert seen == [1, 2, 3]


# ---- under which point -----------------------------------------------------------------------------------------------


class Ladder:
    """A controller on its second rung of three."""

    def rung(self, now, oldest_wait, differ=None):
        return "slow" if differ == 0.01 else "fast" if oldest_wait > 1 else "slow"

    def within(self, differ=None):
        return [FULL, "slow", "fast"][: 2 if differ == 0.01 else 3]


def test_each_request_is_answered_as_it_asks_and_all_others_as_the_controller_says(made):
    _, served = made()
    served.controller = Ladder()
    own = asked(served, 1, point=Point("own", None), arrived=0.0)
    careful, other = asked(served, 2, differ=0.01, arrived=0.0), asked(served, 3, arrived=0.0)
    queue = [row for request in (other, own, careful) for row in request.rows()]
    assert [point.name for point in chosen_points(queue, 0.0, Pace(), 512)] == ["slow", "own", "slow"]
    assert [point.name for point in chosen_points(queue, 2.0, Pace(), 512)] == ["fast", "own", "slow"]


def test_a_budget_takes_the_most_careful_point_that_is_in_time_and_else_the_fastest(made):
    _, served = made()
    served.controller = Ladder()
    pace = Pace(unit=0.001)  # 3 tokens: 18 ms at full depth, 6 ms at the scripted points

    def taken(budget: float, now: float = 0.0) -> str:
        return chosen_points(asked(served, 1, budget=budget, arrived=0.0).rows(), now, pace, 512)[0].name

    assert taken(0.030) == FULL and taken(0.010) == "slow" and taken(0.001) == "fast"
    assert taken(0.030, now=0.02) == "slow"  # what it has waited is gone


class Broken:
    """Raises whatever it is asked."""

    def __getattr__(self, name):
        def fail(*_):
            raise RuntimeError(SECRET)

        return fail


def test_who_watches_or_steers_can_fail_nobodys_request(made, caplog):
    engine, served = made()
    served.watcher = served.controller = engine.meter = Broken()
    engine.watched = [served]
    assert engine.submit(asked(served, 10)).result(5)[0].rung == FULL
    assert SECRET not in caplog.text


class Watching:
    """A watcher for which every row is due as soon as `most` were answered and nobody waits."""

    def __init__(self, most: int = 1):
        self.most, self.rows, self.seen, self.dropped = most, [], [], 0
        self.asked = set()

    def arrived(self, row):
        row.watched = True

    def answered(self, row, answer, rung):
        self.rows.append(row)

    def due(self, now, idle):
        self.dropped += len(self.asked)
        if not idle or len(self.rows) < self.most:
            return []
        found, self.rows, self.asked = self.rows, [], set(self.rows)
        return found

    def judged(self, row, full):
        self.asked.remove(row)
        self.seen.append((row.tokens["input_ids"][0], full.rung))


def test_rows_that_are_due_run_in_batches_that_their_predictor_can_run(made):
    engine, served = made(rows=2)
    served.watcher, served.predictor.together = Watching(3), 1
    engine.watched = [served]
    engine.submit(asked(served, 10, 11, 12)).result(5)
    wait_until(lambda: len(served.watcher.seen) == 3)
    assert {len(ids) for ids, _ in served.predictor.batches} == {1} and served.watcher.dropped == 0


def test_what_is_due_runs_at_full_depth_when_nobody_waits(made):
    engine, served = made()
    served.watcher = Watching()
    engine.watched = [served]
    engine.submit(asked(served, 10)).result(5)
    wait_until(lambda: len(served.watcher.seen) == 1)
    assert served.watcher.seen == [(10, FULL)]
