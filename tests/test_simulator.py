"""Simulated traffic: arrivals as asked for, queues as formulas have them, the engine's own batches."""

import math

import numpy as np
import pytest

from modeling_pfberxit.serving.batching import Limits
from modeling_pfberxit.serving.controller import Controller, Fixed, Reaction
from modeling_pfberxit.serving.ladder import FULL_RUNG, Ladder, Rung
from modeling_pfberxit.traffic.batch_times import BatchTimes, Timed, fitted
from modeling_pfberxit.traffic.simulator import Simulator, Texts
from modeling_pfberxit.traffic.traces import SHAPES, burst, diurnal, flash_crowd, steady

LADDER = Ladder((FULL_RUNG, Rung("1%", 0.01, 4.0), Rung("5%", 0.05, 1.0)))
ALONE = Limits(tokens=10**9, rows=1, queue=10**9)


def texts(lengths, **layers) -> Texts:
    """Rows of so many tokens, which leave after so many layers under each rung; fast answers to every other differ."""
    lengths = np.asarray(lengths)
    every = {name: np.full(len(lengths), number) for name, number in (layers or {"full-depth": 1}).items()}
    return Texts(lengths, every, {name: np.arange(len(lengths)) % 2 == (name == "5%") for name in every})


def full() -> Fixed:
    return Fixed(LADDER, "full-depth")


# ---- traffic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", ["poisson", "pareto", "regular"])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_requests_arrive_as_the_rate_says_and_a_seed_gives_them_again(shape, gaps):
    trace = SHAPES[shape](600.0)
    times = np.linspace(0, 600, 100_001)
    expected = 50 * trace.rate(times).mean() * 600
    found = trace.arrivals(50.0, gaps, seed=1)
    assert (np.diff(found) >= 0).all() and 0 <= found[0] and found[-1] <= 600
    assert len(found) == pytest.approx(expected, rel=0.2 if gaps == "pareto" else 0.03)
    assert (found == trace.arrivals(50.0, gaps, seed=1)).all()
    assert len(found) != len(trace.arrivals(50.0, gaps, seed=2)) or gaps == "regular"


def test_rates_are_where_they_should_be():
    found = burst(120.0).arrivals(100.0, "regular")
    counts = np.histogram(found, [0, 45, 75, 120])[0] / [45, 30, 45]
    assert counts == pytest.approx([100, 300, 100], rel=0.01)
    assert diurnal(100.0).rate(np.array([0.0, 50.0])) == pytest.approx([0.2, 1.8])
    assert flash_crowd(40.0).rate(np.array([9.9, 10.0, 20.0])) == pytest.approx([1, 6, 1 + 5 / math.e])


def test_gaps_are_poissons_or_heavy_tailed():
    poisson, pareto = (np.diff(steady(5_000.0).arrivals(20.0, gaps, seed=3)) for gaps in ("poisson", "pareto"))
    assert poisson.std() == pytest.approx(poisson.mean(), rel=0.03)
    assert pareto.std() > 2 * pareto.mean()


@pytest.mark.parametrize(("usual", "gaps", "said"), [(0.0, "poisson", "usual=0"), (1.0, "uniform", "gaps='uniform'")])
def test_what_is_no_traffic_is_refused(usual, gaps, said):
    with pytest.raises(ValueError, match=said):
        steady(10.0).arrivals(usual, gaps)


# ---- what a batch takes ----------------------------------------------------------------------------------------------


def test_a_batch_takes_each_layer_for_the_rows_that_are_left_padded_to_the_longest_of_them():
    times = BatchTimes(layer=(1.0, 0.1, 0.01), fixed=(5.0, 0.5, 0.0))
    lengths, layers = np.array([10, 4, 20]), np.array([2, 3, 1])
    expected = (
        (5 + 0.5 * 60)  # embeddings of 3 x 20
        + (1 + 0.1 * 60 + 0.01 * 3 * 400)  # layer 1 of 3 x 20
        + (1 + 0.1 * 20 + 0.01 * 2 * 100)  # layer 2 of 2 x 10
        + (1 + 0.1 * 4 + 0.01 * 16)  # layer 3 of 1 x 4
    )
    assert times.seconds(lengths, layers) == pytest.approx(expected)


def test_lines_are_found_again_from_batches_whose_rows_leave_one_by_one():
    times = BatchTimes((3e-4, 2e-6, 3e-9), (1e-3, 5e-6, 0.0))
    cases = [
        (np.full(rows, length) - np.arange(rows), 1 + np.arange(rows) % most)
        for rows in (1, 4, 16) for length in (16, 64, 128) for most in (1, 2, 6)
    ]  # fmt: skip
    found = fitted([Timed(*case, times.seconds(*case)) for case in cases])
    assert found.layer == pytest.approx(times.layer) and found.fixed == pytest.approx(times.fixed, abs=1e-9)
    with pytest.raises(ValueError, match="batches=5: must be six"):
        fitted([Timed(*case, 1.0) for case in cases[:5]])


# ---- queues ----------------------------------------------------------------------------------------------------------


def test_a_queue_worked_by_hand():
    """Batches of two rows take 1 s and a second for every layer; requests at 0, 0.5, 0.6 and 0.7."""
    rows, limits = texts([10] * 4, **{"full-depth": 2}), Limits(tokens=20, rows=2, queue=10)
    run = Simulator(rows, BatchTimes((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)), limits).run(
        np.array([0.0, 0.5, 0.6, 0.7]), 10.0, [full()]
    )
    assert run.latency == pytest.approx([3.0, 6.0 - 0.5, 6.0 - 0.6, 9.0 - 0.7]) and run.busy == 9.0


def test_what_a_client_waits_for_outside_the_server_holds_up_nobody_else():
    rows, times = texts([10]), BatchTimes((1.0, 0.0, 0.0))
    near, far = (
        Simulator(rows, times, ALONE, request=0.5, outside=outside).run(np.array([0.0, 0.1]), 9.0, [full()])
        for outside in (0.0, 0.2)
    )
    assert near.latency == pytest.approx([1.5, 2.9]) and far.latency == pytest.approx([1.7, 3.1])
    assert near.busy == far.busy == 3.0


def test_a_queue_that_is_full_refuses():
    rows, limits = texts([10], **{"full-depth": 1}), Limits(tokens=10, rows=1, queue=1)
    run = Simulator(rows, BatchTimes((1.0, 0.0, 0.0)), limits).run(np.array([0.0, 0.1, 0.2, 1.5]), 2.0, [full()])
    assert np.isnan(run.latency).tolist() == [False, False, True, False]
    assert run.rungs.tolist() == ["full-depth", "full-depth", "", "full-depth"]


def test_rows_wait_for_a_batch_to_fill_and_no_longer():
    rows, limits = texts([10], **{"full-depth": 1}), Limits(tokens=20, rows=2, wait=0.2, queue=9)
    run = Simulator(rows, BatchTimes((1.0, 0.0, 0.0)), limits).run(np.array([0.0, 0.1, 5.0]), 6.0, [full()])
    assert run.latency == pytest.approx([1.1, 1.0, 1.2])


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_regular_service_waits_as_m_d_1(load):
    trace, service = steady(250.0), 0.01
    run = Simulator(texts([10]), BatchTimes((service, 0.0, 0.0)), ALONE).run(
        trace.arrivals(load / service, seed=3), trace.seconds, [full()]
    )
    assert run.latency.mean() - service == pytest.approx(load * service / (2 * (1 - load)), rel=0.1)
    assert run.busy / trace.seconds == pytest.approx(load, rel=0.02)


def test_exponential_service_takes_as_long_as_m_m_1():
    draws = np.random.default_rng(1).exponential(1e6, size=50_000)
    rows = texts(np.maximum(1, draws).astype(int))
    trace, arrives, served = steady(400.0), 60.0, 100.0
    run = Simulator(rows, BatchTimes((0.0, 1 / (1e6 * served), 0.0)), Limits(tokens=1, rows=1, queue=10**9)).run(
        trace.arrivals(arrives, seed=3), trace.seconds, [full()]
    )
    assert run.latency.mean() == pytest.approx(1 / (served - arrives), rel=0.08)
    assert np.quantile(run.latency, 0.99) == pytest.approx(math.log(100) / (served - arrives), rel=0.1)


def test_two_workers_share_the_work_and_the_shorter_of_two_queues_waits_less():
    service, load = 0.01, 0.8
    trace = steady(60.0)
    run = Simulator(texts([10]), BatchTimes((service, 0.0, 0.0)), ALONE).run(
        trace.arrivals(4 * load / service, seed=3), trace.seconds, [full() for _ in range(4)]
    )
    alone = load * service / (2 * (1 - load))  # M/D/1: each worker by itself
    pooled = alone / 4  # below what four workers on one queue need
    assert pooled / 4 < run.latency.mean() - service < 0.8 * alone


# ---- with a controller -----------------------------------------------------------------------------------------------


def test_in_a_burst_a_controller_keeps_up_and_tells_the_rungs_that_answered():
    rows = texts(np.full(100, 10), **{"full-depth": 6, "1%": 4, "5%": 1})
    trace, times = burst(60.0, lasts=20.0), BatchTimes((0.01, 0.0, 0.0))
    arrivals, limits = trace.arrivals(10.0, seed=1), Limits(tokens=10, rows=1, queue=60)
    steered = Simulator(rows, times, limits).run(arrivals, 60.0, [Controller(LADDER, reaction=Reaction(step=0.2))])
    stays = Simulator(rows, times, limits).run(arrivals, 60.0, [Fixed(LADDER, "1%")])
    assert np.isnan(stays.latency).any() and not np.isnan(steered.latency).any()
    assert np.quantile(steered.latency, 0.99) < 0.5 < np.nanquantile(stays.latency, 0.99)
    calm = (arrivals < 20) | (arrivals > 45)
    assert (steered.rungs[calm] == "1%").mean() > 0.7 > 0.3 > (steered.rungs[~calm] == "1%").mean()
    assert (steered.layers == np.where(steered.rungs == "5%", 1, 4)).all()


def test_batches_are_the_engines(monkeypatch):
    from modeling_pfberxit.serving import engine
    from modeling_pfberxit.traffic import simulator

    assert simulator.form is engine.form
    seen = []
    monkeypatch.setattr(simulator, "form", lambda *given: seen.append(given) or engine.form(*given))
    Simulator(texts([10, 50]), BatchTimes((0.1, 0.0, 0.0))).run(np.array([0.0, 0.01, 0.02]), 1.0, [full()])
    assert len(seen) >= 2 and seen[0][0][0].length in (10, 50)


def test_a_server_without_workers_is_refused():
    with pytest.raises(ValueError, match="steering="):
        Simulator(texts([10]), BatchTimes((0.1, 0.0, 0.0))).run(np.array([0.0]), 1.0, [])
